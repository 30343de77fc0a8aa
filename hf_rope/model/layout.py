"""Where a batch's tokens lie: their positions, packed sequences, a decoder's keys, and which of them are computed.

How a batch is laid out is nobody's business: outputs at real tokens, losses and gradients are the same in every layout.

| attention | a padded or packed batch | why |
|---|---|---|
| CPU, eager or sdpa | `groups`: real tokens only, those of one length side by side | least work; reads are free |
| flash, or a user's function that takes bounds | `bounds`: real tokens only, one call a layer | what they want |
| others, on an accelerator | `dense`: as it came, with a mask | no read, kernels do not depend on lengths |
| traced, recorded, hooked, cached, a 4-D mask, `unpad_inputs=False` | `dense` | callers see (B, L, D) in layers |

A full batch is dense everywhere. Shapes: B batch, L length, D hidden size, T real tokens, P cached tokens, K keys.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import is_flash_attention_requested
from transformers.utils.import_utils import is_tracing

from .checks import cached_length, check_bounds, check_no_cache
from .device import reads_are_free
from .position_base import Places, PositionScheme

BOUNDS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
"""Keywords that tell an attention function which sequences are packed in a row, by transformers' names."""

OWN_KINDS = ("eager", "sdpa", "flex_attention")
"""Values of `attn_implementation` that take a mask; flash takes bounds, and a user's function is looked at."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""The attributes in which a module keeps its hooks; torch keeps those of all modules under "_global" and this name."""


class Group(NamedTuple):
    """Sequences of one length that lie side by side; plain numbers, which no tool has to move.

    Args:
        sequences: how many.
        length: of each.
        can_split: whether some can be computed without the others: the same positions, no mask, nobody looks on.
        has_pairs: whether the plan holds a tensor of the scheme for their pairs.
    """

    sequences: int
    length: int
    can_split: bool = False
    has_pairs: bool = False


@dataclass(frozen=True, eq=False)
class Layout:
    """How a batch goes through the layers.

    Args:
        position_ids: (1 or B, L), of the tokens as they came.
        everywhere: the places of all tokens as the layers see them.
        places: those of each group.
        groups: the sequences that attend to themselves.
        mask: what the attention takes as its mask, None for none.
        tokens: (T,), the places of the real tokens in the flattened batch (B * L), which layers see as (1, T, D); None
            where they see (B, L, D).
        inside: the same, where layers see (B, L, D) and attention alone sees (1, T, D).
        bounds: keywords for an attention function that takes `cu_seq_lens_q` and its like.
        cache: what a decoder fills; None for nothing.
    """

    position_ids: torch.Tensor
    everywhere: Places
    places: list[Places]
    groups: list[Group]
    mask: Any = None
    tokens: torch.Tensor | None = None
    inside: torch.Tensor | None = None
    bounds: dict[str, Any] = field(default_factory=dict)
    cache: Cache | None = None

    def unpad(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, D) -> (1, T, D): the real tokens; unchanged where nothing is left out."""
        return unpad(x, self.tokens)

    def pad(self, x: torch.Tensor, batch: int, length: int) -> torch.Tensor:
        """(1, T, D) -> (B, L, D) with zeros at padding; unchanged where nothing was left out."""
        return pad(x, self.tokens, batch, length)

    def flatten(self, shared: tuple, pairs: tuple) -> tuple[tuple[Group, ...], tuple[torch.Tensor, ...]]:
        """The groups, and the scheme's tensors as one flat tuple: `shared`, then a tensor for each group that has one.

        Flat, and passed to the layers by position: reentrant checkpointing loses the gradients of nested tensors.
        """
        groups = tuple(
            group._replace(has_pairs=pair is not None) for group, pair in zip(self.groups, pairs, strict=True)
        )
        return groups, (*shared, *(pair for pair in pairs if pair is not None))


def unpad(x: torch.Tensor, tokens: torch.Tensor | None) -> torch.Tensor:
    """(B, L, ...) -> (1, T, ...), the tokens at these places; unchanged where they are None."""
    return x if tokens is None else x.flatten(0, 1)[tokens.to(x.device)][None]


def pad(x: torch.Tensor, tokens: torch.Tensor | None, batch: int, length: int) -> torch.Tensor:
    """(1, T, D) -> (B, L, D), zero at other places; unchanged where they are None."""
    if tokens is None:
        return x
    places = tokens.to(x.device)  # the last layer may lie on another device than the first
    return x.new_zeros(batch * length, x.shape[-1]).index_copy(0, places, x[0]).unflatten(0, (batch, length))


def is_observed(module: nn.Module) -> bool:
    """Whether somebody looks on: a hook on the module or in it that is neither transformers' own nor torch's (FSDP2).

    Hooks, such as those of Opacus, Captum and people's own, expect the batch as it came; a hook on all modules too.
    """
    of_modules = (getattr(part, name) for part in module.modules() for name in HOOKS)
    of_all = (getattr(nn.modules.module, f"_global{name}") for name in HOOKS)
    return any(
        not (getattr(hook, "__module__", None) or "").startswith(("transformers.", "torch."))
        for hooks in chain(of_all, of_modules)
        for hook in hooks.values()
    )


def takes_bounds(config, scheme: PositionScheme) -> bool:
    """Whether the attention function is flash's, or a user's that is told of sequences by `cu_seq_lens_q`.

    A user's function takes them where it names them, or where it takes any keyword and nobody registered a mask for
    it, since transformers then gives it none.
    """
    if config.attention_type != "softmax" or scheme.score != "none":
        return False
    if is_flash_attention_requested(config):
        return True
    function = own_function(config)
    if function is None:
        return False
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.name == "cu_seq_lens_q" for parameter in parameters):
        return True
    return no_mask(config) and any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def own_function(config) -> Callable | None:
    """The attention function, where a user registered one that is none of transformers'."""
    kind = config._attn_implementation
    if kind in OWN_KINDS or is_flash_attention_requested(config):
        return None
    function = ALL_ATTENTION_FUNCTIONS.get(kind)
    return None if getattr(function, "__module__", "").startswith("transformers.") else function


