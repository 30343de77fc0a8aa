"""The batch that a draw describes.

Shapes: B rows of the batch, L length, T real tokens of the batch.
"""

from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch

from fuzz.draw import LABELLED, LMS, Draw
from heads import CHOICES, LABELS
from helpers import SIZES

GARBAGE = 1000
"""What a position at padding may be: one that no table holds."""


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
