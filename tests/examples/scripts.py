"""How the tests run a script of examples/, on what sizes and on which rows."""

import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
STEPS = ["--max_steps", "4", "--per_device_train_batch_size", "4", "--eval_steps", "2", "--save_steps", "2"]
SCORES = [
    {"first": f"a {word}", "second": "a man", "score": i / 2} for i, word in enumerate(["man", "road", "end", "town"])
]
"""Pairs of texts, each with a number."""


def run_script(script, monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
    script.main()


def load_complete(auto: type, folder: Path):
    """The model of a saved folder, of which no weight is missing or left over."""
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model
