"""The report of a study: results.json, figures and report.md, from as many of its cells as are finished."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..text_files import write_json
from .figures import draw, is_begun
from .runner import STUDY
from .study import START
from .summary import evaluation_names, rank, summarise
from .words import DIGITS, named, score, score_with_range

MOST_NAMED = 12
"""So many cells that are not finished are named, those that failed always."""
CAPTIONS = {
    "curves.png": "Learning curves: the mean over seeds, and their range as a band",
    "steps_to_threshold.png": "Steps to the threshold against the length",
    "scores.png": "Mean scores over seeds by scheme and task, at the lengths of training and at longer ones",
    "by_length.png": "Scores at the lengths of training and at longer ones",
    "by_place.png": "Loss by the place in the window, at the length of training and at the longest one",
    "identical_words.png": "Attention by distance where one word fills the window, and RoFormer's long-term decay",
}


def report(output: str | Path) -> dict[str, Any]:
    """Writes report.md, results.json and the figures into a study's folder, and returns what results.json holds.

    The study in its folder `start`, that it starts from, gets a report as well.

    Raises:
        ValueError: the folder holds no study.
    """
    folder = Path(output)
    if (folder / START / STUDY).is_file():
        report(folder / START)
    summary = summarise(folder)
    figures = draw(summary, folder)
    write_json(folder / "results.json", summary)
    (folder / "report.md").write_text(markdown(summary, figures), encoding="utf-8")
    return summary


def markdown(summary: dict[str, Any], figures: Sequence[str]) -> str:
    """The report's text."""
    parts = [f"# {summary['question']}", budget(summary["study"]), *state(summary)]
    parts += [f"![{CAPTIONS[name]}]({name})" for name in figures]
    begun = {name: task for name, task in summary["tasks"].items() if is_begun(task)}
    if len(begun) > 1:
        parts.append(overview(begun))
    for name, task in begun.items():
        parts += [f"## {name}", table(summary, task)]
        if len(summary["study"]["learning_rates"]) > 1:
            parts += [rates(summary, task)]
        parts += [words(task, evaluation) for evaluation in task["differences"]]
    return "\n\n".join(part for part in parts if part) + "\n"


def budget(study: dict[str, Any]) -> str:
    """What every cell got."""
    seeds, steps = count(len(study["seeds"]), "seed"), study["steps"]
    tokens = study["tokens_per_step"]
    batch = count(study["sequences_per_step"], "sequence") if tokens is None else count(tokens, "token")
    trained = f"{steps:,} steps of {batch}" if steps else "nothing is trained"
    device = "a GPU that all workers share" if study.get("device") == "cuda" else "the CPU"
    begin = ""
    if start := study.get("start"):
        of = "another study" if isinstance(start, dict) else f"`{Path(start).name}`"
        but = ", but for those from scratch" if study["from_scratch"] else ""
        begin = f"It starts from the weights of {of} for the same scheme and seed{but}. "
    return (
        f"Each cell: {trained}, {study['precision']} on {device}; {seeds}. {begin}Schemes of one seed get the same "
        "data in the same order with the same masks, and start from the same values in all that they share."
    )


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number:,} {noun}s"


def state(summary: dict[str, Any]) -> list[str]:
    """Which cells there are not."""
    missing, failed = summary["cells_missing"], summary["cells_failed"]
    parts = []
    if missing:
        few = len(missing) <= MOST_NAMED
        parts.append(f"**{count(len(missing), 'cell')} not finished**" + (f": {', '.join(missing)}." if few else "."))
    if failed:
        parts.append(f"**{count(len(failed), 'cell')} failed**: {', '.join(failed)}.")
    return parts


def rows_to_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in markdown, the first column on the left."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def overview(tasks: dict[str, dict[str, Any]]) -> str:
    """The means of all tasks side by side."""
    schemes = list(dict.fromkeys(name for task in tasks.values() for name in task["schemes"]))
    head = ["scheme", *(f"{name}: {named(task['metric'])}" for name, task in tasks.items())]
    rows = []
    for scheme in schemes:
        found = [(task, task["schemes"].get(scheme)) for task in tasks.values()]
        scores = [score(each, "validation", task["metric"]) if each else "left out" for task, each in found]
        rows.append([f"`{scheme}`", *scores])
    frequencies = [baseline(task, "validation", task["metric"]) for task in tasks.values()]
    return "## All tasks\n\n" + rows_to_table(head, [*rows, ["frequencies alone", *frequencies]])


