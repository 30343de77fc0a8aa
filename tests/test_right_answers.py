"""What the study of right answers found, held against what theory says a scheme can know."""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

from benchmarks.findings import RESULTS
from hf_rope import SCHEMES, HfRopeConfig
from hf_rope.compare.cell import CELLS, read_result
from hf_rope.compare.runner import STUDY
from hf_rope.compare.tasks import TASKS
from hf_rope.compare.tasks.base import seeded
from hf_rope.masking import NO_LABEL

FOLDER = RESULTS / "right_answers"
STUDY_SETTINGS = json.loads((FOLDER / STUDY).read_text(encoding="utf-8"))["study"]
SETTINGS = STUDY_SETTINGS["tasks"]
ORDERS = 16
BLIND_TO_DIRECTION = ("alibi, symmetric", "kerple")
FIXED_ORDER = ("copy", "reverse", "dyck_depth")
"""Tasks in which not every order of a sequence's tokens is a sequence of the task."""
SLACK = 0.1
"""Four times the standard error of a share of 256 sequences, each right or wrong as a whole."""


@cache
def results() -> list[dict[str, Any]]:
    return [read_result(path) for path in sorted(FOLDER.glob(f"{CELLS}/*"))]


def accuracies(scheme: str, task: str) -> Iterator[tuple[str, float]]:
    """(evaluation, accuracy), of every cell."""
    for result in results():
        if (result["scheme"], result["task"]) == (scheme, task):
            for name, scores in result["evaluations"].items():
                if "refused" not in scores:
                    yield name, scores["accuracy"]


@cache
def sequences(name: str, evaluation: str) -> tuple[Any, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A task, and the ids and labels of what its models were measured on."""
    settings = dict(SETTINGS[name])
    task = TASKS[settings.pop("kind")](**settings)
    examples = task.evaluation(None if evaluation == "validation" else int(evaluation))
    rows = [examples[i] for i in range(len(examples))]
    sizes = [int(row["attention_mask"].sum()) for row in rows]
    return task, [(row["input_ids"][:n], row["labels"][:n]) for row, n in zip(rows, sizes, strict=True)]


@cache
def best_without_order(name: str, evaluation: str) -> float:
    """The accuracy of the best answers that are the same for all tokens of one kind, and for all orders of a sequence.

    A model without positions gives such answers. Orders that the task could not have drawn are left out.
    """
    task, rows = sequences(name, evaluation)
    generator, right, asked = seeded(0), 0.0, 0
    for ids, labels in rows:
        orders = [(ids, labels)]
        if SETTINGS[name]["kind"] not in FIXED_ORDER:
            shuffled = [ids[torch.randperm(len(ids), generator=generator)] for _ in range(ORDERS - 1)]
            orders += [(order, task.answers(order)) for order in shuffled]
        for kind in ids.unique():
            answers = torch.cat([labels[(order == kind) & (labels != NO_LABEL)] for order, labels in orders])
            if len(answers):
                right += float(answers.bincount().max()) / len(orders)
        asked += int((labels != NO_LABEL).sum())
    return right / asked


@cache
def best_without_direction(name: str, evaluation: str) -> float:
    """The accuracy of the best answers that turn round with the sequence.

    Read from its end a sequence is as probable, and its tokens get the answers that they got before: where others were
    right, one of the two is wrong.
    """
    task, rows = sequences(name, evaluation)
    right, asked = 0.0, 0
    for ids, labels in rows:
        turned = task.answers(ids.flip(0)).flip(0)
        both = (labels != NO_LABEL) & (turned != NO_LABEL) & (turned != labels)
        right += float((labels != NO_LABEL).sum() - both.sum() / 2)
        asked += int((labels != NO_LABEL).sum())
    return right / asked


@pytest.mark.parametrize("task", SETTINGS)
def test_without_positions_nothing_is_known_of_order(task):
    found = [*accuracies("none", task)]
    assert found
    for evaluation, accuracy in found:
        assert accuracy <= best_without_order(task, evaluation) + SLACK, evaluation


@pytest.mark.parametrize("task", [name for name, task in SETTINGS.items() if task["kind"] not in FIXED_ORDER])
@pytest.mark.parametrize("scheme", BLIND_TO_DIRECTION)
def test_symmetric_positions_know_nothing_of_direction(scheme, task):
    found = [*accuracies(scheme, task)]
    assert found
    for evaluation, accuracy in found:
        assert accuracy <= best_without_direction(task, evaluation) + SLACK, evaluation


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme in STUDY_SETTINGS["schemes"]])
def test_a_table_refuses_longer_sequences_and_nothing_else_does(scheme):
    found = [result for result in results() if result["scheme"] == scheme]
    assert found
    for result in found:
        task, _ = sequences(result["task"], "validation")
        limit = SCHEMES[scheme](HfRopeConfig(**task.config(), **result["settings"]["config"])).max_length
        longer = {name for name in result["evaluations"] if limit is not None and name.isdigit() and int(name) > limit}
        assert {name for name, scores in result["evaluations"].items() if "refused" in scores} == longer
