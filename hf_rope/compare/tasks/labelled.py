"""Tasks over labelled texts, which are read byte by byte."""

import math
import statistics
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from scipy.stats import spearmanr
from sklearn.metrics import f1_score
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    default_data_collator,
)

from ...masking import NO_LABEL
from ...text_files import read_rows
from .base import Example, Examples, epochs
from .byte_files import ByteFiles

Row = dict[str, Any]


@strict
@dataclass
class Labelled(ByteFiles):
    """Base of them: the rows of .jsonl files, shuffled anew in each epoch.

    An example is [CLS] text [SEP], or [CLS] text [SEP] text [SEP], cut to `length` tokens, the longer text first, and
    padded to as many. `test_lengths` cut the same rows elsewhere.

    Args:
        texts: the field that holds a row's text, or the two fields that hold its two.
        label: the field that holds what is to be told.
    """

    texts: list[str] = field(default_factory=lambda: ["text"])
    label: str = "label"

    higher_is_better = True

    def check(self):
        super().check()
        if len(self.texts) not in (1, 2):
            raise ValueError(f"texts is {self.texts}; it must name one field or two.")
        for length in (self.length, *self.test_lengths):
            if length <= len(self.texts) + 1:
                raise ValueError(f"length is {length}; special tokens alone are {len(self.texts) + 1}.")

    def load(self, paths):
        self.rows: dict[str, list[Row]] = {}
        for split in ("train", "validation"):
            self.rows[split] = [row for name in getattr(self, split) for row in read_rows(paths[name])]
            if not self.rows[split]:
                raise ValueError(f"{split} has no rows.")
            for number, row in enumerate(self.rows[split], 1):
                if lacking := [key for key in (*self.texts, self.label) if key not in row]:
                    raise ValueError(f"row {number} of {split} has no {lacking[0]!r}; it has: {', '.join(row)}.")
                for key in self.texts:
                    if not self.is_text(row[key]):
                        found = repr(row[key])
                        raise ValueError(f"row {number} of {split} has {found[:40]} in {key!r}, no text.")
        self.read_labels()

    @abstractmethod
    def read_labels(self) -> None:
        """Looks through the labels of `rows`; raises ValueError where one does not fit."""

    def training(self, seed, number):
        rows = self.rows["train"]
        order = epochs(len(rows), seed, number)
        return Examples(number, lambda i: self.example(rows[order[i]], self.length))

    def evaluation(self, length=None):
        rows = self.rows["validation"]
        return Examples(len(rows), lambda i: self.example(rows[i], length or self.length))

    def collator(self) -> Any:
        return default_data_collator

    def example(self, row: Row, length: int) -> Example:
        """`input_ids` and `attention_mask`, (length,), and `labels`."""
        first, *second = (self.encode(self.text(row[name]))[:length].tolist() for name in self.texts)
        encoded = self.tokenizer.prepare_for_model(
            first, second[0] if second else None, truncation="longest_first", max_length=length, padding="max_length"
        )
        return {key: torch.tensor(numbers) for key, numbers in encoded.items()} | {"labels": self.target(row, length)}

    def is_text(self, content: Any) -> bool:
        """Whether a field holds what `text` reads."""
        return isinstance(content, str)

    def text(self, content: Any) -> str:
        """The text that a field holds."""
        return content

    @abstractmethod
    def target(self, row: Row, length: int) -> torch.Tensor:
        """The `labels` of a row, whose text is cut to `length` tokens."""


@strict
@dataclass
class Classification(Labelled):
    """One class a row; accuracy, and the F1 of the second of two classes or else the mean of all classes' F1."""

    head = AutoModelForSequenceClassification
    metric = "accuracy"
    shown = ("f1",)

    def read_labels(self):
        """Classes are numbered in the order of their names."""
        self.classes = numbered([row[self.label] for row in self.rows["train"]])
        require_known([row[self.label] for row in self.rows["validation"]], self.classes)

    def config(self):
        return {**super().config(), "num_labels": len(self.classes)}

    def target(self, row, length):
        return torch.tensor(self.classes[row[self.label]])

    def compute_metrics(self, prediction):
        predicted, labels = prediction.predictions, prediction.label_ids
        average = "binary" if len(self.classes) == 2 else "macro"
        return {
            "accuracy": float((predicted == labels).mean()),
            "f1": float(f1_score(labels, predicted, average=average, zero_division=0)),
        }

    def scores(self, metrics):
        return {key: metrics[key] for key in ("loss", "accuracy", "f1")}

    def baseline(self):
        """Always answering the class that is most frequent in training."""
        most = statistics.mode(self.classes[row[self.label]] for row in self.rows["train"])
        labels = torch.tensor([self.classes[row[self.label]] for row in self.rows["validation"]]).numpy()
        return self.compute_metrics(Answers(labels * 0 + most, labels))


