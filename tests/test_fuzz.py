"""Random models, batches and ways to run them: how a batch is laid out changes no output, no loss and no gradient.

Each draw is compared with its sequences alone, see `alone`: batches of one, without padding or mask, in eager attention
and float64. `make test` takes a few draws, the same ones every time; `HF_ROPE_FUZZ` is another number, of other draws.

Shapes: B rows of the batch, L length, T real tokens of the batch.
"""

import copy
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from random import Random, SystemRandom
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.utils import logging

from heads import CHOICES, HEADS, LABELS
from helpers import CASES, SIZES, tiny_config, tiny_model
from hf_rope import SCHEMES, HfRopeConfig
from hf_rope.model import linear_attention, relative
from hf_rope.model.modeling_hf_rope import ATTENTIONS
from hf_rope.model.versions import CACHE

pytestmark = pytest.mark.fuzz

FEW = 300
EXAMPLES = int(os.environ.get("HF_ROPE_FUZZ", FEW))
COMPILED = min(2 + EXAMPLES // 300, 30)
"""Draws that are compiled, which takes seconds."""
SHARDS = 1 if EXAMPLES <= FEW else 2
START = 0 if EXAMPLES == FEW else SystemRandom().getrandbits(32)
ROUND = 10

LMS = ("masked-lm", "causal-lm")
LABELLED = (*LMS, "tokens")
"""Heads with a label a token, whose losses are taken in float32."""
BY_TOKEN = ("encoder", *LABELLED)
"""Heads of which every number is a token's: rows may be packed, and a 4-D mask says all that there is to say."""
OFTEN = [head for head in HEADS if head != "pre-training"] + ["encoder", "causal-lm"] * 4
"""All heads, and those that can be run in most ways more often."""
SQUARE = ("truths", "lowest", "infinite")
"""4-D masks: boolean, or additive with the smallest number or -inf."""
GARBAGE = 1000
"""What a position at padding may be: one that no table holds."""


@dataclass(frozen=True, repr=False)
class Draw:
    """A model, a batch and a way to run it. `check(Draw(...))`, as a failure prints it, runs one again.

    Args:
        case, head, changes: the model; `changes` are those of the case's configuration.
        tight: whether tables have no more positions than are needed.
        rows: the lengths of the sequences that are packed in each row; () for a row of padding.
        left: padding on the left of each row; () for none.
        holes: the number of the token in each row before which one place of padding lies, 0 for none; () for none.
        extra: padding on the right of the longest row.
        mask: none, long, bool, float, or one of SQUARE.
        queries: whether a 4-D mask has a row for each query.
        positions: of each row: counted (from 0 in each sequence), offset, gaps, permuted or any; () for the default.
        shared: whether positions are (1, L), and all as those of the first row.
        bounds: whether `cu_seq_lens_q` tells the sequences.
        types, embeds: whether token types, and embeddings in the place of ids, are given.
        states: whether a decoder attends to states of an encoder, of another number in each row.
        labels: whether there are any, and a loss.
        shifted: whether a causal LM gets `shift_labels`.
        items: `num_items_in_batch`; 0 for none.
        attention: eager, sdpa, `mine` or `told`.
        train: whether the model is in training.
        recorded: what is: hidden, attentions (and hidden states), or nothing.
        hook: the module with a hook, or none.
        reads: False as on an accelerator, where no value is to be read.
        few: how many rows of scores are computed at once; 0 for as many as usual.
        checkpoint: gradient checkpointing, reentrant or not; None for none.
        cache: `use_cache`.
        pieces: where a decoder's batch is cut, to be computed with a cache, piece by piece.
        compiled: whether the model is compiled.
        seed: of ids, positions, labels and so on.
    """

    case: str = "none"
    head: str = "encoder"
    changes: dict[str, Any] = field(default_factory=dict)
    tight: bool = False
    rows: tuple[tuple[int, ...], ...] = ((1,),)
    left: tuple[int, ...] = ()
    holes: tuple[int, ...] = ()
    extra: int = 0
    mask: str = "long"
    queries: bool = True
    positions: tuple[str, ...] = ()
    shared: bool = False
    bounds: bool = False
    types: bool = True
    embeds: bool = False
    states: bool = False
    labels: bool = False
    shifted: bool = False
    items: int = 0
    attention: str = "eager"
    train: bool = False
    recorded: str = ""
    hook: str = ""
    reads: bool = True
    few: int = 0
    checkpoint: bool | None = None
    cache: bool | None = None
    pieces: tuple[int, ...] = ()
    compiled: bool = False
    seed: int = 0

    def __repr__(self):
        standard = vars(Draw())
        drawn = {x.name: getattr(self, x.name) for x in fields(self)}
        return f"Draw({', '.join(f'{name}={x!r}' for name, x in drawn.items() if x != standard[name])})"

    def _repr_pretty_(self, printer, cycle) -> None:
        """As hypothesis prints it."""
        printer.text(repr(self))

    @property
    def settings(self) -> dict[str, Any]:
        return {**HEADS[self.head].config, **self.changes}

    @property
    def config(self) -> HfRopeConfig:
        return tiny_config(self.case, **self.settings)

    @property
    def decodes(self) -> bool:
        return self.config.is_decoder

    @property
    def square(self) -> bool:
        return self.mask in SQUARE

    @property
    def follows_length(self) -> bool:
        """Whether frequencies follow the length of a sequence, which a 4-D mask does not tell."""
        return (self.config.rope_parameters or {}).get("rope_type") in ("dynamic", "longrope")

    def build(self, **room: int):
        """The model in float64; `room` changes the size of its table."""
        model = tiny_model(self.case, HEADS[self.head].model_class, **{**self.settings, **room}).double()
        model.set_attn_implementation(self.attention)
        return model.train(self.train)


def decodes(**changes) -> dict[str, Any]:
    return {"is_decoder": True, **changes}


ONCE_WRONG = [
    # A sequence had the number of one in the next row.
    Draw(rows=((1, 1, 1), (3,)), positions=("counted", "offset")),
    Draw(rows=((1, 1), (1, 1)), positions=("counted", "counted"), attention="told"),
    # What lay at padding decided whether a row is packed.
    Draw(rows=((3, 3),), holes=(2,), positions=("counted",)),
    Draw(rows=((1, 5, 2), (4, 4)), left=(3, 0), positions=("counted", "counted"), shared=True),
    # A hole where a block of causal linear attention ends parted a sequence.
    Draw(changes=decodes(attention_type="linear"), rows=((132,),), holes=(127,), positions=("gaps",), reads=False),
    # Cross-attention was told of the bounds of its queries.
    Draw(changes=decodes(add_cross_attention=True), rows=((2, 3),), bounds=True, states=True, attention="told"),
    # Where somebody looks on, a decoder's next token met a table of each sample.
    Draw("deberta", rows=((1,), (1,)), positions=("gaps", "gaps"), hook="layers.0"),
    Draw("relative_key_query", changes=decodes(), rows=((4,), (2,)), hook="layers.0", cache=True, pieces=(3,)),
]


# What is drawn.


def some(**kinds: st.SearchStrategy) -> st.SearchStrategy[dict]:
    return st.fixed_dictionaries({}, optional=kinds)


def once_in(times: int) -> st.SearchStrategy[bool]:
    return st.sampled_from([False] * (times - 1) + [True])


def one_of(*values) -> st.SearchStrategy:
    return st.sampled_from(values)


LENGTHS = st.one_of(st.integers(1, 3), st.integers(1, 12))
BUCKETS = {"num_buckets": one_of(4, 8, 32), "max_distance": one_of(9, 12, 128)}
DEBERTA = some(
    pos_att_type=one_of(["c2p"], ["p2c"], ["c2p", "p2c"]),
    share_att_key=st.booleans(),
    norm_rel_ebd=st.booleans(),
    absolute_embeddings=st.booleans(),
)
OPTIONS = {
    "shaw": some(max_distance=st.integers(1, 6), relative_values=st.booleans()),
    "t5": some(absolute_embeddings=st.booleans(), **BUCKETS),
    "tupe": some(untie_cls=st.booleans(), relative_bias=st.booleans(), **BUCKETS),
    "deberta": st.builds(
        lambda sizes, others: {"position_buckets": sizes[0], "max_relative_positions": sizes[1], **others},
        one_of((0, 2), (0, 5), (0, 16), (4, 4), (4, 8), (8, 16), (256, 512)),
        DEBERTA,
    ),
    "rotary": some(pairing=one_of("interleaved", "halves"), rotary_value=st.booleans()),
}
LONGROPE = {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [2.0, 3.0, 4.0, 5.0], "factor": 4.0}
ROPE = st.one_of(
    st.builds(lambda theta: {"rope_theta": theta}, one_of(10.0, 500.0, 10000.0)),
    st.just({"rope_theta": 100.0, "partial_rotary_factor": 0.5}),
    st.builds(lambda kind: {"rope_type": kind, "factor": 3.0}, one_of("linear", "dynamic", "yarn")),
    st.builds(
        lambda first: {"rope_type": "longrope", "original_max_position_embeddings": first, **LONGROPE},
        st.integers(2, 12),
    ),
)


@st.composite
def own_options(draw, scheme: str) -> dict[str, Any]:
    """A scheme's own settings, and linear attention where it allows that."""
    changes: dict[str, Any] = {}
    if scheme in OPTIONS and draw(st.booleans()):
        changes["position_options"] = draw(OPTIONS[scheme])
    if SCHEMES[scheme].score == "none" and not SCHEMES[scheme].changes_values and draw(once_in(3)):
        favor = {"feature_map": "favor", "num_features": 8}
        changes |= {"attention_type": "linear", **(favor if draw(st.booleans()) else {})}
    if SCHEMES[scheme].rotates:
        changes["rope_parameters"] = draw(ROPE)
        if changes["rope_parameters"].get("rope_type") == "dynamic":
            changes["max_position_embeddings"] = draw(st.integers(2, 12))
    return changes


@st.composite
def models(draw) -> Draw:
    """A scheme with its options, a head, and the sizes that a layout could depend on."""
    case, head = draw(st.sampled_from(CASES)), draw(st.sampled_from(OFTEN))
    changes: dict[str, Any] = {"num_hidden_layers": draw(st.integers(1, 2))}
    if case in SCHEMES:
        changes |= draw(own_options(case))
    if draw(once_in(4)):
        changes["embedding_size"] = 20
    if draw(st.booleans()):
        changes["type_vocab_size"] = 0
    if HEADS[head].model == "HfRopeForSequenceClassification":
        changes["classifier_pooling"] = draw(one_of("cls", "mean"))
    if head == "causal-lm" or (head == "encoder" and draw(st.booleans())):
        changes |= {"is_decoder": True, "use_cache": draw(st.booleans()), "add_cross_attention": draw(once_in(4))}
    if draw(once_in(5)):
        changes["unpad_inputs"] = False
    if head in LMS:
        changes["sparse_prediction"] = draw(one_of(None, True, False))
    return Draw(case=case, head=head, changes=changes, tight=draw(once_in(3)))


@st.composite
def batches(draw, found: Draw) -> Draw:
    """Rows of sequences, full or padded, with positions and what marks the padding; or a decoder's, in pieces."""
    by_token, softmax = found.head in BY_TOKEN, found.config.attention_type == "softmax"
    cut = found.decodes and not found.follows_length and draw(once_in(3))
    square = by_token and softmax and not (cut or found.follows_length) and draw(once_in(6))
    packs = by_token and not cut and draw(st.booleans())
    bounds = packs and not square and draw(once_in(4))
    found = replace(found, bounds=bounds, **draw(rows_and_padding(found.head, packs, bounds)))

    masks = SQUARE if square else ("long", "long", "bool", "float")
    if real_tokens(found).all() and draw(st.booleans()):
        masks = ("none",)
    positions, shared = ("counted",) * (bounds and draw(st.booleans())), False
    if not bounds and (packs or draw(st.booleans())):
        kinds = ["counted", "offset", *([] if cut else ["gaps", "permuted"])]
        if by_token and not cut:
            kinds += ["any", *["counted"] * 4 * packs]  # both may be packed
        shared = not cut and len(found.rows) > 1 and draw(once_in(4))
        if shared and not by_token:
            kinds.remove("counted")  # a row of it may begin in one sequence and end in another
        positions = tuple(draw(st.sampled_from(kinds)) for _ in found.rows)
    found = replace(
        found,
        mask=draw(st.sampled_from(masks)),
        queries=packs or "any" in positions or found.decodes or draw(st.booleans()),
        positions=positions,
        shared=shared,
    )
    if not cut:
        return found
    length = real_tokens(found).shape[1]
    pieces = draw(st.sets(st.integers(1, max(1, length - 1)), max_size=3))
    return replace(found, cache=True, pieces=tuple(sorted(x for x in pieces if x < length)))


@st.composite
def rows_and_padding(draw, head: str, packs: bool, bounds: bool) -> dict[str, Any]:
    """The lengths of the sequences; padding on the right, on the left, on either side, between tokens, or nowhere."""
    count = 1 if bounds else draw(one_of(1, 2, 2, 3, 4))
    if head == "multiple-choice":
        count = CHOICES * draw(st.integers(1, 2))
    row = st.lists(LENGTHS, min_size=draw(st.integers(1, 2)) if packs else 1, max_size=4 if packs else 1)
    if draw(once_in(4)):
        first = tuple(draw(row))
        return {"rows": tuple(draw(one_of(first, first[::-1])) for _ in range(count))}
    rows = [tuple(draw(row)) for _ in range(count)]
    if head in BY_TOKEN and count > 1 and draw(once_in(8)):
        rows[draw(st.integers(0, count - 1))] = ()
    holes = [0 if bounds or not draw(once_in(6)) else draw(st.integers(0, 6)) for _ in rows]
    widths = [sum(row) + (0 < hole < sum(row)) for row, hole in zip(rows, holes, strict=True)]
    side, extra = draw(one_of("right", "left", "either")), draw(one_of(0, 0, 1, 3))
    left = {
        "right": [0 for _ in rows],
        "left": [max(widths) - width + extra for width in widths],
        "either": [draw(st.integers(0, 5)) for _ in rows],
    }[side]
    return {"rows": tuple(rows), "left": tuple(left), "holes": tuple(holes), "extra": extra * (side != "left")}


@st.composite
def ways(draw, found: Draw) -> Draw:
    """How the batch is run."""
    config = found.config
    kinds = [x for x in ("eager", "sdpa") if x in ATTENTIONS[config.attention_type].attn_implementations(config)]
    softmax, cut = config.attention_type == "softmax", found.cache is not None
    if softmax and "sdpa" in kinds:
        kinds.append("mine")
    if softmax and SCHEMES[config.position_embedding_type].score == "none":
        kinds.append("told")
    way: dict[str, Any] = {"attention": draw(st.sampled_from(kinds)), "train": draw(st.booleans())}
    if draw(once_in(5)) and not cut:
        probable = softmax and way["attention"] == "eager"
        way["recorded"] = draw(one_of("hidden", "attentions")) if probable else "hidden"
    elif draw(once_in(5)):
        hooked = ["embeddings", "layers.0", "layers.0.attention.query", *(["lm_head"] if found.head in LMS else [])]
        way["hook"] = draw(st.sampled_from(hooked))
    way["reads"] = not draw(once_in(4))
    way["few"] = draw(one_of(0, 0, 0, 1, 2, 5))
    if way["train"] and not cut and draw(once_in(6)):
        way["checkpoint"] = draw(st.booleans())
    elif found.decodes and not cut:
        way["cache"] = draw(one_of(None, True, False))
    return replace(found, **way)


@st.composite
def draws(draw, compiled: bool = False) -> Draw:
    found = draw(batches(draw(models())))
    if compiled:
        kinds = ATTENTIONS[found.config.attention_type].attn_implementations(found.config)[:2]  # eager, and sdpa
        way = {"compiled": True, "pieces": (), "train": draw(st.booleans()), "attention": draw(st.sampled_from(kinds))}
        found = replace(found, **way, changes={**found.changes, "num_hidden_layers": 1})
    else:
        found = draw(ways(found))
    return replace(
        found,
        types=draw(st.booleans()),
        embeds=draw(once_in(4)),
        states=found.config.add_cross_attention and draw(st.booleans()),
        labels=found.head != "encoder" and not found.pieces and draw(one_of(True, True, False)),
        shifted=any(found.holes) or draw(st.booleans()),
        items=draw(one_of(0, 0, 3, 7)),
        seed=draw(st.integers(0, 2**16)),
    )


# The batch that a draw describes.


@dataclass
class Batch:
    """The tensors of a draw.

    Args:
        real: (B, L) bool.
        sequences: the row and the places of each sequence, in order.
        positions: (B, L), what each real token's position has to be.
        given: arguments of `forward`.
        wanted: (T,), what each real token is to be labelled, or -100; or the labels of the rows.
    """

    real: torch.Tensor
    sequences: list[tuple[int, list[int]]]
    positions: torch.Tensor
    given: dict[str, Any] = field(default_factory=dict)
    wanted: Any = None

    @property
    def whole(self) -> bool:
        """Whether every row is one sequence."""
        return [row for row, _ in self.sequences] == [*range(len(self.real))]


def real_tokens(draw: Draw) -> torch.Tensor:
    """(B, L) bool."""
    rows, none = [], (0,) * len(draw.rows)
    for lengths, left, hole in zip(draw.rows, draw.left or none, draw.holes or none, strict=True):
        tokens = [True] * sum(lengths)
        if 0 < hole < len(tokens):
            tokens.insert(hole, False)
        rows.append([False] * left + tokens)
    length = max(map(len, rows)) + draw.extra
    return torch.tensor([row + [False] * (length - len(row)) for row in rows])


def some_positions(kind: str, lengths: tuple[int, ...], random: Random) -> list[int]:
    """A row's positions, one a token."""
    count, start = sum(lengths), random.randint(0, 8)
    return {
        "counted": [x for length in lengths for x in range(length)],
        "offset": [*range(start, start + count)],
        "gaps": [start + 2 * x + random.randint(0, 1) for x in range(count)],
        "permuted": random.sample(range(count + 4), count),
        "any": [random.choice([0, 0, 1, 2, 3, 9]) for _ in range(count)],
    }[kind]


def given_positions(draw: Draw, real: torch.Tensor) -> torch.Tensor | None:
    """(B or 1, L) with anything at padding, or None."""
    if not draw.positions:
        return None
    random, length = Random(draw.seed), real.shape[1]
    if draw.shared:
        lengths = (*draw.rows[0], length - sum(draw.rows[0]))
        return torch.tensor([some_positions(draw.positions[0], lengths, random)])
    highest = 9 if draw.square or draw.pieces else GARBAGE
    at = torch.tensor([[random.randint(0, highest) for _ in range(length)] for _ in draw.rows])
    for row, (kind, lengths) in enumerate(zip(draw.positions, draw.rows, strict=True)):
        at[row, real[row]] = torch.tensor(some_positions(kind, lengths, random), dtype=torch.long)
    return at


def packed_lengths(at: list[int]) -> list[int]:
    """The lengths of the runs 0, 1, 2, ... that a row of positions consists of; its own where it is anything else."""
    starts = [i for i, x in enumerate(at) if x == 0]
    counts = all(x in (0, before + 1) for before, x in zip([-1, *at], at, strict=False))
    return [b - a for a, b in zip(starts, [*starts[1:], len(at)], strict=True)] if counts else [len(at)]


def lay(draw: Draw) -> Batch:
    """Where the real tokens lie, which of them are a sequence, and their positions."""
    real, sequences = real_tokens(draw), []
    at = given_positions(draw, real)
    positions = torch.zeros(real.shape, dtype=torch.long) if at is None else at.expand(real.shape)
    for row, lengths in enumerate(draw.rows):
        places = real[row].nonzero()[:, 0].tolist()
        if not draw.bounds:
            told = at is not None and places
            lengths = packed_lengths(positions[row, places].tolist()) if told else [len(places)] * bool(places)
        for length in lengths:
            own, places = places[:length], places[length:]
            sequences.append((row, own))
            if at is None:
                first = 0 if draw.square else own[0]
                positions[row, own] = torch.tensor(own) - first
    batch = Batch(real, sequences, positions)
    batch.given = {"position_ids": at, "attention_mask": some_mask(draw, batch)}
    if draw.bounds:
        (row,), left = draw.rows, sum(draw.left)  # of one row; padding on either side is a sequence of its own
        ends = torch.tensor([0, left, *row, real.shape[1] - left - sum(row)]).cumsum(0)
        batch.given["cu_seq_lens_q"] = ends.unique().int()
    return batch


def some_mask(draw: Draw, batch: Batch) -> torch.Tensor | None:
    """(B, L), (B, 1, 1 or L, L) or None."""
    if draw.mask == "none":
        return None
    if not draw.square:
        return batch.real.to(getattr(torch, draw.mask))
    length = batch.real.shape[1]
    allowed = torch.eye(length, dtype=torch.bool).repeat(len(batch.real), 1, 1)
    if draw.queries:
        for row, places in batch.sequences:
            own = torch.zeros(length, dtype=torch.bool)
            own[places] = True
            allowed[row] |= own[:, None] & own
        allowed = allowed.tril() if draw.decodes else allowed
    else:
        allowed = batch.real[:, None]
    allowed = allowed[:, None]
    if draw.mask == "truths":
        return allowed
    lowest = -torch.inf if draw.mask == "infinite" else torch.finfo(torch.double).min
    return torch.zeros(allowed.shape, dtype=torch.double).masked_fill(~allowed, lowest)


def fill(draw: Draw, batch: Batch, config) -> None:
    """Adds tokens, and what a decoder may attend to; padding gets as much as anything else."""
    generator = torch.Generator().manual_seed(draw.seed)
    shape = batch.real.shape

    def numbers(high: int, *size: int) -> torch.Tensor:
        return torch.randint(high, size, generator=generator)

    batch.given["input_ids"] = numbers(SIZES["vocab_size"], *shape)
    if draw.types:
        batch.given["token_type_ids"] = numbers(2, *shape)
    if draw.embeds:
        embeds = torch.randn(*shape, config.embedding_size, generator=generator, dtype=torch.double)
        batch.given["inputs_embeds"] = torch.where(batch.real[..., None], embeds, 10 * embeds).requires_grad_()
        del batch.given["input_ids"]
    if draw.states:
        states = torch.randn(shape[0], 5, config.hidden_size, generator=generator, dtype=torch.double)
        mask = torch.arange(5) < 1 + numbers(5, shape[0], 1)
        batch.given |= {"encoder_hidden_states": states, "encoder_attention_mask": mask.long()}
    if draw.labels:
        label_tokens(draw, batch, numbers) if draw.head in LABELLED else label_rows(draw, batch, numbers)


def label_tokens(draw: Draw, batch: Batch, numbers) -> None:
    """Labels of about half of the tokens, and of padding where the mask tells that it is padding."""
    real = batch.real
    labels = numbers(SIZES["vocab_size"] if draw.head in LMS else LABELS, *real.shape)
    if draw.square:
        labels[~real] = -100
    labels[real & (numbers(2, *real.shape) == 0)] = -100
    longest, (row, places) = max((len(places), (row, places)) for row, places in batch.sequences)
    name, last = "labels", places[-1]
    labels[row, last] = 1
    wanted = labels.masked_fill(~real, -100)
    if draw.head == "causal-lm":
        if draw.shifted or longest == 1:
            name = "shift_labels"
        else:
            wanted = torch.full_like(labels, -100)
            for row, places in batch.sequences:
                if draw.square or row_is_packed(batch, row):  # the token before it is not its own
                    labels[row, places[0]] = -100
                wanted[row, places[:-1]] = labels[row, places[1:]]
    batch.given[name], batch.wanted = labels, wanted[real]
    if draw.items:
        batch.given["num_items_in_batch"] = draw.items


def row_is_packed(batch: Batch, row: int) -> bool:
    return sum(other == row for other, _ in batch.sequences) > 1


def label_rows(draw: Draw, batch: Batch, numbers) -> None:
    """Labels of the rows, as the heads take them; an answer may begin or end in padding, or beyond the input."""
    rows, length = batch.real.shape
    if draw.head == "question-answering":
        for name in ("start_positions", "end_positions"):
            at = numbers(length + 2, rows)
            at[0] = batch.sequences[0][1][0]
            batch.given[name] = at
        return
    labels = {
        "single-label": lambda: numbers(LABELS, rows),
        "multi-label": lambda: numbers(2, rows, LABELS).double(),
        "regression": lambda: numbers(9, rows).double(),
        "many-regressions": lambda: numbers(9, rows, LABELS).double(),
        "multiple-choice": lambda: numbers(CHOICES, rows // CHOICES),
    }[draw.head]()
    batch.given["labels"] = batch.wanted = labels


# What has to come out: every sequence alone.


def alone(draw: Draw, model, batch: Batch) -> dict[str, Any]:
    """The outputs of all sequences, each computed in a batch of its own: (T, ...) by token, (B, ...) by row."""
    found, decoder = defaultdict(list), {"use_cache": False} if model.config.is_decoder else {}
    for row, places in batch.sequences:
        tokens = (key for key in ("input_ids", "token_type_ids", "inputs_embeds") if key in batch.given)
        inputs = {key: batch.given[key][row : row + 1, places] for key in tokens}
        at = batch.positions[row : row + 1, places]
        if not torch.equal(at[0], torch.arange(len(places))):
            inputs["position_ids"] = at
        inputs = by_choice(draw, inputs, 1)
        if draw.states:
            seen = batch.given["encoder_attention_mask"][row].bool()
            inputs["encoder_hidden_states"] = batch.given["encoder_hidden_states"][row : row + 1, seen]
        output = model(**inputs, **decoder, **record(draw))
        for key, value in by_token(draw, output).items():
            found[key].append(value[0])
        for key, value in by_row(draw, output).items():
            found[key].append(value)
        found["attentions"].append(output.get("attentions"))
    attentions = found.pop("attentions")
    return {**{key: torch.cat(parts) for key, parts in found.items()}, "attentions": attentions}


def by_choice(draw: Draw, inputs: dict[str, Any], choices: int) -> dict[str, Any]:
    """The inputs as the head for multiple choice takes them, (B / choices, choices, L, ...)."""
    if draw.head != "multiple-choice":
        return inputs
    by_row = {key: x for key, x in inputs.items() if isinstance(x, torch.Tensor) and key != "labels"}
    return inputs | {key: x.unflatten(0, (-1, min(choices, len(x)))) for key, x in by_row.items()}


def record(draw: Draw) -> dict[str, bool]:
    return {
        "": {},
        "hidden": {"output_hidden_states": True},
        "attentions": {"output_hidden_states": True, "output_attentions": True},
    }[draw.recorded]


def by_token(draw: Draw, output) -> dict[str, torch.Tensor]:
    """The outputs of shape (B, L, ...)."""
    names = ("last_hidden_state", "start_logits", "end_logits", *(["logits"] if draw.head in LABELLED else []))
    found = {name: output[name] for name in names if output.get(name) is not None}
    return found | {f"hidden state {i}": x for i, x in enumerate(output.get("hidden_states") or ())}


def by_row(draw: Draw, output) -> dict[str, torch.Tensor]:
    """The outputs of shape (B, ...)."""
    names = ("pooler_output", *(["logits"] if draw.head not in LABELLED else []))
    rows = {name: output[name] for name in names if output.get(name) is not None}
    return {name: x.view(-1, 1) if draw.head == "multiple-choice" else x for name, x in rows.items()}


def expected_loss(draw: Draw, batch: Batch, outputs: dict[str, Any]) -> torch.Tensor:
    """A batch's loss from the logits of its sequences."""
    if draw.head == "question-answering":
        return (answer_loss(batch, outputs, "start") + answer_loss(batch, outputs, "end")) / 2
    logits, wanted = outputs["logits"], batch.wanted
    if draw.head in LABELLED:
        loss = F.cross_entropy(logits, wanted, reduction="sum")
        return loss / (draw.items or (wanted != -100).sum())
    if draw.head == "multiple-choice":
        return F.cross_entropy(logits.view(-1, CHOICES), wanted)
    if draw.head == "single-label":
        return F.cross_entropy(logits, wanted)
    if draw.head == "multi-label":
        return F.binary_cross_entropy_with_logits(logits, wanted)
    return F.mse_loss(logits.view_as(wanted), wanted)


def answer_loss(batch: Batch, outputs: dict[str, Any], end: str) -> torch.Tensor:
    """The mean over the rows whose answer begins, or ends, at a real token."""
    losses = []
    logits = outputs[f"{end}_logits"].split([len(places) for _, places in batch.sequences])
    for (row, places), own in zip(batch.sequences, logits, strict=True):
        at = int(batch.given[f"{end}_positions"][row])
        if at in places:
            losses.append(F.cross_entropy(own, torch.tensor(places.index(at))))
    return torch.stack(losses).mean()


# What comes out.


def mine(module, query, key, value, mask, **kwargs):
    """A user's attention that takes a mask."""
    return AttentionInterface()["sdpa"](module, query, key, value, mask, **kwargs)


def told(module, query, key, value, mask, scaling, is_causal, cu_seq_lens_q=None, **kwargs):
    """A user's attention that wants the bounds of sequences, as flash does."""
    if cu_seq_lens_q is None:
        return mine(module, query, key, value, mask, scaling=scaling, is_causal=is_causal)
    sizes = cu_seq_lens_q.diff().tolist()
    assert max(sizes) <= kwargs.get("max_length_q", sum(sizes))
    parts = zip(*(x.split(sizes, dim=2) for x in (query, key, value)), strict=True)
    out = [F.scaled_dot_product_attention(*part, is_causal=is_causal, scale=scaling) for part in parts]
    return torch.cat(out, dim=2).transpose(1, 2), None


for function in (mine, told):
    AttentionInterface.register(function.__name__, function)
    AttentionMaskInterface.register(function.__name__, sdpa_mask)


def surroundings(draw: Draw) -> ExitStack:
    """Where a draw runs: on something like an accelerator, with few numbers at once."""
    stack = ExitStack()
    if not draw.reads:
        for name, module in [*sys.modules.items()]:
            if name.startswith("hf_rope.model.") and hasattr(module, "reads_are_free"):
                stack.enter_context(mock.patch.object(module, "reads_are_free", return_value=False))
    if draw.few:
        stack.enter_context(mock.patch.object(relative, "SCORES_AT_ONCE", 1))
        stack.enter_context(mock.patch.object(relative, "ROWS_AT_ONCE", draw.few))
        stack.enter_context(mock.patch.object(linear_attention, "BLOCK", draw.few))
    return stack


def run(draw: Draw, model, batch: Batch):
    """The batch's outputs."""
    given = {**batch.given, **record(draw)}
    if draw.cache is not None:
        given["use_cache"] = draw.cache
    if draw.checkpoint is not None:
        model.gradient_checkpointing_enable({"use_reentrant": draw.checkpoint})
    shapes = []
    if draw.hook:
        hooked = (model if draw.hook == "lm_head" else getattr(model, "model", model)).get_submodule(draw.hook)
        hooked.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape[:2]))
    if draw.pieces:
        return in_pieces(draw, model, given)
    if draw.compiled:
        torch._dynamo.reset()
        model = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    output = model(**by_choice(draw, given, CHOICES))
    if draw.hook in ("embeddings", "layers.0"):
        assert {*shapes} == {batch.real.shape}  # who looks on sees the batch as it came
    return output


