"""The groups of cases by name, each to be measured in a process of its own."""

from argparse import Namespace
from dataclasses import asdict
from typing import Any

import torch
import transformers

from . import cases
from .measure import compare
from .precision import PRECISIONS

GROUPS = {
    "rotary": lambda how, arguments: cases.rotary_forward(how),
    "real": lambda how, arguments: cases.real_batches(how, arguments.pairs),
    "steps": lambda how, arguments: cases.steps(how),
    "learned": lambda how, arguments: cases.learned_forward(how),
    "relative": lambda how, arguments: cases.relative_forward(how),
    "modern": lambda how, arguments: cases.modern_forward(how),
    "costs": lambda how, arguments: cases.scheme_costs(how),
    "convert": lambda how, arguments: cases.converted(how),
    "lengths": lambda how, arguments: cases.lengths(how, arguments.longest),
    "int8": lambda how, arguments: cases.int8_forward(how),
    "memory": None,
    "linear": None,
}
QUICK = ("rotary", "real", "steps", "lengths")
FLOAT32_ALONE = ("memory", "linear")


def is_measured(group: str, precision: str) -> bool:
    """Whether a group is measured in a precision: int8 models are not trained, and "int8" is about them."""
    if group in FLOAT32_ALONE:
        return precision == "float32"
    return group != "steps" if precision == "int8" else group != "int8"


def measure_speed(group: str, precision: str, arguments: Namespace) -> list[dict[str, Any]]:
    """A row for each case of the group and each model that it is compared with."""
    set_up(arguments)
    rows = []
    for case in GROUPS[group](PRECISIONS[precision], arguments):
        for other, ratio in compare(case.ours, case.others, arguments.rounds).items():
            row = {"part": group, "precision": precision, "scheme": case.group, "work": case.name, "against": other}
            rows.append({**row, **asdict(ratio), "goal": case.goals.get(other, {}).get(precision)})
            spread = f"{ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
            print(f"{precision:9} {case.group:16} {case.name:36} {other:20} {spread}")
    return rows


def set_up(arguments) -> None:
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
