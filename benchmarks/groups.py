"""The groups of cases by name, each to be measured in a process of its own."""

from argparse import Namespace
from dataclasses import asdict
from typing import Any

import torch
import transformers

from . import cases
from .measure import compare

GROUPS = {
    "rotary": lambda arguments: cases.rotary_forward(),
    "real": lambda arguments: cases.real_batches(arguments.pairs),
    "steps": lambda arguments: cases.steps(),
    "learned": lambda arguments: cases.learned_forward(),
    "relative": lambda arguments: cases.relative_forward(),
    "modern": lambda arguments: cases.modern_forward(),
    "costs": lambda arguments: cases.scheme_costs(),
    "convert": lambda arguments: cases.converted(),
    "lengths": lambda arguments: cases.lengths(arguments.longest),
    "memory": None,
    "linear": None,
}
QUICK = ("rotary", "real", "steps", "lengths")


def measure_speed(group: str, arguments: Namespace) -> list[dict[str, Any]]:
    """A row for each case of the group and each model that it is compared with."""
    set_up(arguments)
    rows = []
    for case in GROUPS[group](arguments):
        for other, ratio in compare(case.ours, case.others, arguments.rounds).items():
            row = {"part": group, "scheme": case.group, "work": case.name, "against": other, **asdict(ratio)}
            rows.append({**row, "goal": case.goals.get(other)})
            print(f"{case.group:16} {case.name:36} {other:20} {ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})")
    return rows


def set_up(arguments) -> None:
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
