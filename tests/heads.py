"""Every head with a batch and labels for it: the rows that the tests of heads and of shipping run over."""

from dataclasses import dataclass, field
from typing import Any

import torch

import hf_rope
from helpers import tiny_model, token_ids

BATCH, LENGTH, LABELS, CHOICES = 4, 10, 3, 2


@dataclass(frozen=True)
class Head:
    """`labels`: the keyword arguments that make the head return a loss."""

    auto: str
    model: str
    labels: dict[str, torch.Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = (BATCH, LENGTH)

    @property
    def model_class(self) -> type[hf_rope.HfRopePreTrainedModel]:
        return getattr(hf_rope, self.model)

    def build(self, case: str = "rotary", **changes):
        return tiny_model(case, self.model_class, **{**self.config, **changes})

    def batch(self) -> dict[str, torch.Tensor]:
        """Ids with padding on the right in the second row."""
        ids = token_ids(*self.shape)
        mask = torch.ones_like(ids)
        ids[1, ..., -3:] = mask[1, ..., -3:] = 0
        return {"input_ids": ids, "attention_mask": mask}


def some_tokens(ids: torch.Tensor) -> torch.Tensor:
    """Labels for every third token, -100 elsewhere."""
    return torch.where(torch.arange(ids.shape[1]) % 3 == 1, ids, -100)


CLASSES = torch.arange(BATCH) % LABELS
HEADS = {
    "encoder": Head("AutoModel", "HfRopeModel", {}),
    "masked-lm": Head("AutoModelForMaskedLM", "HfRopeForMaskedLM", {"labels": some_tokens(token_ids(BATCH, LENGTH))}),
    "causal-lm": Head(
        "AutoModelForCausalLM",
        "HfRopeForCausalLM",
        {"labels": some_tokens(token_ids(BATCH, LENGTH))},
        {"is_decoder": True, "use_cache": False},
    ),
    "pre-training": Head(
        "AutoModelForPreTraining", "HfRopeForMaskedLM", {"labels": some_tokens(token_ids(BATCH, LENGTH))}
    ),
    "single-label": Head(
        "AutoModelForSequenceClassification", "HfRopeForSequenceClassification", {"labels": CLASSES}, {"num_labels": 3}
    ),
    "multi-label": Head(
        "AutoModelForSequenceClassification",
        "HfRopeForSequenceClassification",
        {"labels": (torch.arange(BATCH * LABELS).view(BATCH, LABELS) % 2).float()},
        {"num_labels": LABELS, "problem_type": "multi_label_classification"},
    ),
    "regression": Head(
        "AutoModelForSequenceClassification",
        "HfRopeForSequenceClassification",
        {"labels": torch.linspace(-1, 1, BATCH)},
        {"num_labels": 1},
    ),
    "many-regressions": Head(
        "AutoModelForSequenceClassification",
        "HfRopeForSequenceClassification",
        {"labels": torch.linspace(-1, 1, BATCH * LABELS).view(BATCH, LABELS)},
        {"num_labels": LABELS, "problem_type": "regression"},
    ),
    "tokens": Head(
        "AutoModelForTokenClassification",
        "HfRopeForTokenClassification",
        {"labels": some_tokens(token_ids(BATCH, LENGTH) % LABELS)},
        {"num_labels": LABELS},
    ),
    "question-answering": Head(
        "AutoModelForQuestionAnswering",
        "HfRopeForQuestionAnswering",
        {"start_positions": torch.tensor([0, 2, 5, 99]), "end_positions": torch.tensor([1, 6, 9, 99])},
    ),
    "multiple-choice": Head(
        "AutoModelForMultipleChoice",
        "HfRopeForMultipleChoice",
        {"labels": torch.arange(BATCH) % CHOICES},
        shape=(BATCH, CHOICES, LENGTH),
    ),
}
LOSSES = [name for name, head in HEADS.items() if head.labels]
