"""What tasks over the bytes of files have in common; bytes have PerceiverTokenizer's numbers."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from transformers import PerceiverTokenizer

from .base import Task


@strict
@dataclass
class ByteFiles(Task):
    """Base of them.

    Args:
        train, validation: files, named from the study's folder, or else from the working directory.
    """

    train: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)

    def check(self):
        super().check()
        for name in ("train", "validation"):
            if not getattr(self, name):
                raise ValueError(f"{name} names no file; bytes are read from one at least.")

    def files(self):
        return [*self.train, *self.validation]

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
