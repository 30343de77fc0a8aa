"""Rotary position embedding: RoFormer (Su et al. 2021, arXiv 2104.09864), eq. 13 to 16 and 34."""

from dataclasses import dataclass
from typing import Literal

import torch
from huggingface_hub.dataclasses import strict
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils.import_utils import is_tracing

from .device import made_on
from .position_base import LayerPosition, PositionScheme, States


class RotaryPosition(PositionScheme):
    """Turns query and key pairs by the angle position * theta^(-2t/d), so that their product depends on i - j only.

    x'_{2t} = x_{2t} cos(m th_t) - x_{2t+1} sin(m th_t), x'_{2t+1} = x_{2t+1} cos(m th_t) + x_{2t} sin(m th_t).
    Frequencies come from transformers' `ROPE_INIT_FUNCTIONS` for every `rope_type` but the default one. Angles and
    rotation are float32 whatever the model's dtype (float64 in a float64 model); no parameters, no length limit.
    """

    kind = "RoPE"
    rotates = True

    @strict
    @dataclass
    class Options:
        """Settings of `rotary`; theta, scaling and `partial_rotary_factor` live in `config.rope_parameters`.

        pairing: "interleaved" turns the pairs (2t, 2t+1), as the paper and native RoFormer do; "halves" the pairs
            (t, t + E/2), as GPT-NeoX and LLaMA do. Equal scores after permuting the rows of the projections.
        rotary_value: also rotates the values (native RoFormer's option). Outputs then depend on absolute positions.
        """

        pairing: Literal["interleaved", "halves"] = "interleaved"
        rotary_value: bool = False

    @classmethod
    def check(cls, config, options):
        size, head_size = rotary_size(config), config.hidden_size // config.num_attention_heads
        heads, features = config.num_attention_heads, config.num_features
        of = f"head size {head_size} = hidden_size {config.hidden_size} / num_attention_heads {heads}"
        if features is not None:
            of = f"num_features {features}"
        if size % 2 or size < 2:
            raise ValueError(
                f"position_embedding_type='rotary' turns pairs and needs an even rotary size of 2 or more, got {size} "
                f"({of}, partial_rotary_factor {config.rope_parameters.get('partial_rotary_factor', 1.0)})."
            )
        if options.rotary_value and config.head_dim != head_size:
            raise ValueError(
                f"position_options['rotary_value'] turns values, of size {head_size}, by the angles of the features, "
                f"num_features={features}: set num_features={head_size}, or leave rotary_value out."
            )
        rope_type = config.rope_parameters["rope_type"]
        known = sorted({"default", *ROPE_INIT_FUNCTIONS})
        if rope_type not in known:
            raise ValueError(f"rope_parameters['rope_type'] is {rope_type!r}; known: {', '.join(known)}.")
        for name in ("short_factor", "long_factor"):
            factors = config.rope_parameters.get(name)
            if factors is not None and len(factors) != size // 2:
                raise ValueError(
                    f"rope_parameters[{name!r}] has {len(factors)} numbers and needs one a rotated pair, {size // 2}."
                )

    @classmethod
    def for_layer(cls, config, layer_idx):
        return LayerRotary(config, cls.Options(**config.position_options))

    @property
    def shift_invariant(self):
        return not self.options.rotary_value and self.length_independent

    @property
    def length_independent(self):
        """Not where frequencies follow the length: past the first length, a cache is an approximation."""
        return self.config.rope_parameters["rope_type"] not in ("dynamic", "longrope")

    def share(self, everywhere, dtype):
        """The rotations of queries, keys and, where they turn, values: complex (B or 1, 1, L, d/2), a tensor each.

        Under tracing cosines and sines, two tensors each. Queries and keys are also multiplied by the factor of some
        scalings, which is the temperature of a softmax: linear attention has none, and values are of no score.
        """
        query, factor = self.rotations(everywhere.queries, dtype, everywhere.segments)
        key = query
        if everywhere.keys is not everywhere.queries:
            key, _ = self.rotations(everywhere.keys, dtype, everywhere.segments)
        value = key if self.options.rotary_value else ()
        if factor != 1.0 and self.config.attention_type == "softmax":
            query, key = (tuple(x * factor for x in turns) for turns in (query, key))
        return query + key + value

    def rotations(
        self, positions: torch.Tensor, dtype: torch.dtype, segments: torch.Tensor | None = None
    ) -> tuple[tuple[torch.Tensor, ...], float]:
        """The rotations of positions, of length 1, and the factor on queries and keys."""
        precision = torch.promote_types(dtype, torch.float32)
        frequencies, factor = self.frequencies(positions, precision, segments)
        angles = (positions[..., None].to(precision) * frequencies)[:, None]
        if is_tracing(positions):
            return (angles.cos(), angles.sin()), factor
        # Complex also because mixed precision, such as FSDP's, casts the floats that go to a layer, and not these.
        return (torch.polar(torch.ones_like(angles), angles),), factor

    def frequencies(
        self, positions: torch.Tensor, precision: torch.dtype, segments: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, float]:
        """Angle a position, (d/2,) or (B, L, d/2) where it follows the sequence's length, and the factor on q and k."""
        parameters = self.config.rope_parameters
        rope_type = parameters["rope_type"]
        if rope_type == "default":
            size = rotary_size(self.config)
            exponents = torch.arange(0, size, 2, device=positions.device).to(precision) / size
            return parameters["rope_theta"] ** -exponents, 1.0
        compute = ROPE_INIT_FUNCTIONS[rope_type]
        with made_on(positions.device):  # these functions make some of their tensors on the default device
            if rope_type == "dynamic":
                lengths = sequence_lengths(positions, segments)
                frequencies, factor = compute(self.config, positions.device, seq_len=lengths)
            elif rope_type == "longrope":
                limit = parameters["original_max_position_embeddings"]
                short, factor = compute(self.config, positions.device)
                long, _ = compute(self.config, positions.device, seq_len=limit + 1)
                frequencies = torch.where(sequence_lengths(positions, segments) > limit, long, short)
            else:
                frequencies, factor = compute(self.config, positions.device)
        return frequencies.to(precision), factor


