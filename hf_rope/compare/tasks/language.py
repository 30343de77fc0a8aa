"""Language modelling over the bytes of text files, by PerceiverTokenizer's numbers."""

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from torch.utils.data import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PerceiverTokenizer,
    default_data_collator,
)

from ...masking import BatchSeededMasking
from .base import Example, Examples, Task, seeded


def read_text(path: Path) -> str:
    """A text file, or the `text` of each row of a .jsonl file, with a line break between."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return "\n".join(json.loads(line)["text"] for line in text.splitlines() if line.strip())
    return text


@strict
@dataclass
class BytesTask(Task):
    """Windows of bytes, cut from the texts one after the other and shuffled anew in each epoch.

    Args:
        train, validation: text files, or .jsonl files whose rows have a `text`; relative to the study's folder, or else
            to the working directory.
        validation_tokens: the model is measured on so many bytes at most, spread over the validation text.
    """

    train: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)
    validation_tokens: int = 65536

    def check(self):
        super().check()
        for name in ("train", "validation"):
            if not getattr(self, name):
                raise ValueError(f"{name} names no file; bytes are read from one at least.")
        longest = max(self.length, *self.test_lengths, 1)
        if self.validation_tokens < longest:
            raise ValueError(f"validation_tokens is {self.validation_tokens}; the longest window has {longest}.")

    def files(self):
        return [*self.train, *self.validation]

    def load(self, paths):
        self.bytes = {}
        for split in ("train", "validation"):
            text = "\n".join(read_text(paths[name]) for name in getattr(self, split))
            self.bytes[split] = self.encode(text)
            longest = max(self.length, *(self.test_lengths if split == "validation" else []), 1)
            if len(self.bytes[split]) < longest:
                raise ValueError(f"{split} has {len(self.bytes[split])} bytes; one window alone has {longest}.")

    @cached_property
    def tokenizer(self) -> PerceiverTokenizer:
        return PerceiverTokenizer()

    def encode(self, text: str) -> torch.Tensor:
        """What the tokenizer gives without special tokens, one number a byte; it would take a second a megabyte."""
        special = len(self.tokenizer) - 256
        return torch.from_numpy(np.frombuffer(text.encode(), np.uint8).astype(np.int64) + special)

    def config(self):
        return {
            "vocab_size": len(self.tokenizer),
            "pad_token_id": self.tokenizer.pad_token_id,
            "max_position_embeddings": self.length,
        }

    def training(self, seed, number):
        windows = self.bytes["train"].unfold(0, self.length, self.length)
        epochs = -(-number // len(windows))
        order = torch.cat([torch.randperm(len(windows), generator=seeded(seed, epoch)) for epoch in range(epochs)])
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
