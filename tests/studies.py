"""A tiny study of two schemes, for the tests of `hf_rope.compare`."""

from pathlib import Path
from typing import Any

BOOKS = Path(__file__).parents[1] / "examples/data/books"
MODEL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "hidden_dropout_prob": 0.1,  # so that a resume has random numbers to restore
}
BYTES = {
    "kind": "masked_lm",
    "length": 16,
    "test_lengths": [32],
    "train": [str(BOOKS / "train.txt")],
    "validation": [str(BOOKS / "validation.txt")],
    "validation_tokens": 64,
}
ANSWERS = {"kind": "parity", "length": 16, "evaluation_examples": 8}


def tiny_study(**changes) -> dict[str, Any]:
    """The settings of a study that takes a second; `changes` replace or add keys."""
    settings = {
        "question": "Which of two is better?",
        "tasks": {"bytes": BYTES},
        "schemes": ["learned", "rotary"],
        "model": MODEL,
        "seeds": [0, 1],
        "learning_rates": [1e-3, 1e-2],
        "steps": 6,
        "tokens_per_step": 64,
        "evaluate_every": 2,
        "threshold": 5.5,
    }
    return {**settings, **changes}
