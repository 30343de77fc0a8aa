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

from .position_base import PositionScheme


@dataclass(frozen=True, eq=False)
class Group:
    """Sequences of one length that lie side by side: `count` of `length` tokens, at (1 or count, length) positions."""

    count: int
    length: int
    position_ids: torch.Tensor
    mask: Any = None


@dataclass(frozen=True, eq=False)
class Layout:
    """How the encoder's tokens are laid out.

    tokens: None where hidden states are (B, L, D), padding included; else the (T,) places of the real tokens in the
        flattened (B * L) batch, sorted into groups, and hidden states are (1, T, D).
    """

    position: PositionScheme
    groups: tuple[Group, ...]
    tokens: torch.Tensor | None = None

    def unpad(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, ...) -> (1, T, ...): the real tokens; unchanged where nothing is left out."""
        return x if self.tokens is None else x.flatten(0, 1)[self.tokens][None]

    def pad(self, x: torch.Tensor, batch: int, length: int) -> torch.Tensor:
        """(1, T, D) -> (B, L, D) with zeros at padding; unchanged where nothing was left out."""
        if self.tokens is None:
            return x
        return x.new_zeros(batch * length, x.shape[-1]).index_copy(0, self.tokens, x[0]).unflatten(0, (batch, length))

    def plan(self, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """The scheme's plans of all groups, one after the other: flat, since nested tensors lose their gradients in
        reentrant checkpointing."""
        return tuple(
            x for group in self.groups for x in self.position.plan(group.position_ids, group.position_ids, dtype)
        )

    def split(self, x: torch.Tensor, plan: tuple[torch.Tensor, ...]):
        """Yields each group with its part of x, (count, length, ...), and its part of the plan."""
        size = len(plan) // len(self.groups)
        if self.tokens is None:
            parts = (x,)
        else:
            parts = x[0].split([group.count * group.length for group in self.groups])
        for number, (group, part) in enumerate(zip(self.groups, parts, strict=True)):
            yield (
                group,
                part.unflatten(0, (group.count, group.length)) if self.tokens is not None else part,
                plan[number * size : (number + 1) * size],
            )


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
    if value_term is not None:
        out = out + value_term(probabilities)
    return out.transpose(1, 2), probabilities


def attend(attn: nn.Module, qkv: torch.Tensor, group: Group, position: PositionScheme, plan) -> tuple:
    """One layer's self-attention over a group: (B, L, 3 * H * E) -> (B, L, H * E) and the probabilities, or None."""
    query, key, value = qkv.unflatten(-1, (3, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4).unbind()
    implementation = attn.config._attn_implementation
    extra = {}
    term = position.score_term(query, key, plan, attn)
    if term is not None:
        extra["position_bias"] = term.expand(len(query), attn.num_heads, -1, -1)
    if type(position).value_term is not PositionScheme.value_term and implementation == "eager":
        extra["value_term"] = lambda probabilities: position.value_term(probabilities, plan, attn)
    query, key, value = position.rotate(query, key, value, plan, attn)
    compute = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
    out, probabilities = compute(
        attn,
        query,
        key,
        value,
        group.mask,
        dropout=attn.dropout if attn.training else 0.0,
        scaling=position.scaling(),
        is_causal=False,
        **extra,
    )
    return out.flatten(-2), probabilities


def dense_layout(position, config, x, attention_mask, position_ids, segments) -> Layout:
    """All tokens as they came, (B, L, D), with a mask over padding and between packed sequences."""
    inside = None
    if segments is not None:

        def inside(batch, head, query, key):
            return segments[batch, query] == segments[batch, key]

    mask = create_bidirectional_mask(config, x, attention_mask, and_mask_function=inside)
    return Layout(position, (Group(*x.shape[:2], position_ids, mask),))


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
        groups.append(Group(count, size, part[:1] if bool((part == part[0]).all()) else part))
        start += size * count
    return Layout(position, tuple(groups), tokens)


def find_packed_sequences(position_ids: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor | None:
    """(B, L) positions -> (B, L) number of the sequence that each token belongs to; None where no row is packed.

    A row is packed where its real positions are runs 0, 1, 2, ... one after the other, two or more, as
    `DataCollatorWithFlattening` writes them. Any other order of positions is one sequence.
    """
    first = position_ids == 0
    follows = nn.functional.pad(position_ids.diff(dim=-1) == 1, (1, 0), value=False)
    runs = first | follows
    if keep is not None:
        runs = runs | ~keep
    packed = runs.all(-1, keepdim=True)
    if not is_tracing(position_ids) and not bool((packed & (first.sum(-1, keepdim=True) > 1)).any()):
        return None
    return torch.where(packed, first.cumsum(-1), 0)
