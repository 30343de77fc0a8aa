"""Language modelling over the bytes of text files, by PerceiverTokenizer's numbers."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    default_data_collator,
)

from ... import text_files
from ...masking import NO_LABEL, BatchSeededMasking
from .base import Example, Examples, epochs
from .byte_files import ByteFiles


def read_text(path: Path) -> str:
    """A text file, or the `text` of each row of a .jsonl file, with a line break between."""
    return "\n".join(text_files.read_texts(path)) if path.suffix == ".jsonl" else text_files.read_text(path)


@strict
@dataclass
class BytesTask(ByteFiles):
    """Windows of bytes, cut from the texts one after the other and shuffled anew in each epoch.

    The files are texts, or .jsonl whose rows have a `text`.

    Args:
        validation_tokens: the model is measured on so many bytes at most, spread over the validation text.
    """

    validation_tokens: int = 65536

    def check(self):
        super().check()
        longest = max(self.length, *self.test_lengths, 1)
        if self.validation_tokens < longest:
            raise ValueError(f"validation_tokens is {self.validation_tokens}; the longest window has {longest}.")

    def load(self, paths):
        self.bytes = {}
        for split in ("train", "validation"):
            text = "\n".join(read_text(paths[name]) for name in getattr(self, split))
            self.bytes[split] = self.encode(text)
            longest = max(self.length, *(self.test_lengths if split == "validation" else []), 1)
            if len(self.bytes[split]) < longest:
                raise ValueError(f"{split} has {len(self.bytes[split])} bytes; one window alone has {longest}.")

    def training(self, seed, number):
        windows = self.bytes["train"].unfold(0, self.length, self.length)
        order = epochs(len(windows), seed, number)
        return Examples(number, lambda i: self.example(windows[order[i]]))

    def evaluation(self, length=None) -> Dataset:
        length = length or self.length
        windows = self.bytes["validation"].unfold(0, length, length)
        number = min(len(windows), self.validation_tokens // length)
        chosen = windows[torch.linspace(0, len(windows) - 1, number).long()]
        return Examples(number, lambda i: self.example(chosen[i]))

    def example(self, ids: torch.Tensor) -> Example:
        raise NotImplementedError

    def baseline(self):
        """The loss of knowing each byte's frequency in the training text."""
        size = len(self.tokenizer)
        counts = torch.bincount(self.bytes["train"], minlength=size).double() + 1
        return self.scores({"loss": float(-(counts / counts.sum()).log()[self.bytes["validation"]].mean())})


@strict
@dataclass
class MaskedLM(BytesTask):
    """BERT's masked language model: of the masked bytes 80% are hidden, 10% replaced, 10% kept.

    Args:
        mlm_probability: the share of bytes to predict.
    """

    mlm_probability: float | int = 0.15

    head = AutoModelForMaskedLM

    def check(self):
        super().check()
        if not 0 < self.mlm_probability <= 1:
            raise ValueError(f"mlm_probability is {self.mlm_probability}; it must be above 0 and up to 1.")

    def example(self, ids):
        return {"input_ids": ids, "special_tokens_mask": torch.zeros_like(ids)}

    def collator(self):
        return BatchSeededMasking(self.tokenizer, mlm_probability=self.mlm_probability)


class CutAndMask(BatchSeededMasking):
    """Cuts the examples of a batch into windows of the size that the first of them names, and masks those."""

    def torch_call(self, examples):
        window = int(examples[0].get("window", len(examples[0]["input_ids"])))
        keys = ("input_ids", "special_tokens_mask")
        return super().torch_call(
            [
                dict(zip(keys, pieces, strict=True))
                for example in examples
                for pieces in zip(*(example[key].split(window) for key in keys), strict=True)
            ]
        )


@strict
@dataclass
class GrowingMaskedLM(MaskedLM):
    """As `masked_lm`, in windows that grow while it trains, as BERT's did; it is measured in those of `length`.

    A step has the same bytes in every phase: a batch of windows of `length` is cut into shorter ones, (B, length) to
    (B * length / window, window).

    Args:
        windows: the sizes one after the other, for as many steps each; they divide `length` and end with it.
    """

    windows: list[int] = field(default_factory=list)

    def check(self):
        super().check()
        grows = self.windows == sorted({*self.windows})
        if not (grows and self.windows and self.windows[-1] == self.length and self.windows[0] > 0):
            raise ValueError(
                f"windows is {self.windows}; they must grow from 1 or more and end with length={self.length}."
            )
        if odd := [window for window in self.windows if self.length % window]:
            raise ValueError(f"windows has {odd[0]}, which does not divide length={self.length}.")

    def training(self, seed, number):
        """An example tells the window of its phase."""
        whole = super().training(seed, number)
        phases = len(self.windows)
        return Examples(number, lambda i: {**whole[i], "window": torch.tensor(self.windows[i * phases // number])})

    def collator(self):
        return CutAndMask(self.tokenizer, mlm_probability=self.mlm_probability)


@strict
@dataclass
class MaskedLMByPlace(MaskedLM):
    """As `masked_lm`, with the loss by the place of a byte in its window: `loss_by_place`, a number for each part.

    Args:
        parts: into how many equal parts windows are divided.
    """

    parts: int = 16

    def check(self):
        super().check()
        for length in (self.length, *self.test_lengths):
            if self.parts < 1 or length % self.parts:
                raise ValueError(f"parts is {self.parts}; it must divide all lengths, and one is {length}.")

    def evaluation_batch(self, length, training_batch):
        """As many bytes as a training step has, or one window."""
        return max(1, training_batch * self.length // length)

    def predictions(self, logits, labels):
        """(B, L, V), (B, L) -> (B, L): the loss of each byte, 0 where none is asked for."""
        return cross_entropy(logits.transpose(1, 2).float(), labels, ignore_index=NO_LABEL, reduction="none")

    def compute_metrics(self, prediction):
        losses, asked = (
            torch.as_tensor(x, dtype=torch.float64).unflatten(1, (self.parts, -1)).sum((0, 2))
            for x in (prediction.predictions, prediction.label_ids != NO_LABEL)
        )
        return {"loss_by_place": (losses / asked).tolist()}

    def scores(self, metrics):
        return {key: metrics[key] for key in ("loss", "loss_by_place") if key in metrics}


@strict
@dataclass
class CausalLM(BytesTask):
    """The next byte from those before it; compared in bits per byte."""

    head = AutoModelForCausalLM
    metric = "bits_per_byte"

    def config(self):
        return {**super().config(), "is_decoder": True}

    def example(self, ids):
        return {"input_ids": ids, "labels": ids}

    def collator(self) -> Any:
        return default_data_collator

    def scores(self, metrics):
        return {"loss": metrics["loss"], "bits_per_byte": metrics["loss"] / math.log(2)}