class LayerRotary(LayerPosition):
    """The rotation itself; no parameters."""

    def __init__(self, config, options):
        super().__init__(config)
        self.halves, self.rotary_value = options.pairing == "halves", options.rotary_value

    def forward(self, query, key, value, shared, project, samples=1):
        each = len(shared) // (3 if self.rotary_value else 2)
        if self.rotary_value:
            value = self.rotate(value, shared[2 * each :])
        return States(self.rotate(query, shared[:each]), self.rotate(key, shared[each : 2 * each]), value)

    def rotate(self, x: torch.Tensor, rotations: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """(B,H,L,E) -> (B,H,L,E): the first 2 * rotations.shape[-1] components rotated, the rest as they were."""
        rotation, whole = rotations[0], x.shape[-1]
        size = 2 * rotation.shape[-1]
        precision = rotation.dtype.to_real() if rotation.is_complex() else rotation.dtype
        part = (x if size == whole else x[..., :size]).to(precision)
        if rotation.is_complex() and not self.halves:  # one product of complex numbers, a pair each
            pairs = torch.view_as_complex(part.unflatten(-1, (-1, 2)))
            # In place where `part` is a copy, which nobody else has seen: memory touched once, not twice.
            pairs = pairs * rotation if x.dtype == precision else pairs.mul_(rotation)
            rotated = torch.view_as_real(pairs).flatten(-2)
        else:
            cos, sin = (rotation.real, rotation.imag) if rotation.is_complex() else rotations
            if self.halves:  # a component's partner lies half of them away; long rows beat two halves that lie apart
                partners = part.roll(size // 2, -1)
                rotated = torch.addcmul(part * torch.cat((cos, cos), -1), partners, torch.cat((-sin, sin), -1))
            else:
                first, second = part.unflatten(-1, (-1, 2)).unbind(-1)
                rotated = torch.stack((first * cos - second * sin, second * cos + first * sin), -1).flatten(-2)
        rotated = rotated.to(x.dtype)
        return rotated if size == whole else torch.cat((rotated, x[..., size:]), dim=-1)


def rotary_size(config) -> int:
    """The number of components of each head that are rotated; "proportional" turns the others by an angle of 0."""
    if config.rope_parameters["rope_type"] == "proportional":
        return config.head_dim
    return int(config.head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0))


def sequence_lengths(positions: torch.Tensor, segments: torch.Tensor | None) -> torch.Tensor:
    """(B or 1, L) -> (B, L or 1, 1): the largest position of each token's own sequence, plus one.

    `segments` are (B, L), the number of each token's sequence; None where a row is one sequence.
    """
    if segments is None:
        return positions.amax(-1)[:, None, None] + 1
    batch, length = segments.shape
    largest = torch.zeros(batch, length + 1, dtype=positions.dtype, device=positions.device)
    positions = positions.expand(batch, length)
    return largest.scatter_reduce(-1, segments, positions, "amax").gather(-1, segments)[..., None] + 1
