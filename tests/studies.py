"""Tiny studies of two schemes, for the tests of `hf_rope.compare`, and small files in the place of large ones."""

import json
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
GROWING = {**BYTES, "kind": "growing_masked_lm", "test_lengths": [], "windows": [4, 8, 16]}
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


def tiny_start(**changes) -> dict[str, Any]:
    """A study of windows that grow, for others to start from."""
    return tiny_study(**{"tasks": {"bytes": GROWING}, "learning_rates": [1e-2], "keep_model": True, **changes})


def write_rows(folder: Path) -> None:
    """Rows of every kind, under the names that studies look for outside the repository."""
    rows = {
        "mrpc": [{"sentence1": f"one {i}", "sentence2": f"two {i}", "label": i % 2} for i in range(6)],
        "stsb": [{"sentence1": f"one {i}", "sentence2": f"two {i}", "label": i / 2} for i in range(6)],
        "ewt_pos": [{"tokens": ["I", "réad", f"{i}"], "tags": ["PRON", "VERB", "NUM"]} for i in range(6)],
        "movie_reviews": [{"text": f"a long review {i}", "label": "good" if i % 3 else "bad"} for i in range(6)],
    }
    for name, split in ((name, split) for name in rows for split in ("train", "validation")):
        path = folder / name / f"{split}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[name]), encoding="utf-8")