@strict
@dataclass
class Regression(Labelled):
    """One number a row; trained by the mean squared error and compared by Spearman's rank correlation."""

    head = AutoModelForSequenceClassification
    metric = "spearman"
    shown = ("mse",)

    def read_labels(self):
        for row in (*self.rows["train"], *self.rows["validation"]):
            label = row[self.label]
            if isinstance(label, bool) or not isinstance(label, int | float) or not math.isfinite(label):
                raise ValueError(f"{self.label} is {label!r} in a row; it must be a number.")

    def config(self):
        return {**super().config(), "num_labels": 1}

    def target(self, row, length):
        return torch.tensor(float(row[self.label]))

    def predictions(self, logits, labels):
        return logits[:, 0]

    def compute_metrics(self, prediction):
        return {"spearman": float(spearmanr(prediction.predictions, prediction.label_ids).statistic)}

    def scores(self, metrics):
        return {"loss": metrics["loss"], "mse": metrics["loss"], "spearman": metrics["spearman"]}

    def baseline(self):
        """Always answering the mean of training; the same answer everywhere has no rank correlation."""
        mean = statistics.fmean(row[self.label] for row in self.rows["train"])
        return {"mse": statistics.fmean((row[self.label] - mean) ** 2 for row in self.rows["validation"])}


@strict
@dataclass
class TokenClassification(Labelled):
    """One class a word; rows have lists of words and of classes. A word, after a space, is told at its first byte.

    Words beyond `length` are left out.
    """

    texts: list[str] = field(default_factory=lambda: ["tokens"])
    label: str = "tags"

    head = AutoModelForTokenClassification
    metric = "accuracy"

    def check(self):
        super().check()
        if len(self.texts) != 1:
            raise ValueError(f"texts is {self.texts}; it must name one field, of the words.")

    def read_labels(self):
        for row in (*self.rows["train"], *self.rows["validation"]):
            words, classes = row[self.texts[0]], row[self.label]
            if not isinstance(classes, list):
                raise ValueError(f"{self.label} is {classes!r} in a row; it must be a list with a class for each word.")
            if len(words) != len(classes):
                raise ValueError(f"a row has {len(words)} words and {len(classes)} classes: {' '.join(words)}.")
        self.classes = numbered([name for row in self.rows["train"] for name in row[self.label]])
        require_known([name for row in self.rows["validation"] for name in row[self.label]], self.classes)

    def config(self):
        return {**super().config(), "num_labels": len(self.classes)}

    def is_text(self, content):
        return isinstance(content, list) and all(isinstance(word, str) for word in content)

    def text(self, content):
        return " ".join(content)

    def target(self, row, length):
        """(length,), NO_LABEL but at the first byte of each word that is not cut off."""
        labels = torch.full((length,), NO_LABEL)
        place = 1  # after [CLS]
        for word, name in zip(row[self.texts[0]], row[self.label], strict=True):
            if place < length - 1:  # before [SEP]
                labels[place] = self.classes[name]
            place += len(word.encode()) + 1
        return labels

    def compute_metrics(self, prediction):
        asked = prediction.label_ids != NO_LABEL
        return {"accuracy": float((prediction.predictions == prediction.label_ids)[asked].mean())}

    def scores(self, metrics):
        return {key: metrics[key] for key in ("loss", "accuracy")}

    def baseline(self):
        """Always answering the class that is most frequent in training."""
        most = statistics.mode(self.classes[name] for row in self.rows["train"] for name in row[self.label])
        labels = torch.stack([self.target(row, self.length) for row in self.rows["validation"]]).numpy()
        return self.compute_metrics(Answers(labels * 0 + most, labels))


@dataclass
class Answers:
    """As transformers' EvalPrediction, for answers that no model gave."""

    predictions: Any
    label_ids: Any


def numbered(names: list[Any]) -> dict[Any, int]:
    """The classes and their numbers."""
    require_classes("train", names)
    if len({*names}) < 2:
        raise ValueError(f"all labels of train are {names[0]!r}; there must be two classes or more.")
    return {
        name: number for number, name in enumerate(sorted({*names}, key=lambda name: (isinstance(name, str), name)))
    }


def require_classes(split: str, names: list[Any]) -> None:
    if not names:
        raise ValueError(f"{split} has no labels.")
    for name in names:
        if not isinstance(name, int | str):
            raise ValueError(f"a label of {split} is {name!r}; classes are whole numbers or words.")


def require_known(names: list[Any], classes: dict[Any, int]) -> None:
    require_classes("validation", names)
    for name in names:
        if name not in classes:
            raise ValueError(f"validation has the label {name!r}, which train has not: {', '.join(map(str, classes))}.")