def in_pieces(draw: Draw, model, given: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The outputs by token of some tokens after the others."""
    cache, parts = None, defaultdict(list)
    length = (given["inputs_embeds"] if draw.embeds else given["input_ids"]).shape[1]
    for start, end in zip((0, *draw.pieces), (*draw.pieces, length), strict=True):
        piece = dict(given)
        for key in ("input_ids", "inputs_embeds", "token_type_ids", "position_ids"):
            if given.get(key) is not None:
                piece[key] = given[key][:, start:end]
        if given["attention_mask"] is not None:
            piece["attention_mask"] = given["attention_mask"][:, :end]
        output = model(**piece, cache=cache)
        cache = output[CACHE]
        for key, value in by_token(draw, output).items():
            parts[key].append(value)
    return {key: torch.cat(values, dim=1) for key, values in parts.items()}


def tolerance(config) -> float:
    """1e-9 in float64; transformers computes the frequencies of scaled rotary schemes in float32."""
    if (config.rope_parameters or {}).get("rope_type", "default") != "default":
        return 1e-4
    return 1e-8 if config.attention_type == "linear" else 1e-9


def close(actual: torch.Tensor, expected: torch.Tensor, name: str, atol: float) -> None:
    torch.testing.assert_close(
        actual, expected, rtol=atol, atol=atol, check_dtype=False, msg=lambda text: f"{name}: {text}"
    )


def at_tokens(draw: Draw, batch: Batch, output) -> dict[str, torch.Tensor]:
    """What can be compared: outputs at real tokens, (T, ...), and of rows that are one sequence, (B, ...)."""
    found = {key: value[batch.real] for key, value in by_token(draw, output).items()}
    pools = batch.whole and not (draw.square and not batch.real[:, 0].all())
    return found | (by_row(draw, output) if pools else {})


def compare_attentions(batch: Batch, ours, expected, atol: float) -> None:
    """Every sequence attends to itself as it does alone, and so to nothing else."""
    for (row, places), alone_attentions in zip(batch.sequences, expected, strict=True):
        for layer, (its, own) in enumerate(zip(alone_attentions, ours, strict=True)):
            close(own[row][:, places][..., places], its[0], f"attentions of layer {layer}", atol)


def weigh(values: dict[str, torch.Tensor], seed: int) -> torch.Tensor:
    """A number that depends on all values, each in a way of its own."""
    generator = torch.Generator().manual_seed(seed)
    return sum((x * torch.randn(x.shape, generator=generator)).sum() for _, x in sorted(values.items()))


def compare_gradients(model, reference, atol: float) -> None:
    expected = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        ours, its = (torch.zeros_like(x) if x.grad is None else x.grad for x in (parameter, expected[name]))
        close(ours, its, f"gradient of {name}", atol)


def room_of(draw: Draw, batch: Batch) -> dict[str, int]:
    """The size of the tables: ample, or just enough; padding needs none of it where it can be seen to be padding."""
    if draw.config.rope_parameters:
        return {}
    seen = torch.ones_like(batch.real) if draw.square else batch.real
    longest = int(batch.positions[seen].max()) + 1
    if not draw.tight:
        longest = 128
    elif draw.square or draw.pieces or draw.compiled or not draw.reads:
        longest = max(longest, batch.real.shape[1], 10)
    return {"max_position_embeddings": longest}


def check(draw: Draw) -> None:
    """The batch has the outputs, the loss and the gradients of its sequences."""
    batch = lay(draw)
    model = draw.build(**room_of(draw, batch))
    fill(draw, batch, model.config)
    reference, own = copy.deepcopy(model).eval(), copy.copy(batch)
    reference.set_attn_implementation("eager")
    reference.config.unpad_inputs = True
    if draw.embeds:
        own.given = {**batch.given, "inputs_embeds": batch.given["inputs_embeds"].detach().requires_grad_()}
    expected, atol = alone(draw, reference, own), tolerance(model.config)
    attentions = expected.pop("attentions")
    with surroundings(draw):
        output = run(draw, model, batch)
        ours = at_tokens(draw, batch, output)
        for name, value in ours.items():
            close(value, expected[name], name, atol)
        if draw.recorded == "attentions":
            compare_attentions(batch, output["attentions"], attentions, atol)
        if draw.labels:
            totals = output["loss"], expected_loss(draw, batch, expected)
        else:
            totals = weigh(ours, draw.seed), weigh({name: expected[name] for name in ours}, draw.seed)
        totals[0].backward()
    totals[1].backward()
    if draw.labels and draw.head in LABELLED:
        atol = max(atol, 1e-5)
    close(*totals, "loss", atol)
    compare_gradients(model, reference, atol)
    if draw.embeds:
        close(batch.given["inputs_embeds"].grad, own.given["inputs_embeds"].grad, "inputs_embeds", atol)


def search(strategy: st.SearchStrategy[Draw], examples: int, start: int) -> None:
    """Checks some draws, in rounds of ten: hypothesis goes on to vary what it drew, and new draws find more."""
    for number in range(0, examples, ROUND):

        @seed(start + number)
        @settings(
            max_examples=min(ROUND, examples - number),
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=[*HealthCheck],
        )
        @given(strategy)
        def each(draw: Draw) -> None:
            check(draw)

        each()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Some of the configurations drawn are worth a warning."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(level)


@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_batch_has_the_outputs_losses_and_gradients_of_its_sequences(shard):
    examples = EXAMPLES // SHARDS
    search(draws(), examples, START + shard * examples)


def test_a_compiled_batch_has_the_outputs_losses_and_gradients_of_its_sequences():
    search(draws(compiled=True), COMPILED, START)


@pytest.mark.parametrize("draw", ONCE_WRONG, ids=repr)
def test_a_batch_that_was_once_computed_wrong_is_right(draw):
    check(draw)
