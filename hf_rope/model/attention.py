"""Softmax attention over transformers' interfaces, and the layout that keeps padding and packing out of it.

Shapes: B batch, H heads, Q and K query and key lengths, L length, E head size, D hidden size, T real tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.import_utils import is_tracing

from .position_base import ROWS_AT_ONCE, SCORES_AT_ONCE, PositionScheme


@dataclass(frozen=True, eq=False)
class Group:
    """Sequences of one length that lie side by side: `count` of `length` tokens, at (1 or count, length) positions.

    `can_split` says that some can be computed without the others: at the same positions, no mask, nothing recorded.
    """

    count: int
    length: int
    position_ids: torch.Tensor
    mask: Any = None
    can_split: bool = False


class Layout:
    """How the encoder's tokens are laid out, and which scheme places them.

    Args:
        position: the scheme.
        groups: the sequences.
        tokens: None where hidden states are (B, L, D), padding included; else the (T,) places of the real tokens in the
            flattened (B * L) batch, sorted into groups, and hidden states are (1, T, D).
    """

    def __init__(self, position: PositionScheme, groups: list[Group], tokens: torch.Tensor | None = None):
        self.position, self.groups, self.tokens = position, groups, tokens
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
        plans = [self.position.plan(group.position_ids, group.position_ids, dtype) for group in self.groups]
        self.plan_sizes = [len(plan) for plan in plans]
        return sum(plans, ())

    def split(self, x: torch.Tensor, plan: tuple[torch.Tensor, ...]):
        """Yields each group with its part of x, (count, length, ...), and its part of the plan."""
        parts = [x] if self.tokens is None else x[0].split([group.count * group.length for group in self.groups])
        start = 0
        for group, part, size in zip(self.groups, parts, self.plan_sizes, strict=True):
            yield group, part.view(group.count, group.length, -1), plan[start : start + size]
            start += size


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


def attend(attn, qkv: torch.Tensor, group: Group, position: PositionScheme, plan) -> tuple:
    """One layer's self-attention over a group: (B, L, 3 * H * E) -> (B, L, H * E) and the probabilities, or None.

    Where every sequence has a score term of its own, a few sequences are computed at once, and a long one in blocks of
    queries: their terms stay in cache, and memory grows with the length, not with its square.
    """
    query, key, value = qkv.unflatten(-1, (3, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4).unbind()
    plan = position.layer_plan(plan, attn)
    turned = position.rotate(query, key, value, plan, attn)
    if group.can_split and (term := position.reversed_term(plan)) is not None:
        backwards = (turned[0].flip(2), *turned[1:])
        return compute_attention(attn, backwards, None, term, None, position)[0].flip(1), None
    if not group.can_split or type(position).score_term is PositionScheme.score_term:
        return attend_at_once(attn, query, key, turned, group.mask, position, plan)
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
            blocks.append(attend_at_once(attn, query[block], key[part], states, None, position, plan, start)[0])
        sequences.append(blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1))
    return sequences[0] if len(sequences) == 1 else torch.cat(sequences), None


def attend_at_once(attn, query, key, turned, mask, position: PositionScheme, plan, start: int = 0) -> tuple:
    """Attention of the queries from number `start` on: (B,H,Q,E), (B,H,K,E) and the three as the scheme turned them.

    Returns (B, Q, H * E) and the probabilities, or None.
    """
    value_term = None
    if type(position).value_term is not PositionScheme.value_term:

        def value_term(probabilities):
            return position.value_term(probabilities, plan, attn, start)

    term = position.score_term(query, key, plan, attn, start)
    return compute_attention(attn, turned, mask, term, value_term, position)


def compute_attention(attn, turned, mask, term, value_term, position: PositionScheme) -> tuple:
    """Softmax attention through transformers' interface, with the scheme's terms where it has them."""
    implementation, dtype = attn.config._attn_implementation, turned[0].dtype
    extra: dict[str, Any] = {}
    if term is not None:
        if implementation == "sdpa" and mask is None:
            mask = term.to(dtype)  # an additive mask as it is; transformers would first copy a position_bias
        else:
            extra["position_bias"] = term.expand(len(turned[0]), attn.num_heads, -1, -1)
    if value_term is not None and implementation == "eager":
        extra["value_term"] = value_term
    compute = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
    out, probabilities = compute(
        attn,
        *turned,
        mask,
        dropout=attn.dropout if attn.training else 0.0,
        scaling=position.scaling(),
        is_causal=False,
        **extra,
    )
    return out.flatten(-2), probabilities


def dense_layout(position, config, x, attention_mask, position_ids, segments, recorded: bool) -> Layout:
    """All tokens as they came, (B, L, D), with a mask over padding and between packed sequences.

    Raises:
        ValueError: the attention kind has no mask that could keep packed sequences apart.
    """
    inside = None
    if segments is not None:

        def inside(batch, head, query, key):
            return segments[batch, query] == segments[batch, key]

    mask: Any = create_bidirectional_mask(config, x, attention_mask, and_mask_function=inside)
    if mask is None and segments is not None:
        raise ValueError(
            f"attn_implementation={config._attn_implementation!r} cannot keep packed sequences apart while a graph is "
            "traced: use 'sdpa' or 'eager', or run the model uncompiled."
        )
    if config._attn_implementation == "eager" and mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, torch.finfo(x.dtype).min)
    can_split = mask is None and len(position_ids) == 1 and not (recorded or is_tracing(x))
    return Layout(position, [Group(x.shape[0], x.shape[1], position_ids, mask, can_split)])


def compact_layout(position, keep, position_ids, segments) -> Layout:
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
        groups.append(Group(count, size, part[:1] if same else part, can_split=same))
        start += size * count
    return Layout(position, groups, tokens)
