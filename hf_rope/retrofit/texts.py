"""Texts, and the batches that are drawn from them: short pieces or long ones, padded, each batch by its number."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from .. import text_files
from .recipe import Recipe

Source = list[str]
"""The parts of a file's or a data set's texts, in order; joined they are its texts, a line break after each."""

MOST = 64_000_000
"""Characters that are read of a source, from its beginning: more than a training sees."""
PART = 4000
"""Characters of a part, at most: a text is one part or several."""
HELD_OUT = 50
"""Of so many parts, one is held out."""
PER_TOKEN = 6
"""Characters that give a token at least, as a rule; what is too much is cut off by the tokenizer."""


def read_texts(names: Sequence[str]) -> list[Source]:
    """The texts of each name: a .txt file (a text a line), a .jsonl file (`text` of each row), or a data set's name.

    A data set is streamed by `datasets.load_dataset`, its split "train"; a configuration follows after a colon, as in
    "Salesforce/wikitext:wikitext-2-raw-v1".

    Raises:
        ValueError: a name is neither, cannot be read, or holds too little text to hold some of it out.
    """
    if not names:
        raise ValueError("No texts are named: give .txt or .jsonl files, or the name of a data set.")
    return [parts_of(name, texts_of(name)) for name in names]


def texts_of(name: str) -> Iterator[str]:
    path = Path(name)
    if path.suffix == ".txt" and path.is_file():
        return text_files.read_lines(path)
    if path.suffix == ".jsonl" and path.is_file():
        return text_files.read_texts(path)
    if path.is_file() or path.suffix in (".txt", ".jsonl"):
        what = f"ends in {path.suffix!r}" if path.is_file() else "is not there, or is no file"
        raise ValueError(f"{name} {what}: texts are .txt or .jsonl files, or the name of a data set.")
    return texts_of_dataset(name)


def texts_of_dataset(name: str) -> Iterator[str]:
    for row in rows_of_dataset(name):
        if not isinstance(row.get("text"), str):
            raise ValueError(f"The data set {name} has no column `text` with texts; it has: {', '.join(row)}.")
        yield row["text"]


def rows_of_dataset(name: str) -> Iterator[dict[str, Any]]:
    import datasets  # a second, which texts in files need not take

    place, _, configuration = name.partition(":")
    try:
        yield from datasets.load_dataset(place, configuration or None, split="train", streaming=True)
    except Exception as error:  # of many kinds: no such data set, no network, no such configuration, a broken row
        reason = " ".join(str(error).split())
        raise ValueError(f"{name} is no file, and as a data set it cannot be loaded: {reason}") from None


def parts_of(name: str, texts: Iterable[str]) -> Source:
    parts: Source = []
    size = 0
    for text in texts:
        if text.strip():
            text += "\n"
            parts += [text[start : start + PART] for start in range(0, len(text), PART)]
            size += len(text)
        if size > MOST:
            break
    if len(parts) < 2:
        raise ValueError(
            f"{name} holds {size} characters in one text or none, and some text has to be held out: it takes two "
            f"texts, or one of more than {PART} characters."
        )
    return parts


def hold_out(sources: list[Source], seed: int) -> tuple[list[Source], list[Source]]:
    """The parts to train on, and those held out: one of 50 of each source, at least one."""
    kept: list[Source] = []
    held: list[Source] = []
    for parts in sources:
        number = -(-len(parts) // HELD_OUT)
        chosen = {*np.random.default_rng(seed).permutation(len(parts))[:number].tolist()}
        kept.append([part for place, part in enumerate(parts) if place not in chosen])
        held.append([part for place, part in enumerate(parts) if place in chosen])
    return kept, held


class Batches(Dataset):
    """Batches by number: those of one number are always the same, so that a training can go on where it stopped.

    Each text comes from a source that is drawn, all alike, and is a whole short text of it or a piece of a longer one.
    A long text goes on in the texts that follow.

    Args:
        sources: the parts to draw from.
        tokenizer: padded on the right, cut at `short_length` or at `length`.
        recipe: sizes, shares and the seed.
        length: tokens of a long text.
        number: of batches.
    """

    def __init__(
        self, sources: list[Source], tokenizer: PreTrainedTokenizerBase, recipe: Recipe, length: int, number: int
    ):
        self.sources, self.tokenizer, self.recipe = sources, tokenizer, recipe
        self.length, self.number = length, number

    def __len__(self) -> int:
        return self.number

    def is_long(self, number: int) -> bool:
        """Spread evenly: of a quarter, batches 3, 7, 11 and so on."""
        share = self.recipe.long_share
        return int((number + 1) * share) > int(number * share)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return (self[number] for number in range(self.number))

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        recipe, generator = self.recipe, np.random.default_rng([self.recipe.seed, number])
        if self.is_long(number):
            length, draw = self.length, long_text
            count = max(1, recipe.batch_size * recipe.short_length // length)
        else:
            length, draw, count = recipe.short_length, short_text, recipe.batch_size
        texts = [draw(self.sources[generator.integers(len(self.sources))], length, generator) for _ in range(count)]
        settings: dict[str, Any] = {"padding": True, "padding_side": "right", "truncation": True, "max_length": length}
        batch = self.tokenizer(texts, **settings, return_attention_mask=True, return_tensors="pt")
        return {key: batch[key] for key in ("input_ids", "attention_mask")}


def short_text(parts: Source, length: int, generator: np.random.Generator) -> str:
    """A part, or some words of one that is longer than `length` tokens, of a size that is drawn too."""
    part, most = parts[generator.integers(len(parts))], PER_TOKEN * length
    if len(part) <= most:
        return part
    size = int(generator.integers(most // 8, most))
    start = int(generator.integers(len(part) - size))
    piece = part[start : start + size]
    return " ".join(piece.split()[1:-1]) or piece


def long_text(parts: Source, length: int, generator: np.random.Generator) -> str:
    """A part and those that follow, for `length` tokens; after the last one, the first."""
    start, most = int(generator.integers(len(parts))), PER_TOKEN * length
    text = ""
    for place in range(start, start + len(parts)):
        text += parts[place % len(parts)]
        if len(text) >= most:
            break
    return text
