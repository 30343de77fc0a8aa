"""Softmax attention over transformers' interfaces, and the layout that keeps padding and packing out of it.

Shapes: B batch, H heads, Q and K query and key lengths, L length, E head size, D hidden size, T real tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.import_utils import is_torchdynamo_exporting, is_tracing

from .position_base import ROWS_AT_ONCE, SCORES_AT_ONCE, PositionScheme


@dataclass(frozen=True, eq=False)
class Group:
    """Sequences of one length that lie side by side: `count` of `length` tokens, at (1 or count, length) positions.

    `can_split` says that some can be computed without the others: at the same positions, no mask, nothing recorded.
    `is_causal`, that each token sees itself and those before it; a mask, where there is one, says so too.
    `key_positions` are those of cached and new tokens, None where there are only the new ones. For linear attention the
    mask is (B, L), True at real tokens, and `segments` (B, L) are the numbers of packed sequences.
    """

    count: int
    length: int
    position_ids: torch.Tensor
    mask: Any = None
    can_split: bool = False
    is_causal: bool = False
    key_positions: torch.Tensor | None = None
    segments: torch.Tensor | None = None


class Layout:
    """How the encoder's tokens are laid out, and which scheme places them.

    Args:
        position: the scheme.
        groups: the sequences.
        tokens: None where hidden states are (B, L, D), padding included; else the (T,) places of the real tokens in the
            flattened (B * L) batch, sorted into groups, and hidden states are (1, T, D).
        cache: what a decoder keeps of earlier tokens, and fills; None for nothing.
        encoder_mask: over the encoder's states, for cross-attention.
    """

    def __init__(
        self,
        position: PositionScheme,
        groups: list[Group],
        tokens: torch.Tensor | None = None,
        cache: Cache | None = None,
        encoder_mask: Any = None,
    ):
        self.position, self.groups, self.tokens = position, groups, tokens
        self.cache, self.encoder_mask = cache, encoder_mask
        self.plan_sizes: list[int] = []

    def unpad(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, ...) -> (1, T, ...): the real tokens; unchanged where nothing is left out."""
        return x if self.tokens is None else x.flatten(0, 1)[self.tokens][None]

    def pad(self, x: torch.Tensor, batch: int, length: int) -> torch.Tensor:
        """(1, T, D) -> (B, L, D) with zeros at padding; unchanged where nothing was left out."""
        if self.tokens is None:
            return x
        return x.new_zeros(batch * length, x.shape[-1]).index_copy(0, self.tokens, x[0]).unflatten(0, (batch, length))

    def plan(self, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """The scheme's plans of all groups, one after the other.

        Flat, and passed to the layers by position: reentrant checkpointing loses the gradients of nested tensors.
        """
        plans = [
            self.position.plan(
                group.position_ids, group.position_ids if group.key_positions is None else group.key_positions, dtype
            )
            for group in self.groups
        ]
        self.plan_sizes = [len(plan) for plan in plans]
        return sum(plans, ())

    def split(self, x: torch.Tensor, plan: tuple[torch.Tensor, ...]):
        """Yields each group with its part of x, (count, length, ...), and its part of the plan."""
        parts = [x] if self.tokens is None else x[0].split([group.count * group.length for group in self.groups])
        start = 0
        for group, part, size in zip(self.groups, parts, self.plan_sizes, strict=True):
            yield group, part.view(group.count, group.length, -1), plan[start : start + size]
            start += size

    @property
    def own_cache(self) -> Cache | None:
        """The cache of self-attention."""
        return self.cache.self_attention_cache if isinstance(self.cache, EncoderDecoderCache) else self.cache

    def with_cached(self, key: torch.Tensor, value: torch.Tensor, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,H,L,E) -> (B,H,K,E): a layer's cached keys and values and the new ones, which the cache then holds too."""
        return (key, value) if self.own_cache is None else self.own_cache.update(key, value, layer_idx)

    def of_encoder(self, project, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's keys and values of the encoder's states: what `project` gives, once where there is a cache."""
        if not isinstance(self.cache, EncoderDecoderCache):
            return project()
        if not self.cache.is_updated.get(layer_idx):
            self.cache.is_updated[layer_idx] = True
            return self.cache.cross_attention_cache.update(*project(), layer_idx)
        layer: Any = self.cache.cross_attention_cache.layers[layer_idx]
        return layer.keys, layer.values


def eager_attention(
    attn: nn.Module,
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
    probabilities = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
    probabilities = nn.functional.dropout(probabilities, dropout, attn.training)
    out = probabilities @ value
    extra = None if value_term is None else value_term(probabilities)
    if extra is not None:
        out = out + extra
    return out.transpose(1, 2), probabilities


def attend(attn, query, key, value, group: Group, position: PositionScheme, plan) -> tuple:
    """One layer's self-attention over a group: (B,H,L,E), (B,H,K,E), (B,H,K,E) -> (B, L, H * E) and the
    probabilities, or None.

    Where every sequence has a score term of its own, a few sequences are computed at once, and a long one in blocks of
    queries: their terms stay in cache, and memory grows with the length, not with its square.
    """
    plan = position.layer_plan(plan, attn)
    turned = position.rotate(query, key, value, plan, attn)
    if group.can_split and (term := position.reversed_term(plan)) is not None:
        backwards = (turned[0].flip(2), *turned[1:])
        return compute_attention(attn, backwards, None, term, None, position)[0].flip(1), None
    if not group.can_split or type(position).score_term is PositionScheme.score_term:
        return attend_at_once(attn, query, key, turned, group, position, plan)
    row = attn.num_heads * group.length
    at_once, rows = max(1, SCORES_AT_ONCE // (row * group.length)), group.length
    if position.by_content:
        rows = max(1, SCORES_AT_ONCE // (row * ROWS_AT_ONCE)) * ROWS_AT_ONCE
    sequences = []
    for first in range(0, group.count, at_once):
        part, blocks = slice(first, first + at_once), []
        for start in range(0, group.length, rows):
            block = (part, slice(None), slice(start, start + rows))
            states = (turned[0][block], turned[1][part], turned[2][part])
            blocks.append(attend_at_once(attn, query[block], key[part], states, group, position, plan, start)[0])
        sequences.append(blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1))
    return sequences[0] if len(sequences) == 1 else torch.cat(sequences), None


def attend_at_once(attn, query, key, turned, group: Group, position: PositionScheme, plan, start: int = 0) -> tuple:
    """Attention of the queries from number `start` on: (B,H,Q,E), (B,H,K,E) and the three as the scheme turned them.

    Returns (B, Q, H * E) and the probabilities, or None.
    """
    mask, is_causal = group.mask, group.is_causal
    value_term, term = None, position.score_term(query, key, plan, attn, start)
    if type(position).value_term is not PositionScheme.value_term:

        def value_term(probabilities):
            return position.value_term(probabilities, plan, attn, start)

    if is_causal and mask is None and (term is not None or attn.config._attn_implementation == "eager"):
        shape, lowest = (query.shape[-2], key.shape[-2]), torch.finfo(query.dtype).min
        after = torch.ones(shape, dtype=torch.bool, device=query.device).triu(start + 1)
        is_causal = False
        if term is None:
            mask = query.new_zeros(shape).masked_fill(after, lowest)
        else:
            term = term.masked_fill(after, lowest)
    return compute_attention(attn, turned, mask, term, value_term, position, is_causal)


def compute_attention(
    attn, turned, mask, term, value_term, position: PositionScheme, is_causal: bool = False
) -> tuple[Any, Any]:
    """Softmax attention with the scheme's terms where it has them: (B, Q, H * E) and the probabilities, or None."""
    extra: dict[str, Any] = {}
    if term is not None:
        if attn.config._attn_implementation == "sdpa" and mask is None:
            mask = term.to(turned[0].dtype)  # an additive mask as it is; transformers would first copy a position_bias
        else:
            extra["position_bias"] = term.expand(turned[0].shape[0], attn.num_heads, -1, -1)
    if value_term is not None and attn.config._attn_implementation == "eager":
        extra["value_term"] = value_term
    query, key, value = turned
    return interface(attn, query, key, value, mask, position.scaling(), is_causal, **extra)


def interface(attn, query, key, value, mask, scaling: float, is_causal: bool, **extra) -> tuple[Any, Any]:
    """Attention as `attn_implementation` computes it: (B, Q, H * E) and the probabilities, or None."""
    compute = ALL_ATTENTION_FUNCTIONS.get_interface(attn.config._attn_implementation, eager_attention)
    dropout = attn.dropout if attn.training else 0.0
    out, probabilities = compute(
        attn, query, key, value, mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **extra
    )
    if is_torchdynamo_exporting():  # the strides of sdpa's output are others once ONNX has decomposed it
        out = out.clone(memory_format=torch.contiguous_format)
    return out.flatten(-2), probabilities


def dense_layout(
    position, config, x, attention_mask, position_ids, segments, recorded: bool, cache=None, key_positions=None
) -> Layout:
    """All tokens as they came, (B, L, D), with a mask over padding and between packed sequences.

    Args:
        key_positions: (1 or B, K), where `cache` holds tokens; None where the keys are the new tokens alone.

    Raises:
        ValueError: the attention kind has no mask that could keep packed sequences apart.
    """
    inside = None
    if segments is not None:

        def inside(batch, head, query, key):
            return segments[batch, query] == segments[batch, key]

    if not config.is_decoder:
        mask: Any = create_bidirectional_mask(config, x, attention_mask, and_mask_function=inside)
    elif key_positions is None and segments is None and is_plain(config, x, attention_mask):
        mask = None
    else:
        # A score term of cached tokens is added to a mask; only a square term can be cut by `attend_at_once`.
        skip = key_positions is None or type(position).score_term is PositionScheme.score_term
        mask = create_causal_mask(config, x, attention_mask, cache, and_mask_function=inside, allow_is_causal_skip=skip)
    if mask is None and segments is not None:
        raise ValueError(
            f"attn_implementation={config._attn_implementation!r} cannot keep packed sequences apart while a graph is "
            "traced: use 'sdpa' or 'eager', or run the model uncompiled."
        )
    mask = additive(mask, config, x.dtype)
    square = key_positions is None
    can_split = mask is None and square and not (recorded or is_tracing(x)) and len(position_ids) == 1
    group = Group(x.shape[0], x.shape[1], position_ids, mask, can_split, config.is_decoder, key_positions)
    return Layout(position, [group], cache=cache)


def is_plain(config, x: torch.Tensor, attention_mask: torch.Tensor | None) -> bool:
    """Whether causal attention without a cache needs no mask: nothing is padding, and the kernel is not flex's."""
    if config._attn_implementation == "flex_attention" or is_tracing(x):
        return False
    return attention_mask is None or (attention_mask.ndim == 2 and bool(attention_mask.all()))


def additive(mask, config, dtype: torch.dtype):
    """The mask as eager attention takes it: 0 and the smallest number where it was boolean; as it is for the others."""
    if config._attn_implementation != "eager" or mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def encoder_mask(config, x: torch.Tensor, states: torch.Tensor, attention_mask: torch.Tensor | None):
    """The mask of cross-attention from x, (B, L, D), to the encoder's real states, (B, S, D)."""
    if attention_mask is None:
        return None
    return additive(create_bidirectional_mask(config, x, attention_mask, encoder_hidden_states=states), config, x.dtype)


def compact_layout(position, config, keep, position_ids, segments) -> Layout:
    """The real tokens alone, each sequence attending to itself, sequences of one length in one group.

    Args:
        keep: (B, L) bool, True at real tokens.
        position_ids: (1 or B, L).
        segments: (B, L) int64, the number of the packed sequence in its row, or None.
    """
    batch, length = keep.shape
    rows = torch.arange(batch, device=keep.device)[:, None].expand(batch, length)
    tokens = keep.flatten().nonzero()[:, 0]
    sequence = rows.flatten()[tokens] if segments is None else (rows * length + segments).flatten()[tokens]
    _, sequence, lengths = sequence.unique_consecutive(return_inverse=True, return_counts=True)
    order = lengths[sequence].argsort(stable=True)
    tokens, positions = tokens[order], position_ids.expand(batch, length).flatten()[tokens[order]]
    groups, start = [], 0
    for size, count in zip(*(x.tolist() for x in lengths.unique(return_counts=True)), strict=True):
        part = positions[start : start + size * count].unflatten(0, (count, size))
        same = bool((part == part[0]).all())
        part = part[:1] if same else part
        groups.append(Group(count, size, part, can_split=same, is_causal=config.is_decoder))
        start += size * count
    return Layout(position, groups, tokens)
