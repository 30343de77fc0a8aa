"""Tasks with a right answer: a class for each token of a sequence that is drawn from the seed.

Shapes: n the length of a sequence. Symbols are 1 to `symbols`; 0 is padding.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoModelForTokenClassification, default_data_collator

from ...masking import NO_LABEL
from .base import Example, Examples, Task, seeded

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

    def draw(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """The ids of one sequence, (n,)."""
        return torch.randint(1, self.symbols + 1, (n,), generator=generator)

    @abstractmethod
    def answers(self, ids: torch.Tensor) -> torch.Tensor:
        """(n,) ids -> (n,) labels, NO_LABEL where nothing is asked for."""

    def example(self, seed: int, number: int, length: int | None) -> Example:
        """One sequence, padded to the longest of its set."""
        generator = seeded(seed, length or 0, number)
        n = length or int(torch.randint(self.shortest, self.length + 1, (), generator=generator))
        ids = self.draw(n, generator)
        pad = (0, (length or self.length) - n)
        return {
            "input_ids": torch.nn.functional.pad(ids, pad),
            "attention_mask": torch.nn.functional.pad(torch.ones_like(ids), pad),
            "labels": torch.nn.functional.pad(self.answers(ids), pad, value=NO_LABEL),
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
    """Symbols, then as many blanks, one more where n is odd; the i-th blank asks for the i-th symbol."""

    def draw(self, n, generator):
        ids = super().draw(n, generator)
        ids[n // 2 :] = self.blank
        return ids

    def answers(self, ids):
        half = len(ids) // 2
        labels = torch.full_like(ids, NO_LABEL)
        labels[half : 2 * half] = self.answer(ids[:half])
        return labels

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

    def answers(self, ids):
        labels = ids.roll(self.distance)
        labels[: self.distance] = NO_LABEL
        return labels


@strict
@dataclass
class TokenAtPlace(RightAnswer):
    """Each token asks for the one at `place`, counted from 0."""

    place: int = 3

    def check(self):
        super().check()
        if not 0 <= self.place < self.shortest:
            raise ValueError(f"place is {self.place}; it must be from 0 to shortest - 1, {self.shortest - 1}.")

    def answers(self, ids):
        return ids[self.place].repeat(len(ids))


class FirstRepeat(RightAnswer):
    """Each token asks which symbol is the first to occur for a second time; class 0 where none does."""

    def answers(self, ids):
        again = (ids[:, None] == ids[None]).tril(-1).any(1)
        return (ids[again.int().argmax()] if again.any() else torch.tensor(0)).repeat(len(ids))


class SortByPosition(RightAnswer):
    """The token at place i asks for the i-th smallest symbol of the sequence."""

    def answers(self, ids):
        return ids.sort().values


class DyckDepth(RightAnswer):
    """Brackets that open (1) and close (2); each token asks how many are open after it.

    One opens or closes with equal chance, but where none is open or `symbols` are.
    """

    def draw(self, n, generator):
        depth, ids = 0, []
        for wanted in torch.randint(0, 2, (n,), generator=generator).tolist():
            opens = depth == 0 or (wanted and depth < self.symbols)
            depth += 1 if opens else -1
            ids.append(1 if opens else 2)
        return torch.tensor(ids)

    def answers(self, ids):
        return (3 - 2 * ids).cumsum(0)


class Parity(RightAnswer):
    """Bits (1 and 2); each token asks whether the number of 2s up to it, itself included, is odd."""

    def draw(self, n, generator):
        return torch.randint(1, 3, (n,), generator=generator)

    def answers(self, ids):
        return (ids == 2).cumsum(0) % 2