def baseline(task: dict[str, Any], evaluation: str, metric: str) -> str:
    value = task.get("baseline", {}).get(metric)
    return "" if value is None or evaluation != "validation" else f"{value:.{DIGITS}f}"


def table(summary: dict[str, Any], task: dict[str, Any]) -> str:
    """One task: every scheme, the best first."""
    study, metric = summary["study"], task["metric"]
    sets = evaluation_names([task])
    columns = [(name, metric) for name in sets] + [("validation", key) for key in task["shown"]]
    head = ["scheme", *(named(key) if name == "validation" else f"at {name}" for name, key in columns)]
    if study["threshold"] is not None:
        head.append(f"steps to {study['threshold']:g} nats")
    head += ["seeds", "parameters"]
    if study["steps"]:
        head += ["learning rate", "tokens/s", "seconds"]
    ranked = rank(task, "validation")
    rows = []
    for scheme in [*ranked, *(name for name in task["schemes"] if name not in ranked)]:
        found = task["schemes"][scheme]
        row = [f"`{scheme}`", *(score_with_range(found, name, key) for name, key in columns)]
        if study["threshold"] is not None:
            row.append(
                ", ".join(
                    "not reached" if step is None else f"{step:,}" for step in found.get("steps_to_threshold", ())
                )
            )
        row += [str(len(found["seeds"])), whole(found, "parameters")]
        if study["steps"]:
            rate = "not chosen" if found["learning_rate"] is None else f"{found['learning_rate']:g}"
            row += [rate, whole(found, "tokens_per_second"), whole(found, "seconds")]
        rows.append(row)
    rows.append(["frequencies alone", *(baseline(task, name, key) for name, key in columns)])
    rows[-1] += [""] * (len(head) - len(rows[-1]))
    return rows_to_table(head, rows)


def whole(found: dict[str, Any], key: str) -> str:
    """A number without its decimals; nothing where there is none."""
    return f"{found[key]:,.0f}" if key in found else ""


def rates(summary: dict[str, Any], task: dict[str, Any]) -> str:
    """The validation losses that learning rates were chosen by."""
    study = summary["study"]
    names = [f"{rate:g}" for rate in study["learning_rates"]]
    rows = []
    for scheme, found in task["schemes"].items():
        chosen = found["learning_rate"] is not None and f"{found['learning_rate']:g}"
        cells = []
        for name in names:
            loss = found["learning_rates"][name]
            text = "missing" if loss is None else "diverged" if loss == float("inf") else f"{loss:.3f}"
            cells.append(f"**{text}**" if name == chosen else text)
        rows.append([f"`{scheme}`", *cells])
    intro = f"Learning rates, by the validation loss of seed {study['seeds'][0]}; in bold what the other seeds ran at:"
    return intro + "\n\n" + rows_to_table(["scheme", *names], rows)


def words(task: dict[str, Any], evaluation: str) -> str:
    """Which schemes can be told apart: a line for each, the best first, about those that come after it."""
    pairs = task["differences"][evaluation]
    if not pairs:
        return ""
    where = "" if evaluation == "validation" else f" at {evaluation} tokens"
    if all(len(row["seeds"]) == 1 for row in pairs):
        return f"Nothing is told apart{where}: every two schemes have one seed in common."
    lines = [f"Told apart{where} (the ranges of the seeds do not overlap, and the bootstrap interval excludes 0):", ""]
    apart = {(row["better"], row["worse"]) for row in pairs if row["separate"]}
    ranked = rank(task, evaluation)
    for place, scheme in enumerate(ranked[:-1], start=1):
        rest = ranked[place:]
        # The order is by all seeds that a scheme has, and a pair is compared by those that both have.
        below = [name for name in rest if (scheme, name) in apart]
        above = [name for name in rest if (name, scheme) in apart]
        alike = [name for name in rest if name not in below + above]
        said = []
        if below:
            but = alike + above
            said.append("better than all that follow" + (f", but for {listed(but)}" if but else ""))
        elif alike:
            said.append(f"not told apart from {listed(alike)}")
        if above:
            said.append(f"by the seeds that both have worse than {listed(above)}")
        lines.append(f"- `{scheme}`: {'; '.join(said)}.")
    return "\n".join(lines)


def listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
