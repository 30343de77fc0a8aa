"""Batches of real text: what an export is compared on and timed with."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..model.modeling_hf_rope import HfRopeForMultipleChoice

TEXTS = tuple(Path(__file__).with_name("texts.txt").read_text(encoding="utf-8").splitlines())
"""Paragraphs of The War of the Worlds (H. G. Wells, 1898), of 3 to 200 words."""
BATCHES: dict[str, tuple[int, list[str]]] = {
    "one": (32, [TEXTS[0]]),
    "short": (32, [*TEXTS[12:20]]),
    "middle": (128, [*TEXTS[8:16]]),
    "long": (512, [" ".join(TEXTS), *TEXTS[:3]]),
}
"""The texts of each batch, and after how many tokens they are cut. All but one have padding."""


def make_batches(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, names: list[str]
) -> dict[str, dict[str, torch.Tensor]]:
    """BATCHES as inputs of these names, and a batch of pairs where there are token types.

    Without a tokenizer, or with one that does not pad, they have random ids. For multiple choice two texts that follow
    each other are the choices.
    """
    base: Any = model.base_model
    longest: int | None = base.position.max_length
    batches = {}
    for name, (length, texts) in BATCHES.items():
        length = min(length, longest or length)
        if tokenizer is None or tokenizer.pad_token is None:
            batches[name] = random_batch(model.config, len(texts), length)
        else:
            batches[name] = encode(tokenizer, length, texts)
            if name == "short" and "token_type_ids" in names:
                batches["pairs"] = encode(tokenizer, length, texts[::2], texts[1::2])
    choices = isinstance(model, HfRopeForMultipleChoice)
    return {
        key: {name: laid_out(batch.get(name, torch.zeros_like(batch["input_ids"])), choices) for name in names}
        for key, batch in batches.items()
    }


def encode(tokenizer: PreTrainedTokenizerBase, length: int, *texts: list[str]) -> dict[str, torch.Tensor]:
    settings: dict[str, Any] = {"max_length": min(length, tokenizer.model_max_length), "return_attention_mask": True}
    return dict(tokenizer(*texts, padding=True, truncation=True, return_tensors="pt", **settings))


def random_batch(config, batch: int, length: int) -> dict[str, torch.Tensor]:
    """Rows of `length` tokens and fewer, down to half of them, padded on the right."""
    ids = torch.randint(0, config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(0))
    padding = torch.arange(batch)[:, None] * length // (2 * batch)
    return {"input_ids": ids, "attention_mask": (torch.arange(length) < length - padding).long()}


def laid_out(x: torch.Tensor, choices: bool) -> torch.Tensor:
    """(B, L) as it is, or with choices (B / 2, 2, L), and (1, 1, L) for one text."""
    return x.unflatten(0, (-1, 2 - len(x) % 2)) if choices else x
