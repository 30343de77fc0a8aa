"""What the cells of a study found, in numbers: means and ranges over seeds, and which schemes can be told apart."""

from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from ..text_files import read_json
from .cell import CELLS, ERROR, read_result
from .choice import choose_rate, validation_loss
from .runner import STUDY
from .tasks import TASKS

RESAMPLES = 10_000


def summarise(folder: Path) -> dict[str, Any]:
    """All that the report says, as plain numbers.

    Raises:
        ValueError: the folder holds no study.
    """
    if not (folder / STUDY).is_file():
        raise ValueError(f"{folder} holds no {STUDY}: name the --output of a study.")
    content = read_json(folder / STUDY)
    if not isinstance(content, dict) or not {"study", "cells"} <= {*content}:
        raise ValueError(f"{folder / STUDY} holds no study: run it again with --resume, which writes it anew.")
    study = content["study"]
    missing: list[str] = []
    failed: list[str] = []
    results: dict[tuple[str, str], dict[tuple[float, int], dict[str, Any] | None]] = {}
    names = {}
    for cell in content["cells"]:
        pair, place = (cell["task"], cell["scheme"]), (cell["learning_rate"], cell["seed"])
        results.setdefault(pair, {})[place] = read_result(folder / CELLS / cell["name"])
        names[pair, place] = cell["name"]
    tasks: dict[str, Any] = {}
    for (task, scheme), found in results.items():
        at_first = {rate: found[rate, study["seeds"][0]] for rate in study["learning_rates"]}
        rate = choose_rate(at_first)
        needed = [(each, study["seeds"][0]) for each in study["learning_rates"]]
        needed += [(rate, seed) for seed in study["seeds"][1:] if rate is not None]
        for place in needed:
            if found[place] is None:
                name = names[(task, scheme), place]
                (failed if (folder / CELLS / name / ERROR).is_file() else missing).append(name)
        kind = TASKS[study["tasks"][task]["kind"]]
        about = {
            "metric": kind.metric,
            "shown": [*kind.shown],
            "higher_is_better": kind.higher_is_better,
            "schemes": {},
        }
        tasks.setdefault(task, about)["schemes"][scheme] = {
            "learning_rates": {f"{each:g}": result and validation_loss(result) for each, result in at_first.items()},
            "learning_rate": rate,
            **over_seeds({seed: found[rate, seed] for seed in study["seeds"]} if rate is not None else {}, study),
        }
        for result in filter(None, found.values()):
            tasks[task]["baseline"] = result["baseline"]
    for task in tasks.values():
        task["differences"] = {name: differences(task, name) for name in evaluation_names([task])}
    return {
        "question": study["question"],
        "study": study,
        "tasks": tasks,
        "cells_finished": sum(found is not None for pair in results.values() for found in pair.values()),
        "cells_failed": failed,
        "cells_missing": missing,
    }


def evaluation_names(tasks: Iterable[dict[str, Any]]) -> list[str]:
    """What the schemes of some tasks were measured on: "validation", and lengths."""
    found = (name for task in tasks for scheme in task["schemes"].values() for name in scheme["evaluations"])
    return list(dict.fromkeys(found))


def over_seeds(found: dict[int, dict[str, Any] | None], study: dict[str, Any]) -> dict[str, Any]:
    """What the finished seeds of a scheme have together."""
    results = {seed: result for seed, result in found.items() if result is not None}
    if not results:
        return {"seeds": [], "evaluations": {}, "curve": {}}
    first = next(iter(results.values()))
    evaluations = {}
    for name, scores in first["evaluations"].items():
        evaluations[name] = scores
        if "refused" not in scores:
            of_seeds = [result["evaluations"][name] for result in results.values()]
            keys = dict.fromkeys(key for each in of_seeds for key in each)  # a seed that diverged may lack some
            evaluations[name] = {key: spread_each([each.get(key) for each in of_seeds]) for key in keys}
    curves = [result["curve"] for result in results.values()]
    summary = {
        "seeds": [*results],
        "evaluations": evaluations,
        "curve": {
            key: [spread(values) for values in zip(*(curve[key] for curve in curves), strict=True)]
            for key in curves[0]
            if key != "step"
        }
        | {"step": curves[0]["step"]},
        "parameters": first["parameters"],
    }
    if study["steps"]:
        summary["tokens_per_second"] = median(result["speed"]["tokens_per_second"] for result in results.values())
        summary["seconds"] = median(result["speed"]["seconds"] for result in results.values())
    if study["threshold"] is not None:
        summary["steps_to_threshold"] = [steps_to(curve, study["threshold"]) for curve in curves]
    return summary