def no_mask(config) -> bool:
    """Whether transformers makes no mask for this attention function."""
    return config._attn_implementation not in ALL_MASK_ATTENTION_FUNCTIONS


def lay_out(
    config,
    scheme: PositionScheme,
    attention: Any,
    x: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    cache: Cache | None,
    use_cache: bool,
    bounds: dict[str, Any],
    alone: bool,
    keep_dense: Callable[[], bool],
) -> Layout:
    """Chooses the layout by the table above.

    Args:
        config, scheme: of the model.
        attention: the class of the layers' attention, which says what their mask is and whether a cache holds keys.
        x: (B, L, ...), from which shape, dtype and device are taken.
        attention_mask: (B, P + L), 4-D or None.
        position_ids: (1 or B, L) or None.
        cache: a decoder's, or None.
        use_cache: whether to begin one where there is none.
        bounds: the caller's `cu_seq_lens_q`, `cu_seq_lens_k`, `max_length_q`, `max_length_k`, as far as given.
        alone: whether the tokens see no other model's states.
        keep_dense: whether the layers must see (B, L, D); asked last, since it may take a look at every module.

    Raises:
        ValueError: positions or bounds that do not fit, or an attention function that could not keep sequences apart.
    """
    batch, length = x.shape[:2]
    padding_mask = attention_mask.bool() if attention_mask is not None and attention_mask.ndim == 2 else None
    square = attention_mask is not None and padding_mask is None  # a 4-D mask, which alone says who sees whom
    unfilled = not square and reads_are_free(x) and cached_length(cache) == 0
    segments = None
    if bounds:
        check_bounds(bounds, batch, length)
        segments, position_ids = from_bounds(bounds["cu_seq_lens_q"], length, x.device, position_ids)
    elif position_ids is not None and (cache is None or unfilled):
        segments = find_packed_sequences(position_ids.expand(batch, length), padding_mask)
        check_no_cache(segments, cache)
    if use_cache and cache is None and (segments is None or not (bounds or reads_are_free(x))):
        cache = new_cache(config)  # where nothing can be read, positions may be packed or not, and both are served
    if cache is None and segments is None and not reads_are_free(x):
        scheme.require_length(length)
    places = place(scheme, position_ids, padding_mask, cache, length, x.device)._replace(segments=segments)
    if square and config.is_decoder:  # whose consecutive positions say that no token sees a later one
        places = places._replace(consecutive=False)
    if attention.keeps_sums:
        places = places._replace(keys=places.queries)
    told = not is_tracing(x) and cache is None and takes_bounds(config, scheme)
    if told and bounds and attention_mask is None:
        return Layout(places.queries, places, [places], [Group(1, length)], bounds=complete(bounds, length))
    alone = alone and cache is None and not square
    if told and alone and (own_function(config) is not None or padding_mask is not None or segments is not None):
        return with_bounds(x, places, padding_mask, segments, keep_dense())
    # A decoder's sequences need a triangle each, which a user's function is given as a mask.
    masked = config._attn_implementation == "flex_attention" or (config.is_decoder and own_function(config) is not None)
    if alone and config.unpad_inputs and reads_are_free(x) and not masked:
        some = padding_mask is not None and bool(padding_mask.any()) and not bool(padding_mask.all())
        if (some or segments is not None) and not keep_dense():
            return in_groups(x, places, padding_mask)
    return dense(config, attention.make_mask, x, attention_mask, places, cache, keep_dense)


