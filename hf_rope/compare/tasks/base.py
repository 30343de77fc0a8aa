"""Task: what a model is trained for, and how it is measured. Nothing here knows of the model or its random numbers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch.utils.data import Dataset
from transformers import PreTrainedModel

Example = dict[str, torch.Tensor]


class Examples(Dataset):
    """Examples that are made when they are asked for, each from its number alone."""

    def __init__(self, number: int, make: Callable[[int], Example]):
        self.number, self.make = number, make

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, i: int) -> Example:
        return self.make(i)


@strict
@dataclass
class Task:
    """Base of every task; its fields are the settings that a study gives beside `kind`.

    Args:
        length: tokens of the longest training sequence; tables of positions have so many rows.
        test_lengths: sequences of so many tokens are measured at the end as well, each on its own.
    """

    length: int
    test_lengths: list[int] = field(default_factory=list)

    head: ClassVar[Any]
    """The Auto class of the model."""
    metric: ClassVar[str] = "loss"
    """What the report compares, a key of what `scores` returns."""
    higher_is_better: ClassVar[bool] = False
    shown: ClassVar[tuple[str, ...]] = ()
    """Further keys of what `scores` and `measure` return that the report's table shows."""
    compute_metrics: ClassVar[Any] = None
    """Trainer's function of what is measured beside the loss, from what `predictions` keeps; None for nothing."""

    def check(self) -> None:
        """Raises ValueError with one sentence where settings do not fit each other."""
        for name, value in (("length", self.length), *(("test_lengths", length) for length in self.test_lengths)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be 1 or more.")

    def check_model(self, model: PreTrainedModel) -> None:
        """Raises ValueError where a model, on the meta device, can be trained and not be measured."""

    def files(self) -> list[str]:
        """The names of the files that it reads, as the study gives them."""
        return []

    def load(self, paths: dict[str, Path]) -> None:
        """Reads them; `paths` has where each of `files()` lies."""

    def config(self) -> dict[str, Any]:
        """The keys of HfRopeConfig that follow from the task."""
        raise NotImplementedError

    def training(self, seed: int, number: int) -> Dataset:
        """`number` training examples in their order, which follow from the seed."""
        raise NotImplementedError

    def evaluation(self, length: int | None = None) -> Dataset:
        """The validation examples, the same for every seed; or test examples of exactly `length` tokens."""
        raise NotImplementedError

    def collator(self) -> Callable[[list[Example]], Example]:
        """What makes batches of examples; the same examples give the same batch."""
        raise NotImplementedError

    def evaluation_batch(self, length: int, training_batch: int) -> int:
        """How many test sequences of `length` tokens are measured at a time; `training_batch` of a training step."""
        return training_batch

    def predictions(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """What is kept of a batch's logits for `compute_metrics`: the most probable classes."""
        return logits.argmax(-1)

    def scores(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """All that is reported of an evaluation, numbers or lists of them, from Trainer's metrics without prefix."""
        return {"loss": metrics["loss"]}

    def measure(self, model: PreTrainedModel) -> dict[str, Any]:
        """What else is reported of the finished model beside its validation scores, numbers or lists of them."""
        return {}

    def baseline(self) -> dict[str, float]:
        """The scores, as far as they are known, of a model that knows frequencies only."""
        return {}


def epochs(size: int, seed: int, number: int) -> torch.Tensor:
    """(number,): which of `size` examples come one after the other, all of them in each epoch, in the seed's order."""
    orders = [torch.randperm(size, generator=seeded(seed, epoch)) for epoch in range(-(-number // size))]
    return torch.cat(orders)[:number]


def seeded(*numbers: int) -> torch.Generator:
    """A generator whose numbers follow from some numbers and nothing else."""
    seed = 0
    for number in numbers:
        seed = (seed * 0x9E3779B97F4A7C15 + number + 1) % 2**63
    return torch.Generator().manual_seed(seed)
