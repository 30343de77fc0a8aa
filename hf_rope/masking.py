"""BatchSeededMasking: masked-LM batches whose masks follow from the batch itself, of packed rows too."""

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from transformers import DataCollatorForLanguageModeling

NO_LABEL = -100
"""Where nothing is asked for; the losses of transformers leave it out."""
MOST_DRAWS = 100
"""Masks of a batch are drawn so often at most: it may hold nothing but special tokens."""


class BatchSeededMasking(DataCollatorForLanguageModeling):
    """transformers' masked-LM collator, with masks drawn from a generator that the batch seeds.

    The same rows are masked alike under every scheme, in every evaluation and after a resume; so a batch of one row is
    masked alike in every epoch, where rows of larger ones meet others. A draw that masks nothing is
    repeated, since a loss over no token is NaN. Rows may bring `position_ids`, such as those of `hf_rope.packing.pack`;
    they are padded as the ids are.
    """

    def torch_call(self, examples: list[Any]) -> dict[str, torch.Tensor]:
        examples = [example if isinstance(example, Mapping) else {"input_ids": example} for example in examples]
        ids = torch.cat([torch.as_tensor(example["input_ids"]) for example in examples])
        self.generator = torch.Generator().manual_seed(zlib.crc32(ids.numpy().tobytes()))
        batch = super().torch_call(
            [{key: value for key, value in example.items() if key != "position_ids"} for example in examples]
        )
        if "position_ids" in examples[0]:
            positions = torch.zeros_like(batch["input_ids"])
            real = batch["attention_mask"].bool()  # its places, row by row, are the tokens in their order
            positions[real] = torch.cat([torch.as_tensor(example["position_ids"]) for example in examples])
            batch["position_ids"] = positions
        return batch

    def torch_mask_tokens(self, inputs, special_tokens_mask=None, offset_mapping=None):
        for _ in range(MOST_DRAWS):
            masked, labels = super().torch_mask_tokens(inputs, special_tokens_mask, offset_mapping)
            if (labels != NO_LABEL).any():
                break
        return masked, labels