def dense(config, make_mask, x, attention_mask, places: Places, cache: Cache | None, keep_dense) -> Layout:
    """All tokens as they came, with a mask over padding and between packed sequences.

    Raises:
        ValueError: the attention function gets no mask, and one is needed.
    """
    mask = make_mask(config, x, attention_mask, places, cache)
    if mask is None and (places.segments is not None or is_lost(config, attention_mask)):
        raise ValueError(
            f"attn_implementation={config._attn_implementation!r} cannot keep padding or packed sequences apart here: "
            "use 'sdpa' or 'eager', or register a mask for the function in transformers' AttentionMaskInterface."
        )
    splits = mask is None and places.keys is places.queries and len(places.queries) == 1 and reads_are_free(x)
    group = Group(x.shape[0], x.shape[1], can_split=splits and not keep_dense())
    return Layout(places.queries, places, [places], [group], mask=mask, cache=cache)


def is_lost(config, attention_mask: torch.Tensor | None) -> bool:
    """Whether a mask is given that says something, and no attention function is told."""
    if attention_mask is None or not no_mask(config):
        return False
    return not is_full(attention_mask)


def complete(bounds: dict[str, Any], length: int) -> dict[str, Any]:
    """All four bounds; the longest sequence that is not told is the row, so that no value is read."""
    found = {"max_length_q": length, **bounds}
    return {"cu_seq_lens_k": found["cu_seq_lens_q"], "max_length_k": found["max_length_q"], **found}


def in_groups(x: torch.Tensor, places: Places, padding_mask: torch.Tensor | None) -> Layout:
    """The real tokens alone, each sequence attending to itself, those of one length in one group, short ones first.

    For rows of 2, 3 and 2 real tokens a b _, c d e, _ f g, `tokens` is a b f g c d e: two sequences of 2, one of 3.
    """
    batch, length = x.shape[:2]
    real = x.new_ones(batch, length, dtype=torch.bool) if padding_mask is None else padding_mask
    tokens = real.flatten().nonzero()[:, 0]
    numbers = sequence_numbers(batch, length, places.segments, x.device).flatten()[tokens]
    _, sequence, lengths = numbers.unique_consecutive(return_inverse=True, return_counts=True)
    order = lengths[sequence].argsort(stable=True)
    tokens = tokens[order]
    positions = places.queries.expand(batch, length).flatten()[tokens]
    groups, parts, start = [], [], 0
    for size, count in zip(*(x.tolist() for x in lengths.unique(return_counts=True)), strict=True):
        part = positions[start : start + size * count].unflatten(0, (count, size))
        same = bool((part == part[0]).all())
        part = part[:1] if same else part
        parts.append(Places(part, part, same and counts_up(part), size - 1))
        groups.append(Group(count, size, can_split=same))
        start += size * count
    consecutive = all(part.consecutive for part in parts)
    if not consecutive:
        parts = [part._replace(consecutive=False, max_distance=None) for part in parts]
    positions = positions[None]
    everywhere = Places(
        queries=positions,
        keys=positions,
        consecutive=consecutive,
        max_distance=max(group.length for group in groups) - 1 if consecutive else None,
        segments=sequence[order][None],
    )
    return Layout(places.queries, everywhere, parts, groups, tokens=tokens)


