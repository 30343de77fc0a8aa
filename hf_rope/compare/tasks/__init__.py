"""TASKS: what models are trained for, by the name that `kind` takes."""

from .base import Task
from .labelled import Classification, Regression, TokenClassification
from .language import CausalLM, GrowingMaskedLM, MaskedLM, MaskedLMByPlace
from .probes import PositionProbes
from .right_answer import (
    Copy,
    DyckDepth,
    FirstRepeat,
    Parity,
    Reverse,
    SortByPosition,
    TokenAtDistance,
    TokenAtPlace,
)

TASKS: dict[str, type[Task]] = {
    "masked_lm": MaskedLM,
    "growing_masked_lm": GrowingMaskedLM,
    "masked_lm_by_place": MaskedLMByPlace,
    "position_probes": PositionProbes,
    "causal_lm": CausalLM,
    "classification": Classification,
    "regression": Regression,
    "token_classification": TokenClassification,
    "copy": Copy,
    "reverse": Reverse,
    "token_at_distance": TokenAtDistance,
    "token_at_place": TokenAtPlace,
    "first_repeat": FirstRepeat,
    "sort_by_position": SortByPosition,
    "dyck_depth": DyckDepth,
    "parity": Parity,
}

__all__ = ["TASKS", "Task"]