def spread(values: Iterable[float | None]) -> dict[str, Any]:
    """The values with their mean and range, which are None where one diverged."""
    values = [*values]
    if None in values:
        return {"values": values, "mean": None, "lowest": None, "highest": None}
    return {"values": values, "mean": fmean(values), "lowest": min(values), "highest": max(values)}  # type: ignore


def spread_each(values: list[Any]) -> Any:
    """`spread` of numbers, or at each place of lists, which are empty or None where a seed diverged."""
    longest = max((len(each) for each in values if isinstance(each, list)), default=None)
    if longest is None:
        return spread(values)
    return [spread(each) for each in zip(*(each or [None] * longest for each in values), strict=True)]


def steps_to(curve: dict[str, Any], threshold: float) -> int | None:
    """The first measured step with a validation loss of the threshold or less; None where there is none."""
    for step, loss in zip(curve["step"], curve["validation_loss"], strict=True):
        if loss is not None and loss <= threshold:
            return step
    return None


def differences(task: dict[str, Any], evaluation: str) -> list[dict[str, Any]]:
    """Every two schemes, the better one first, by the seeds that both have.

    Two schemes separate where the ranges of their seeds do not overlap and the interval of the mean difference does not
    hold 0: 95%, by percentiles of the bootstrap over the seeds' differences, since one seed has one order of the data
    and one set of initial values. One seed alone separates nothing.
    """
    values = by_seed(task, evaluation)
    rows = []
    for pair in combinations(values, 2):
        seeds = sorted({*values[pair[0]]} & {*values[pair[1]]})
        if not seeds:
            continue
        of_pair = {name: np.array([values[name][seed] for seed in seeds]) for name in pair}
        better, worse = sorted(pair, key=lambda name: of_pair[name].mean(), reverse=task["higher_is_better"])
        difference = of_pair[better] - of_pair[worse]
        low, high = bootstrap_interval(difference)
        apart = (
            of_pair[better].min() > of_pair[worse].max()
            if task["higher_is_better"]
            else of_pair[better].max() < of_pair[worse].min()
        )
        rows.append(
            {
                "better": better,
                "worse": worse,
                "seeds": seeds,
                "difference": float(difference.mean()),
                "interval": [low, high],
                "separate": bool(apart and not low <= 0 <= high and len(seeds) > 1),
            }
        )
    return rows


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """The 95% percentile interval of the mean."""
    means = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def mean_score(task: dict[str, Any], scheme: str, evaluation: str) -> float | None:
    """The mean over seeds; None where there is none: it was left out, refused, diverged or is not finished."""
    found = task["schemes"].get(scheme, {"evaluations": {}})["evaluations"]
    return found.get(evaluation, {}).get(task["metric"], {"mean": None})["mean"]


def by_seed(task: dict[str, Any], evaluation: str) -> dict[str, dict[int, float]]:
    """What is compared, by scheme and seed; without schemes that refused, diverged or are not finished."""
    values = {}
    for name, scheme in task["schemes"].items():
        if mean_score(task, name, evaluation) is not None:
            row = scheme["evaluations"][evaluation][task["metric"]]
            values[name] = dict(zip(scheme["seeds"], row["values"], strict=True))
    return values


def rank(task: dict[str, Any], evaluation: str) -> list[str]:
    """The schemes that have a mean, the best first."""
    means = {name: fmean(values.values()) for name, values in by_seed(task, evaluation).items()}
    return sorted(means, key=means.__getitem__, reverse=task["higher_is_better"])