def with_bounds(x, places: Places, padding_mask, segments, keep_dense: bool) -> Layout:
    """The real tokens alone, in the order of the rows, as one sequence with bounds; reads once at most."""
    batch, length = x.shape[:2]
    if padding_mask is None and segments is None:
        tokens = torch.arange(batch * length, device=x.device)
        ends, longest = torch.arange(0, batch * length + 1, length, device=x.device), length
        numbers = sequence_numbers(batch, length, None, x.device).flatten()
    else:
        real = x.new_ones(batch, length, dtype=torch.bool) if padding_mask is None else padding_mask
        numbers = sequence_numbers(batch, length, segments, x.device).flatten()
        lengths = numbers.new_zeros(batch * (length + 1)).scatter_add(0, numbers, real.flatten().long())
        total, count, longest = torch.stack((real.sum(), (lengths > 0).sum(), lengths.max())).tolist()
        if not total:
            return with_bounds(x, places, None, segments, keep_dense)  # nothing is real, and nothing is asked for
        # A stable sort puts what is real first and keeps its order; nonzero would read its size once more.
        tokens = real.flatten().logical_not().long().argsort(stable=True)[:total]
        present = lengths[(lengths == 0).long().argsort(stable=True)[:count]]
        ends = F.pad(present.cumsum(0), (1, 0))
    positions = places.queries.expand(batch, length).flatten()[tokens][None]
    segments = F.pad((numbers[tokens].diff() != 0).cumsum(0), (1, 0))[None]
    everywhere = Places(positions, positions, segments=segments)
    bounds = {
        "cu_seq_lens_q": ends.int(),
        "cu_seq_lens_k": ends.int(),
        "max_length_q": longest,
        "max_length_k": longest,
    }
    layout = Layout(
        places.queries, everywhere, [everywhere], [Group(1, positions.shape[-1])], tokens=tokens, bounds=bounds
    )
    return replace(layout, tokens=None, inside=tokens) if keep_dense else layout


def sequence_numbers(batch: int, length: int, segments: torch.Tensor | None, device) -> torch.Tensor:
    """(B, L): a number for each sequence of the batch, rising from row to row and within a row."""
    rows = torch.arange(batch, device=device)[:, None].expand(batch, length)
    return rows if segments is None else rows * (length + 1) + segments  # a row's segments are 0 to length


def from_bounds(bounds: torch.Tensor, length: int, device, position_ids: torch.Tensor | None):
    """The number of each token's sequence in a row with these bounds, (1, L), and its position, unless given."""
    places = torch.arange(length, device=device)
    segments = torch.bucketize(places, bounds[1:].to(places), right=True)[None]
    return segments, places - bounds.to(places)[segments] if position_ids is None else position_ids


def find_packed_sequences(position_ids: torch.Tensor, padding_mask: torch.Tensor | None = None) -> torch.Tensor | None:
    """(B, L) positions -> (B, L) number of the sequence that each token belongs to; None where no row is packed.

    A row is packed where its real positions are runs 0, 1, 2, ... one after the other, two or more, as
    `DataCollatorWithFlattening` writes them. Any other order of positions is one sequence.
    """
    if padding_mask is None:
        first, before = position_ids == 0, F.pad(position_ids, (1, -1), value=-2)
        runs = first | (position_ids == before + 1)
    else:
        # Padding may also lie between tokens: what counts is the real token before, at the last real place so far.
        places = torch.arange(position_ids.shape[-1], device=position_ids.device)
        last = F.pad(torch.where(padding_mask, places, -1).cummax(-1).values, (1, -1), value=-1)
        before = position_ids.gather(-1, last.clamp(min=0)).masked_fill(last < 0, -2)
        first = (position_ids == 0) & padding_mask
        runs = first | (position_ids == before + 1) | ~padding_mask
    packed = runs.all(-1, keepdim=True)
    if reads_are_free(position_ids) and not bool((packed & (first.sum(-1, keepdim=True) > 1)).any()):
        return None
    return torch.where(packed, first.cumsum(-1), 0)


def counts_up(position_ids: torch.Tensor) -> bool:
    """Whether these are one row of positions that counts up by one; a value is read."""
    return len(position_ids) == 1 and bool((position_ids.diff() == 1).all())


