"""The attention modules, self and cross, whole: projections, the position scheme, the call of transformers' interface.

Shapes: B batch, H heads, L length, Q and K query and key lengths, E head size, D hidden size, T real tokens.
"""

from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.import_utils import is_torchdynamo_exporting, is_tracing

from .device import reads_are_free
from .layout import Group, is_full, is_observed, own_function, pad, unpad
from .position_base import Places, States
from .positions import SCHEMES


class MultiHead(nn.Module):
    """The four projections, and attention as `attn_implementation` computes it."""

    def __init__(self, config, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer_idx, False
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)  # read, as BERT's; attention functions drop
        size, bias = config.hidden_size, config.attention_bias
        self.query = nn.Linear(size, size, bias=bias)
        self.key = nn.Linear(size, size, bias=bias)
        self.value = nn.Linear(size, size, bias=bias)
        self.output = nn.Linear(size, size, bias=bias)

    def by_head(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, D) -> (B, H, L, E)."""
        return x.view(*x.shape[:-1], self.num_heads, self.head_dim).transpose(1, 2)

    def interface(self, query, key, value, *, mask, scaling: float, is_causal: bool, **kwargs) -> tuple[Any, Any]:
        """(B,H,Q,E), (B,H,K,E), (B,H,K,E) -> (B, Q, D), and the probabilities (B,H,Q,K) or None."""
        compute = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        dropout = self.dropout.p if self.dropout.training else 0.0
        settings = {**kwargs, "dropout": dropout, "scaling": scaling, "is_causal": is_causal}
        out, probabilities = compute(self, query, key, value, mask, **settings)
        if is_torchdynamo_exporting():  # the strides of sdpa's output are others once ONNX has decomposed it
            out = out.clone(memory_format=torch.contiguous_format)
        return out.flatten(-2), probabilities


class HfRopeAttention(MultiHead):
    """Multi-head self-attention under a position scheme."""

    keeps_sums: ClassVar[bool] = False
    """Whether a cache holds sums over earlier tokens, not their keys and values."""

    def __init__(self, config, layer_idx: int):
        super().__init__(config, layer_idx)
        self.is_causal = config.is_decoder
        scheme = SCHEMES[config.position_embedding_type]
        self.position, self.has_rows = scheme.for_layer(config, layer_idx), scheme.score == "content"

    @staticmethod
    def attn_implementations(config) -> tuple[str, ...]:
        """The values of `attn_implementation` that can compute the position scheme."""
        return SCHEMES[config.position_embedding_type].attn_implementations(config)

    @staticmethod
    def make_mask(config, x: torch.Tensor, attention_mask: torch.Tensor | None, places: Places, cache: Cache | None):
        """The mask over padding, between packed sequences and, in a decoder, over what lies ahead; None for none."""
        segments, inside = places.segments, None
        if segments is not None:

            def inside(batch, head, query, key):
                return segments[batch, query] == segments[batch, key]

        if not config.is_decoder:
            mask: Any = create_bidirectional_mask(config, x, attention_mask, and_mask_function=inside)
        elif places.keys is places.queries and segments is None and is_plain(config, x, attention_mask):
            mask = None  # `compute` leaves out what lies ahead
        else:
            # Cached keys make the scores no square, of which `compute` could cut a triangle where there is a term.
            square = places.keys is places.queries
            skip = square or SCHEMES[config.position_embedding_type].score == "none"
            mask = create_causal_mask(
                config, x, attention_mask, cache, and_mask_function=inside, allow_is_causal_skip=skip
            )
        return additive(mask, config, x.dtype)

    def forward(
        self,
        x: torch.Tensor,
        mask: Any,
        *plan: torch.Tensor,
        groups: tuple[Group, ...],
        inside: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, L, D) or (1, T, D) -> the same, and the probabilities (B, H, L, K) where eager attention has them.

        Args:
            mask: what `make_mask` gave.
            plan: `Layout.flatten`'s tensors.
            groups: the sequences that attend to themselves.
            inside: the places of the real tokens, where these alone are computed here; see `Layout`.
            cache: a decoder's, which is read and filled.
            kwargs: handed to the attention function.
        """
        batch, length = x.shape[:2]
        x = unpad(x, inside)
        query, key, value = (self.by_head(part(x)) for part in (self.query, self.key, self.value))
        own: Any = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
        if own is not None and not self.keeps_sums:
            key, value = own.update(key, value, self.layer_idx)
        last = len(plan) - sum(group.has_pairs for group in groups)
        states, pairs = self.place(query, key, value, plan[:last]), iter(plan[last:])
        outputs, probabilities, start = [], None, 0
        whole = len(groups) == 1 and groups[0].sequences == x.shape[0]
        for group in groups:
            part = states if whole else cut(states, start, group)
            pair = next(pairs) if group.has_pairs else None
            out, probabilities = self.attend(part, pair, mask, group, own, **kwargs)
            outputs.append(out)
            start += group.sequences * group.length
        context = outputs[0] if whole else torch.cat([out.flatten(0, 1) for out in outputs])[None]
        return pad(self.output(context.to(value.dtype)), inside, batch, length), probabilities

    def place(self, query, key, value, shared: tuple[torch.Tensor, ...]) -> States:
        """The scheme's work on queries and keys, once for all sequences."""
        # Rows of a table go through modules once a sample where somebody takes gradients a sample.
        by_sample = self.has_rows and not is_tracing(query) and is_observed(self)
        samples = query.shape[0] if by_sample else 1
        return self.position(query, key, value, shared=shared, project=self.project, samples=samples)

    def project(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., D): a scheme's rows through this layer's projection "query" or "key"."""
        return self.query(rows) if name == "query" else self.key(rows)

    def renew(self) -> None:
        """What changes before a forward in training: nothing here."""

    def attend(self, states: States, pairs, mask, group: Group, cache, **kwargs) -> tuple[torch.Tensor, Any]:
        """Attention of the sequences of a group: (count, L, D), and the probabilities or None."""
        compute = partial(self.compute, mask=mask, **kwargs)
        return self.position.attend(states, pairs, compute, group.can_split)

    def compute(
        self, query, key, value, term=None, value_term=None, start: int = 0, ahead: bool = True, *, mask, **kwargs
    ):
        """`Compute`: softmax attention with the scheme's terms where it has them, masks after the term."""
        is_causal = self.is_causal and ahead
        if is_causal and mask is None and (term is not None or self.config._attn_implementation == "eager"):
            shape = query.shape[-2], key.shape[-2]
            after = torch.ones(shape, dtype=torch.bool, device=query.device).triu(start + 1)
            is_causal = False
            if term is None:
                mask = query.new_zeros(shape).masked_fill(after, torch.finfo(query.dtype).min)
            else:
                term = term.masked_fill(after, torch.finfo(term.dtype).min)
        if term is not None:
            if self.config._attn_implementation == "sdpa" and mask is None:
                # An additive mask as it is; transformers would first copy a position_bias. On an accelerator the term
                # is copied if it is a view into other numbers: kernels for GPUs do not read from any address.
                mask = term.to(query.dtype)
                mask = mask if reads_are_free(query) else mask.contiguous()
            else:
                kwargs["position_bias"] = term.expand(query.shape[0], self.num_heads, -1, -1)
        if value_term is not None:
            kwargs["value_term"] = value_term
        settings = {**kwargs, "mask": mask, "scaling": self.position.scaling(), "is_causal": is_causal}
        return self.interface(query, key, value, **settings)


