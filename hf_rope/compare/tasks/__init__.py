"""TASKS: what models are trained for, by the name that `kind` takes."""

from .base import Task
from .language import CausalLM, MaskedLM
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
    "causal_lm": CausalLM,
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