def place(
    scheme: PositionScheme,
    position_ids: torch.Tensor | None,
    padding_mask: torch.Tensor | None,
    cache: Cache | None,
    length: int,
    device,
) -> Places:
    """The places of the new tokens and of all keys."""
    past = cached_length(cache)
    size = past + length if cache is None else cache.get_mask_sizes(length, 0)[0]
    grown = cache is not None and (isinstance(past, torch.Tensor) or past > 0 or size > length)
    if position_ids is None:
        positions, counting = default_positions(scheme, past + length, padding_mask, device)
        if not grown:
            return Places(positions, positions, counting and not is_tracing(positions), length - 1)
        if size == past + length:
            return Places(positions[:, past:], positions, max_distance=size - 1)
        position_ids = positions[:, past:]
    elif padding_mask is not None and not grown:
        # Padding must not reach beyond a table, nor far from the row's tokens: it lies at their lowest position.
        highest = torch.iinfo(position_ids.dtype).max
        lowest = position_ids.masked_fill(~padding_mask, highest).amin(-1, keepdim=True)
        position_ids = torch.where(padding_mask, position_ids, lowest.where(lowest < highest, 0))
    if grown:
        return Places(position_ids, key_positions(position_ids, padding_mask, past, size), max_distance=size - 1)
    counting = reads_are_free(position_ids) and counts_up(position_ids)
    return Places(position_ids, position_ids, counting, length - 1 if counting else None)


def default_positions(scheme, length: int, padding_mask: torch.Tensor | None, device) -> tuple[torch.Tensor, bool]:
    """(1, L) or (B, L): 0 at the first real token of each row, so that padding on the left moves nothing.

    Also whether it is one row that counts up by one. It is, with padding or without, where only differences count and
    all of them are in the table.
    """
    position_ids = torch.arange(length, device=device)[None]
    anywhere = scheme.shift_invariant and (scheme.max_length is None or bool(length <= scheme.max_length))
    if padding_mask is None or anywhere or is_full(padding_mask):
        return position_ids, True
    return torch.where(padding_mask, position_ids - first_real(padding_mask)[:, None], 0), False


def is_full(mask: torch.Tensor) -> bool:
    """Whether it is known, by a read that is free, that nothing is masked."""
    return reads_are_free(mask) and bool(mask.all())


def first_real(padding_mask: torch.Tensor) -> torch.Tensor:
    """(B, L) -> (B,): the place of each row's first real token."""
    return padding_mask.to(torch.int8).argmax(-1)


def new_cache(config) -> Cache:
    """An empty cache, with a part for the encoder's keys and values where there is cross-attention."""
    cache = DynamicCache(config=config)
    return EncoderDecoderCache(cache, DynamicCache(config=config)) if config.add_cross_attention else cache


def key_positions(position_ids: torch.Tensor, padding_mask: torch.Tensor | None, past: int, size: int) -> torch.Tensor:
    """(B or 1, K): the positions of all keys, counted from those of the new tokens, one a real token.

    A cache keeps keys as they were projected, before the scheme's rotation, so that every step computes what a forward
    over all tokens would.

    Args:
        position_ids: (B or 1, L), of the new tokens.
        padding_mask: (B, P + L) bool, True at real tokens; None where all are.
        past: P.
        size: K: P + L, or all places of a static cache.

    Raises:
        ValueError: the new tokens' positions do not count up by one, so those of the cached tokens are not known.
    """
    length, device = position_ids.shape[-1], position_ids.device
    if padding_mask is None:
        # Under a 4-D mask, padding on the left shows as zeros only.
        count, real = torch.arange(size, device=device)[None], position_ids > 0
        offset = position_ids - past - torch.arange(length, device=device)
        first = offset[:, -1:]
    else:
        count = F.pad(padding_mask, (0, size - padding_mask.shape[-1])).cumsum(-1)
        real = padding_mask[:, past : past + length]
        offset = position_ids - count[:, past : past + length]
        first = offset.masked_fill(~real, -size).amax(-1, keepdim=True)
    if reads_are_free(position_ids):
        strays = (offset != first) & real
        if bool(strays.any()):
            raise ValueError(
                f"position_ids are {position_ids[strays.any(-1)][0].tolist()} where a cache is in use; with one, they "
                "must count up by one: leave them out and pad on the left only, or pass use_cache=False and all tokens."
            )
    return torch.minimum((first + count).clamp(min=0), position_ids.amax(-1, keepdim=True))
