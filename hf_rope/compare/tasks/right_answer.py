"""Tasks with a right answer: a class for each token of a sequence that is drawn from the seed.

Shapes: n the length of a sequence. Symbols are 1 to `symbols`; 0 is padding, and no label's class but "there is none".
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoModelForTokenClassification, default_data_collator

from .base import Example, Examples, Task, seeded

NO_LABEL = -100
HELD_OUT = 2**31
"""What stands in a seed's place where evaluation examples are drawn; no seed of a study is so large."""


@strict
@dataclass
class RightAnswer(Task):
    """Base of them: random symbols, the lengths of training drawn evenly from `shortest` to `length`.

    Args:
        shortest: the length of the shortest training sequence.
        symbols: how many kinds of token there are.
        evaluation_examples: sequences of each evaluation.
    """

    shortest: int = 4
    symbols: int = 16
    evaluation_examples: int = 512

    head = AutoModelForTokenClassification
    metric = "accuracy"
    higher_is_better = True

    def check(self):
        super().check()
        if not 4 <= self.shortest <= min([self.length, *self.test_lengths]):
            raise ValueError(f"shortest is {self.shortest}; it must be from 4 to the smallest of all lengths.")
        if not 2 <= self.symbols <= 1000:
            raise ValueError(f"symbols is {self.symbols}; it must be from 2 to 1000.")
        if self.evaluation_examples < 1:
            raise ValueError(f"evaluation_examples is {self.evaluation_examples}; it must be 1 or more.")

    def config(self):
        return {
            "vocab_size": self.symbols + 2,  # padding, the symbols, and a blank
            "num_labels": self.symbols + 1,
            "pad_token_id": 0,
            "max_position_embeddings": self.length,
        }

    @property
    def blank(self) -> int:
        """The token in whose place an answer is asked for."""
        return self.symbols + 1

    @abstractmethod
    def draw(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """The ids and the labels of one sequence, both (n,)."""

    def random_symbols(self, n: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randint(1, self.symbols + 1, (n,), generator=generator)

    def example(self, seed: int, number: int, length: int | None) -> Example:
        """One sequence, padded to the longest of its set."""
        generator = seeded(seed, length or 0, number)
        n = length or int(torch.randint(self.shortest, self.length + 1, (), generator=generator))
        ids, labels = self.draw(n, generator)
        pad = (0, (length or self.length) - n)
        return {
            "input_ids": torch.nn.functional.pad(ids, pad),
            "attention_mask": torch.nn.functional.pad(torch.ones_like(ids), pad),
            "labels": torch.nn.functional.pad(labels, pad, value=NO_LABEL),
        }

    def training(self, seed, number):
        return Examples(number, lambda i: self.example(seed, i, None))

    def evaluation(self, length=None):
        return Examples(self.evaluation_examples, lambda i: self.example(HELD_OUT, i, length))

    def collator(self) -> Any:
        return default_data_collator

    def compute_metrics(self, prediction):
        asked = prediction.label_ids != NO_LABEL
        return {"accuracy": float((prediction.predictions == prediction.label_ids)[asked].mean())}

    def scores(self, metrics):
        return {"loss": metrics["loss"], "accuracy": metrics["accuracy"]}

    def baseline(self):
        """The accuracy of the most frequent class."""
        examples = self.evaluation()
        labels = torch.cat([examples[i]["labels"] for i in range(len(examples))])
        labels = labels[labels != NO_LABEL]
        return {"accuracy": float(labels.bincount().max() / len(labels))}


class Copy(RightAnswer):
    """Symbols, then as many blanks; each blank asks for the symbol at its own place among the symbols."""

    def draw(self, n, generator):
        given = self.random_symbols(n // 2, generator)
        asked = n - len(given)
        ids = torch.cat([given, torch.full((asked,), self.blank)])
        answers = torch.nn.functional.pad(self.answer(given), (0, asked - len(given)), value=NO_LABEL)
        return ids, torch.cat([torch.full_like(given, NO_LABEL), answers])

    def answer(self, given: torch.Tensor) -> torch.Tensor:
        return given


class Reverse(Copy):
    """As `Copy`, from the last symbol to the first."""

    def answer(self, given):
        return given.flip(0)


@strict
@dataclass
class TokenAtDistance(RightAnswer):
    """Each token asks for the one `distance` before it; the first ones ask for nothing."""

    distance: int = 3

    def check(self):
        super().check()
        if not 1 <= self.distance < self.shortest:
            raise ValueError(f"distance is {self.distance}; it must be from 1 to shortest - 1, {self.shortest - 1}.")

    def draw(self, n, generator):
        ids = self.random_symbols(n, generator)
        labels = ids.roll(self.distance)
        labels[: self.distance] = NO_LABEL
        return ids, labels


@strict
@dataclass
class TokenAtPlace(RightAnswer):
    """Each token asks for the one at `place`, counted from 0."""

    place: int = 3

    def check(self):
        super().check()
        if not 0 <= self.place < self.shortest:
            raise ValueError(f"place is {self.place}; it must be from 0 to shortest - 1, {self.shortest - 1}.")

    def draw(self, n, generator):
        ids = self.random_symbols(n, generator)
        return ids, ids[self.place].repeat(n)


class FirstRepeat(RightAnswer):
    """Each token asks which symbol is the first to occur for a second time; class 0 where none does."""

    def draw(self, n, generator):
        ids = self.random_symbols(n, generator)
        again = (ids[:, None] == ids[None]).tril(-1).any(1)
        return ids, (ids[again.int().argmax()] if again.any() else torch.tensor(0)).repeat(n)


class SortByPosition(RightAnswer):
    """The token at place i asks for the i-th smallest symbol of the sequence."""

    def draw(self, n, generator):
        ids = self.random_symbols(n, generator)
        return ids, ids.sort().values


class DyckDepth(RightAnswer):
    """Opening (odd) and closing (even) brackets; each token asks how many are open after it.

    At each place a bracket opens or closes with equal chance, but where none is open or `symbols` are.
    """

    def draw(self, n, generator):
        opens, depth, ids, labels = torch.rand(n, generator=generator) < 0.5, 0, [], []
        for wanted in opens.tolist():
            opening = depth == 0 or (wanted and depth < self.symbols)
            depth += 1 if opening else -1
            ids.append(1 if opening else 2)
            labels.append(depth)
        return torch.tensor(ids), torch.tensor(labels)


class Parity(RightAnswer):
    """Bits (1 and 2); each token asks whether the number of 2s up to it, itself included, is odd."""

    def draw(self, n, generator):
        ids = torch.randint(1, 3, (n,), generator=generator)
        return ids, (ids == 2).cumsum(0) % 2
