"""Linear attention with rotary positions: RoFormer (Su et al. 2021, arXiv 2104.09864), section 3.3, eq. 18 and 19.

out_m = sum_n (R_m phi(q_m)) . (R_n phi(k_n)) v_n / sum_n phi(q_m) . phi(k_n): the scheme's `rotate` comes after the
feature map and in the numerator only, so that the denominator stays positive.

Shapes: B batch, H heads, L length, E head size, F features, N blocks of C tokens.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache
from transformers.utils.import_utils import is_torchdynamo_exporting, is_tracing

from .attention import HfRopeAttention
from .device import without_autocast

BLOCK = 128
"""Tokens of a causal block: within one, all pairs are computed; between blocks, sums over keys."""
STABILIZER = 1e-6
"""The least feature of FAVOR+, as a share of the token's largest one."""


class FeatureMap(nn.Module):
    """Base of the maps phi from queries and keys to positive features, (B,H,L,E) -> (B,H,L,F)."""

    def __init__(self, config, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx

    def init_weights(self, std: float) -> None:
        """Fills what is no module of its own; called by the model's `_init_weights`."""

    def renew(self) -> None:
        """What changes before a forward in training."""

    def forward(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The features of queries and keys, and the logarithm of each key's factor, (B or 1, H or 1, L).

        A query's features may be off by a factor, which is in numerator and denominator.
        """
        raise NotImplementedError


class EluFeatures(FeatureMap):
    """phi(x) = elu(x) + 1: Katharopoulos 2020 (arXiv 2006.16236), eq. 7; F = E."""

    def forward(self, query, key):
        return positive(query), positive(key), key.new_zeros(1, 1, key.shape[-2])


class FavorFeatures(FeatureMap):
    """FAVOR+: Choromanski 2020 (arXiv 2009.14794), section 2.3: phi(x)_f = exp(w_f . x - |x|^2 / 2), positive features.

    Queries and keys are scaled by E^(-1/4), so that phi(q) . phi(k) / F estimates exp(q . k / sqrt(E)), without bias.
    The directions w are orthogonal in blocks of E, their lengths those of Gaussian vectors. They are a buffer and saved
    with the weights, drawn from the seed, the layer's number and the number of the draw.

    For numbers that neither overflow nor vanish, each query's and each key's features are divided by their largest one:
    a query's cancels, a key's is returned, as a logarithm, and taken relative to the largest that the query sees.
    `STABILIZER` times the largest is added to each feature, after the authors' code: a long query and a long key whose
    features peak at different directions have a product of 0 in float32, and a model that learns gets there.
    """

    projection: torch.Tensor
    forwards: torch.Tensor

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.size = config.hidden_size // config.num_attention_heads
        self.register_buffer("projection", torch.empty(config.num_features, self.size))
        if config.redraw_interval is not None:
            self.register_buffer("forwards", torch.zeros((), dtype=torch.int64))

    def init_weights(self, std):
        init.copy_(self.projection, self.draw(0))
        if self.config.redraw_interval is not None:
            init.zeros_(self.forwards)

    def renew(self):
        """Counts the training forwards and draws anew at every `redraw_interval`th.

        Raises:
            ValueError: a graph is traced, which would keep one draw for good.
        """
        interval = self.config.redraw_interval
        if interval is None:
            return
        if is_tracing(self.projection):
            raise ValueError(
                f"redraw_interval={interval} draws new features in training, and a traced graph cannot: set it to None "
                "(model.config.redraw_interval), or train the model uncompiled."
            )
        self.forwards += 1
        if self.forwards % interval == 0:
            drawn = self.draw(int(self.forwards) // interval)
            self.projection = drawn.to(self.projection)  # a new tensor: an earlier forward's backward may need the old

    def draw(self, number: int) -> torch.Tensor:
        """(F, E) float64: orthogonal directions, E at once, each as long as a Gaussian vector of its own."""
        seed = (self.config.feature_seed * 1_000_003 + self.layer_idx) * 1_000_003 + number
        generator = torch.Generator().manual_seed(seed % 2**63)
        settings: Any = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
        count, size = len(self.projection), self.size
        q, r = torch.linalg.qr(torch.randn(-(-count // size), size, size, **settings))
        directions = (q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]).mT.flatten(0, 1)[:count]  # signs: uniform
        return directions * torch.randn(count, size, **settings).norm(dim=-1, keepdim=True)

    def forward(self, query, key):
        query, key = self.exponents(query), self.exponents(key)
        peaks = key.amax(-1, keepdim=True)  # with its gradient: what is added follows it
        query = (query - query.amax(-1, keepdim=True)).exp_() + STABILIZER
        return query, (key - peaks).exp_() + STABILIZER, peaks[..., 0]

    def exponents(self, x: torch.Tensor) -> torch.Tensor:
        x = x * self.size**-0.25
        return (x @ self.projection.to(x.dtype).T).sub_(x.square().sum(-1, keepdim=True) / 2)


FEATURE_MAPS = {"elu": EluFeatures, "favor": FavorFeatures}


def positive(x: torch.Tensor) -> torch.Tensor:
    """elu(x) + 1, written so that it stays positive where elu rounds to -1."""
    return x.clamp(max=0).exp_() + x.relu()


class LinearState(DynamicLayer):
    """What a layer keeps of all earlier tokens, whatever their number: sums over keys, and the number of tokens.

    `keys` are (B, H, F, E + 1): the sums of phi(k) v^T, turned, and in the last column of phi(k), not turned; `values`
    (B, H) the logarithm of a factor on them. The names are those that transformers' cache reorders and repeats.
    """

    is_croppable = False
    tokens = 0

    def update(self, key_states, value_states, tokens: int = 0, **kwargs):
        """Takes the place of what it held; `tokens` are the new ones."""
        self.keys, self.values = key_states, value_states
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized, self.tokens = True, self.tokens + tokens
        return key_states, value_states

    def get_seq_length(self):
        return self.tokens

    def reset(self):
        self.keys = self.values = None
        self.is_initialized, self.tokens = False, 0

    def crop(self, tokens_to_remove):
        raise RuntimeError(
            "attention_type='linear' keeps sums over tokens, from which none can be taken away, as assisted "
            "generation does: use a way of generating that takes none back."
        )


class HfRopeLinearAttention(HfRopeAttention):
    """Multi-head self-attention with a feature map in the softmax's place; no probabilities, so no dropout of them.

    The mask says which tokens a query may see: (B, L) bool, True at real tokens, or int64, the number n of each token's
    packed sequence, which at padding is -1 - n. All is computed in float32 at least. Linear in L, but for an encoder's
    packed sequences in one row and a decoder that torch.export has exported, which are computed with all pairs.
    """

    keeps_sums = True

    def __init__(self, config, layer_idx: int):
        super().__init__(config, layer_idx)
        self.features = FEATURE_MAPS[config.feature_map](config, layer_idx)

    @staticmethod
    def attn_implementations(config):
        """For cross-attention: linear attention itself is computed in one way."""
        return ("eager", "sdpa")

    @staticmethod
    def make_mask(config, x, attention_mask, places, cache):
        """What the class says of its mask; None where every token is real and alone in its row.

        Raises:
            ValueError: a mask of pairs, or a cache that cannot hold the sums.
        """
        own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
        if own is not None:
            hold_states(own, config.num_hidden_layers)
        if attention_mask is not None and attention_mask.ndim != 2:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, and attention_type='linear' computes no "
                "pairs for it to mask: pass one of shape (batch, length)."
            )
        real = None if attention_mask is None else attention_mask[:, -x.shape[1] :].bool()
        if places.segments is None or real is None:
            return real if places.segments is None else places.segments
        return torch.where(real, places.segments, -1 - places.segments)

    def renew(self):
        self.features.renew()

    def place(self, query, key, value, shared):
        """Features first, then the scheme. `by_token`: the features as they were, and each key's scale (.., L, 1)."""
        precision = torch.promote_types(query.dtype, torch.float32)
        with without_autocast(query):
            query, key, scale = self.features(query.to(precision), key.to(precision))
            states = super().place(query, key, value.to(precision), shared)
        return states._replace(by_token=(query, key, scale[..., None]))

    def attend(self, states, pairs, mask, group, cache, **kwargs):
        query, key, scale = states.by_token
        scale, segments = scale[..., 0], None
        if mask is not None:
            real = mask if mask.dtype == torch.bool else mask >= 0
            segments = None if mask.dtype == torch.bool else torch.where(real, mask, -1 - mask)
            scale = scale.masked_fill(~real[:, None], -torch.inf)
        turned = states[:3]
        with without_autocast(query):
            if not self.is_causal and segments is None:
                out = attend_to_all(query, key, turned, scale)
            else:
                state = None if cache is None else cache.layers[self.layer_idx]
                out, sums, level = attend_in_blocks(
                    query, key, turned, scale, is_causal=self.is_causal, segments=segments, state=state
                )
                if state is not None:
                    state.update(sums, level, query.shape[-2])
        return out.transpose(1, 2).flatten(-2), None


def attend_to_all(query, key, turned, scale: torch.Tensor) -> torch.Tensor:
    """Each query sees every key: two of (B,H,L,F), the three as the scheme turned them -> (B,H,L,E)."""
    turned_query, turned_key, value = turned
    weights = (scale - finite(scale.amax(-1, keepdim=True))).exp()[..., None]
    numerator = turned_query @ (turned_key.transpose(-1, -2) @ (value * weights))
    return divide(numerator, query @ (key.transpose(-1, -2) @ weights.expand(*key.shape[:3], 1)))


def attend_in_blocks(
    query, key, turned, scale: torch.Tensor, is_causal: bool, segments: torch.Tensor | None, state: LinearState | None
) -> tuple:
    """Each query sees the keys of its own sequence, and in a decoder none after it: two of (B,H,L,F) -> (B,H,L,E).

    Within a block of C tokens all pairs are computed. Of earlier blocks, queries see sums over keys, a sum a block and
    those of the state first. Each query's keys are weighed relative to the largest factor among those that it sees, so
    that no later token, no other sequence and no other row enters. An encoder's packed row is one
    block, and so is what an exported graph reads.

    Returns the output, the sums over all keys (B,H,F,E+1), and the logarithm (B,H) of their factor.
    """
    length = query.shape[-2]
    # An exported graph is for any length, and torch.export would fix the number of blocks where it is 1.
    size = min(BLOCK, length) if is_causal and not is_torchdynamo_exporting() else length
    rest = -length % size

    def in_blocks(x: torch.Tensor) -> torch.Tensor:
        # A traced graph expects strides of F.pad that it keeps for contiguous tensors only.
        return F.pad(x.contiguous(), (0, 0, 0, rest)).unflatten(2, (-1, size))

    query, key = in_blocks(query), in_blocks(key)
    turned_query, turned_key, value = (in_blocks(x) for x in turned)
    scale = F.pad(scale, (0, rest), value=-torch.inf).unflatten(-1, (-1, size))
    blocks = scale.shape[-2]
    within = torch.ones(size, size, dtype=torch.bool, device=query.device)
    if is_causal:
        within = within.tril()
    between = torch.ones(blocks + 1, blocks, dtype=torch.bool, device=query.device).tril(-1)  # row N: all of them
    ends = scale
    if segments is not None:
        numbers = F.pad(segments, (0, rest), value=-1).unflatten(-1, (-1, size))[:, None]
        first, last = numbers[..., :1], numbers[..., -1:]
        within = within & (numbers[..., None] == numbers[..., None, :])
        between = between & F.pad(first == last.mT, (0, 0, 0, 1), value=True)
        ends = scale.masked_fill(numbers != last, -torch.inf)

    peaks = ends.amax(-1)
    weights = (ends - finite(peaks)[..., None]).exp()[..., None]
    sums = torch.cat((turned_key.mT @ (value * weights), key.mT @ weights.expand(*key.shape[:4], 1)), -1)
    if state is not None and state.keys is not None and state.values is not None:
        sums = torch.cat((state.keys[:, :, None], sums), dim=2)
        peaks = torch.cat((state.values[..., None], peaks.expand(*state.values.shape, -1)), dim=-1)
        between = F.pad(between, (1, 0), value=True)
    seen = peaks[..., None, :].masked_fill(~between, -torch.inf)
    levels = seen.amax(-1)
    sums = (seen - finite(levels)[..., None]).exp() @ sums.flatten(-2)
    sums = sums.unflatten(-1, (key.shape[-1], -1))

    near = scale[..., None, :].masked_fill(~within, -torch.inf)
    far = levels[..., :-1, None]
    if segments is not None:
        far = far.masked_fill(numbers != first, -torch.inf)
    top = finite(torch.maximum(near.amax(-1), far))
    near, far = (near - top[..., None]).exp(), (far - top).exp()[..., None]
    earlier = sums[:, :, :-1]
    numerator = (turned_query @ turned_key.mT * near) @ value + far * (turned_query @ earlier[..., :-1])
    denominator = (query @ key.mT * near).sum(-1, keepdim=True) + far * (query @ earlier[..., -1:])
    out = divide(numerator, denominator).flatten(2, 3)[:, :, :length]
    return out, sums[:, :, -1], levels[..., -1].expand(*sums.shape[:2])


def finite(x: torch.Tensor) -> torch.Tensor:
    """x, and the smallest number where it is -inf, so that -inf less it is -inf."""
    return x.clamp(min=torch.finfo(x.dtype).min)


def divide(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    """The quotient; 0 where a query saw no key."""
    return numerator / denominator.masked_fill(denominator == 0, 1)


def hold_states(cache: Cache, layers: int) -> None:
    """Makes an empty cache, as `generate` and callers build it, one of a `LinearState` a layer."""
    if cache.layers and all(isinstance(layer, LinearState) for layer in cache.layers):
        return
    if not isinstance(cache, DynamicCache) or cache.offloading or cache.get_seq_length():
        raise ValueError(
            f"The cache is a {type(cache).__name__} for {cache.get_seq_length()} tokens' keys and values, and "
            "attention_type='linear' keeps sums of constant size: leave it and cache_implementation out, or pass an "
            "empty DynamicCache."
        )
    cache.layers = [LinearState() for _ in range(layers)]