class HfRopeCrossAttention(MultiHead):
    """Multi-head attention to an encoder's states, without positions: the two sequences share no axis (as RoFormer)."""

    def forward(
        self, x: torch.Tensor, states: torch.Tensor, mask: Any, cache: Cache | None = None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, L, D), (B, S, D) -> (B, L, D), and the probabilities (B, H, L, S) where eager attention has them."""
        key, value = self.keys_and_values(states, cache)
        query = self.by_head(self.query(x))
        settings = {**kwargs, "mask": mask, "scaling": self.head_dim**-0.5, "is_causal": False}
        out, probabilities = self.interface(query, key, value, **settings)
        return self.output(out), probabilities

    def keys_and_values(self, states: torch.Tensor, cache: Cache | None) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, S, D) -> twice (B, H, S, E): computed once where there is a cache."""
        if isinstance(cache, EncoderDecoderCache) and cache.is_updated.get(self.layer_idx):
            layer: Any = cache.cross_attention_cache.layers[self.layer_idx]
            return layer.keys, layer.values
        key, value = self.by_head(self.key(states)), self.by_head(self.value(states))
        if not isinstance(cache, EncoderDecoderCache):
            return key, value
        cache.is_updated[self.layer_idx] = True
        return cache.cross_attention_cache.update(key, value, self.layer_idx)


def cut(states: States, start: int, group: Group) -> States:
    """The part of a group: from (1, H, T, ...) its (count, H, length, ...)."""

    def part(x: torch.Tensor) -> torch.Tensor:
        rows = x[0, :, start : start + group.sequences * group.length]
        return rows.unflatten(1, (group.sequences, group.length)).transpose(0, 1)

    return states._replace(
        query=part(states.query),
        key=part(states.key),
        value=part(states.value),
        by_token=tuple(part(x) for x in states.by_token),
    )


def eager_attention(
    attn: MultiHead,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    position_bias: torch.Tensor | None = None,
    value_term=None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention written out: (B,H,Q,E), (B,H,K,E), (B,H,K,E) -> (B,Q,H,E) and the probabilities (B,H,Q,K).

    The mask is additive and comes after the position bias, never below the smallest number, so that a row without any
    key is uniform and not NaN. The softmax is float32 at least.
    """
    scores = (query * scaling) @ key.transpose(-1, -2)
    if position_bias is not None:
        scores = scores + position_bias
    if mask is not None:
        scores = (scores + mask).clamp(min=torch.finfo(scores.dtype).min)
    probabilities = scores.softmax(-1).to(scores.dtype)  # autocast makes some kinds of it float32
    probabilities = nn.functional.dropout(probabilities, dropout, attn.dropout.training)
    out = probabilities @ value
    if value_term is not None:
        out = out + value_term(probabilities)
    return out.transpose(1, 2), probabilities


def is_plain(config, x: torch.Tensor, attention_mask: torch.Tensor | None) -> bool:
    """Whether causal attention without a cache needs no mask: nothing is padding, and eager or sdpa computes it."""
    if config._attn_implementation == "flex_attention" or own_function(config) is not None or is_tracing(x):
        return False
    if attention_mask is None:
        return True
    return attention_mask.ndim == 2 and is_full(attention_mask)


def additive(mask, config, dtype: torch.dtype):
    """The mask as eager attention takes it: 0 and the smallest number where it was boolean; as it is for the others."""
    if config._attn_implementation != "eager" or mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def encoder_mask(config, x: torch.Tensor, states: torch.Tensor | None, attention_mask: torch.Tensor | None):
    """The mask of cross-attention from x, (B, L, D), to the encoder's real states, (B, S, D); None for none."""
    if states is None or attention_mask is None:
        return None
    return additive(create_bidirectional_mask(config, x, attention_mask, encoder_hidden_states=states), config, x.dtype)
