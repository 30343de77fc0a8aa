"""How near a model under new positions is to its source, on text that it was not trained on."""

from collections.abc import Iterable
from typing import Any

import torch
from transformers import DataCollatorForLanguageModeling, PreTrainedModel, PreTrainedTokenizerBase

from ..model.modeling_hf_rope import HfRopeForMaskedLM


@torch.no_grad()
def measure(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    batches: Iterable[dict[str, torch.Tensor]],
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, float]:
    """Figures of the student beside the teacher, both in float32.

    Returns:
        hidden_state_difference: |student - teacher| / |teacher| of the last hidden states of all real tokens together.
        sentence_cosine: the mean over texts of the cosine of both means over tokens.
        masked_lm_loss, masked_lm_loss_of_source: nats a masked token, the same 15% of the tokens; of masked LMs alone.
    """
    away = size = cosines = texts = 0.0
    for batch in batches:
        mask = batch["attention_mask"][..., None]
        states, wanted = (model.base_model(**batch).last_hidden_state * mask for model in (student, teacher))
        away += float((states - wanted).square().sum())
        size += float(wanted.square().sum())
        cosines += float(torch.cosine_similarity(states.sum(1), wanted.sum(1)).sum())
        texts += len(mask)
    figures = {"hidden_state_difference": (away / size) ** 0.5, "sentence_cosine": cosines / texts}
    if isinstance(student, HfRopeForMaskedLM) and tokenizer.mask_token is not None:
        figures["masked_lm_loss"], figures["masked_lm_loss_of_source"] = masked_lm_losses(
            (student, teacher), batches, tokenizer
        )
    return figures


def masked_lm_losses(
    models: tuple[PreTrainedModel, ...], batches: Iterable[dict[str, torch.Tensor]], tokenizer: PreTrainedTokenizerBase
) -> list[float]:
    """Nats a masked token of each model, on the same masks."""
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    collator.generator = torch.Generator().manual_seed(0)
    sums: list[float] = [0.0 for _ in models]
    number = 0
    for batch in batches:
        special = torch.isin(batch["input_ids"], torch.tensor(tokenizer.all_special_ids))
        masked, labels = collator.torch_mask_tokens(batch["input_ids"].clone(), special)
        count = int((labels != -100).sum())
        if not count:
            continue
        number += count
        inputs: dict[str, Any] = {"attention_mask": batch["attention_mask"], "labels": labels}
        for place, model in enumerate(models):
            sums[place] += count * float(model(input_ids=masked, **inputs).loss)
    return [total / max(number, 1) for total in sums]
