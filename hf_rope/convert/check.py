"""How far two models' outputs are apart, on text or on random ids."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from ..model.checks import check_ids
from .checkpoint import read_config, read_tokenizer
from .source import RELATIVE_KEYS
from .sources import SOURCES
from .weights import HEADS

TEXTS = (
    "Rotary embeddings turn queries and keys by an angle that grows with the position.",
    "A short one.",
)
Forward = Callable[..., Mapping[str, Any]]
"""A model, or anything else that takes a batch and returns outputs by name, in a model's order."""
LENGTH = 64
"""Tokens of a compared text, at most."""
LIMIT = 1e-5
"""The greatest difference that counts as equal, for outputs up to 1; for larger ones, as many times more."""


def sample(config, tokenizer=None, head: str = "Model") -> dict[str, torch.Tensor]:
    """Two sequences of different lengths, padded on the right; as two choices of one example for multiple choice.

    The tokenizer is changed: it keeps how it padded, and saves it.
    """
    longest = min(LENGTH, config.max_position_embeddings)
    if tokenizer is not None and tokenizer.pad_token is not None:
        tokenizer.padding_side = "right"
        batch = dict(tokenizer(list(TEXTS), padding=True, return_attention_mask=True, return_tensors="pt"))
        batch = {key: batch[key][:, :longest] for key in ("input_ids", "attention_mask")}
        check_ids("input_ids", batch["input_ids"], config.vocab_size, "vocab_size")
    else:
        pad, length = config.pad_token_id or 0, min(12, longest)
        draw = torch.randint(0, config.vocab_size - 1, (2, length), generator=torch.Generator().manual_seed(0))
        ids, mask = draw + (draw >= pad), torch.ones(2, length, dtype=torch.long)
        ids[1, 7:], mask[1, 7:] = pad, 0
        batch = {"input_ids": ids, "attention_mask": mask}
    return {key: value[None] for key, value in batch.items()} if head == "ForMultipleChoice" else batch


@torch.no_grad()
def difference(one: Forward, other: Forward, batch: dict[str, Any]) -> tuple[float, float]:
    """The greatest difference of the outputs that both have, and the greatest size of the first's.

    Hidden states and logits of tokens are compared at real tokens only. What is not a number is infinitely far.
    """
    mask = batch.get("attention_mask")
    greatest, size = 0.0, 0.0
    for x, y in zip(*(tensors(model(**batch)) for model in (one, other)), strict=False):
        if mask is not None and x.shape[: mask.ndim] == mask.shape:
            x, y = x[mask.bool()], y[mask.bool()]
        distance = (x - y).abs().nan_to_num(nan=float("inf"))
        greatest, size = max(greatest, float(distance.max())), max(size, float(x.abs().max()))
    return greatest, size


def tensors(output) -> list[torch.Tensor]:
    return [value for value in output.values() if isinstance(value, torch.Tensor)]


def equal(greatest: float, size: float) -> bool:
    return greatest <= LIMIT * max(1.0, size)


def check_against_source(name: str, model: PreTrainedModel) -> tuple[float, float]:
    """`difference` of a source, loaded with its own class, and what it was converted to, both in float32.

    Raises:
        ValueError: no class of transformers computes the source.
    """
    config, raw = read_config(name, SOURCES)
    if raw.get("position_embedding_type") in RELATIVE_KEYS and raw["model_type"] != "hf_rope":
        raise ValueError(
            f"{name} has position_embedding_type={raw['position_embedding_type']!r}, which no class of transformers 5 "
            "computes, so there is nothing to check against: convert it without --check."
        )
    head = next(head for head in HEADS if type(model).__name__.endswith(head))
    class_name = (raw.get("architectures") or [""])[0]
    if not hasattr(transformers, class_name) or (head == "Model" and not class_name.endswith("Model")):
        class_name = "AutoModel" + head.removeprefix("Model")
    native = getattr(transformers, class_name)
    config.return_dict = True
    source, info = native.from_pretrained(name, config=config, dtype=torch.float32, output_loading_info=True)
    if absent := sorted(key for key in info["missing_keys"] if "pooler." not in key):
        raise ValueError(
            f"{class_name} of transformers {transformers.__version__} does not find {absent[0]} in {name}, so there is "
            "nothing to check against: convert it without --check."
        )
    source.eval()
    return difference(source, copy.deepcopy(model).float(), sample(model.config, read_tokenizer(name), head))
