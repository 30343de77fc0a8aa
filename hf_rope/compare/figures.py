"""The figures of a study, drawn from its summary alone."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .summary import evaluation_names, mean_score
from .words import named, score

COLUMNS = 3
SHORT = 2
"""The digits of a score in a table that is drawn."""


def draw(summary: dict[str, Any], folder: Path) -> list[str]:
    """Writes the figures that the study has something to show in; returns the names of the files."""
    # What stands between two dollars matplotlib takes for a formula, and here it is a name.
    summary = json.loads(json.dumps(summary).replace("$", r"\\$"))
    study, figures = summary["study"], {}
    if not any(map(is_begun, summary["tasks"].values())):
        return []
    if study["steps"]:
        figures["curves.png"] = draw_curves(summary)
    if study["threshold"] is not None and len(lengths(summary)) > 1:
        figures["steps_to_threshold.png"] = draw_steps(summary)
    if has_many_scores(summary):
        figures["scores.png"] = draw_scores(summary)
    elif any(task.get("test_lengths") for task in study["tasks"].values()):
        figures["by_length.png"] = draw_lengths(summary)
    if finds(summary, "loss_by_place"):
        figures["by_place.png"] = draw_places(summary)
    if finds(summary, "attention_by_distance"):
        figures["identical_words.png"] = draw_identical_words(summary)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=120)
    return [*figures]


def is_begun(task: dict[str, Any]) -> bool:
    """Whether a cell of the task is finished."""
    return any(found["evaluations"] for found in task["schemes"].values())


def has_many_scores(summary: dict[str, Any]) -> bool:
    """Whether there are more tasks than lines are drawn for, all with scores that are 1 at best."""
    tasks = [task for task in summary["tasks"].values() if is_begun(task)]
    return len(tasks) > COLUMNS and all(task["higher_is_better"] for task in tasks)


def finds(summary: dict[str, Any], key: str) -> list[str]:
    """The tasks in which some scheme has a score."""
    return [
        name
        for name, task in summary["tasks"].items()
        if any(key in scores for found in task["schemes"].values() for scores in found["evaluations"].values())
    ]


def styles(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A colour, a line and a marker for each scheme, the same in all figures."""
    names = list(dict.fromkeys(name for task in summary["tasks"].values() for name in task["schemes"]))
    colours = colormaps["tab10"]
    return {
        name: {"color": colours(i % 10), "linestyle": ("-", "--", ":", "-.")[i // 10 % 4], "marker": "os^vDPX"[i % 7]}
        for i, name in enumerate(names)
    }


def plain(style: dict[str, Any]) -> dict[str, Any]:
    """A style without its marker, for lines of many points."""
    return {key: value for key, value in style.items() if key != "marker"}


def panels(titles: Iterable[str], height: float = 3.6) -> tuple[Figure, dict[str, Axes]]:
    """A panel for each title."""
    titles = [*titles]
    columns = min(len(titles), COLUMNS)
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(max(4.3 * columns + 1.6, 7), height * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(titles) :]:
        axes.set_axis_off()
    places = dict(zip(titles, grid.flat, strict=False))
    for name, axes in places.items():
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.3)
    return figure, places


def add_legend(figure: Figure, places: dict[str, Axes]) -> None:
    """One legend for all panels, beside them."""
    entries: dict[str, Any] = {}
    for axes in places.values():
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(entries.values(), entries.keys(), loc="outside right upper", fontsize=8)


def add_line(
    axes: Axes, at: Iterable[float], rows: Iterable[dict[str, Any]], label: str, color: Any, **style: Any
) -> None:
    """The means over seeds, and their range as a band; without those that diverged."""
    points = [
        (x, row["mean"], row["lowest"], row["highest"])
        for x, row in zip(at, rows, strict=True)
        if row["mean"] is not None
    ]
    if points:
        x, means, lows, highs = zip(*points, strict=True)
        axes.plot(x, means, color=color, linewidth=1.4, label=label, **style)
        axes.fill_between(x, lows, highs, color=color, alpha=0.2, linewidth=0)


def label_first(axes: Axes, label: str) -> None:
    """Names the vertical axis where a panel is the first of its row."""
    if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
        axes.set_ylabel(label)


def draw_curves(summary: dict[str, Any]) -> Figure:
    """The validation curve of each scheme: the mean over its seeds, with their range as a band."""
    figure, places = panels(name for name, task in summary["tasks"].items() if is_begun(task))
    style = styles(summary)
    for name, axes in places.items():
        task = summary["tasks"][name]
        key = f"validation_{task['metric']}"
        for scheme, found in task["schemes"].items():
            if key in found["curve"]:
                add_line(axes, found["curve"]["step"], found["curve"][key], scheme, **plain(style[scheme]))
        if task["metric"] in task.get("baseline", {}):
            axes.axhline(
                task["baseline"][task["metric"]], color="grey", linestyle="--", linewidth=1, label="frequencies alone"
            )
        threshold = summary["study"]["threshold"]
        if threshold is not None and task["metric"] == "loss":
            axes.axhline(threshold, color="grey", linestyle=":", linewidth=1, label=f"{threshold:g} nats")
        axes.set_xlabel("step")
        label_first(axes, f"validation {named(task['metric'])}")
    add_legend(figure, places)
    return figure


def lengths(summary: dict[str, Any]) -> dict[int, str]:
    """The tasks by their length, where each has another and the kind is one."""
    tasks = summary["study"]["tasks"]
    by_length = {task["length"]: name for name, task in tasks.items()}
    alike = len({task["kind"] for task in tasks.values()}) == 1 and len(by_length) == len(tasks)
    return dict(sorted(by_length.items())) if alike else {}


def draw_steps(summary: dict[str, Any]) -> Figure:
    """The steps that each scheme took to the threshold, against the length; above the line where none did."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    tasks, style, beyond = lengths(summary), styles(summary), 1.3 * summary["study"]["steps"]
    for shift, scheme in enumerate(style):
        points = []
        for length, name in tasks.items():
            steps = summary["tasks"][name]["schemes"].get(scheme, {}).get("steps_to_threshold", [])
            values = [beyond if step is None else step for step in steps]
            if values:
                points.append((length * 1.012**shift, sum(values) / len(values), min(values), max(values)))
        if points:
            places, means, lows, highs = zip(*points, strict=True)
            below = [mean - low for mean, low in zip(means, lows, strict=True)]
            above = [high - mean for mean, high in zip(means, highs, strict=True)]
            axes.errorbar(places, means, yerr=[below, above], capsize=2, linewidth=1.2, label=scheme, **style[scheme])
    axes.axhline(summary["study"]["steps"], color="grey", linewidth=1, linestyle=":")
    axes.text(min(tasks), beyond * 1.03, "above the line: not reached", fontsize=8, color="grey")
    axes.set_xscale("log", base=2)
    axes.set_xticks([*tasks], [str(length) for length in tasks])
    axes.minorticks_off()
    axes.set(
        xlabel="window (tokens)", ylabel=f"steps to {summary['study']['threshold']:g} nats", ylim=(0, beyond * 1.12)
    )
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def draw_lengths(summary: dict[str, Any]) -> Figure:
    """The score of each scheme at the lengths of training (the first point) and at the longer ones."""
    figure, places = panels(name for name, task in summary["tasks"].items() if is_begun(task))
    style = styles(summary)
    for name, axes in places.items():
        task, settings = summary["tasks"][name], summary["study"]["tasks"][name]
        for scheme, found in task["schemes"].items():
            rows = {}
            for evaluation, scores in found["evaluations"].items():
                if task["metric"] in scores:
                    rows[settings["length"] if evaluation == "validation" else int(evaluation)] = scores[task["metric"]]
            at = sorted(rows)
            add_line(axes, at, [rows[x] for x in at], scheme, markersize=4, **style[scheme])
        axes.axvline(settings["length"], color="grey", linewidth=1, linestyle=":")
        axes.set_xscale("log", base=2)
        ticks = [settings["length"], *settings.get("test_lengths", ())]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("length (tokens)")
        label_first(axes, named(task["metric"]))
    add_legend(figure, places)
    return figure


def draw_scores(summary: dict[str, Any]) -> Figure:
    """The mean score of each scheme at each task, as a number on its colour: a panel for each length."""
    tasks = {name: task for name, task in summary["tasks"].items() if is_begun(task)}
    schemes = [*styles(summary)]
    sets = evaluation_names(tasks.values())
    titles = {key: "as in training" if key == "validation" else f"{key} tokens" for key in sets}
    figure = Figure(figsize=(2.2 + 0.62 * len(tasks) * len(sets), 1.9 + 0.27 * len(schemes)), layout="constrained")
    for panel, key in zip(figure.subplots(1, len(sets), squeeze=False, sharey=True).flat, sets, strict=True):
        means = [[mean_score(task, scheme, key) for task in tasks.values()] for scheme in schemes]
        panel.imshow(
            [[math.nan if mean is None else mean for mean in row] for row in means],
            cmap="viridis",
            vmin=0,
            vmax=1,
            aspect="auto",
        )
        for y, (scheme, row) in enumerate(zip(schemes, means, strict=True)):
            for x, (task, mean) in enumerate(zip(tasks.values(), row, strict=True)):
                text = score(task["schemes"][scheme], key, task["metric"], SHORT) if scheme in task["schemes"] else ""
                colour = "white" if mean is not None and mean < 0.6 else "black"
                panel.text(x, y, text, ha="center", va="center", fontsize=7, color=colour)
        panel.set_title(titles[key], fontsize=10)
        panel.set_xticks(range(len(tasks)), [*tasks], rotation=45, ha="right", fontsize=8)
        panel.set_yticks(range(len(schemes)), schemes, fontsize=8)
    return figure


def draw_places(summary: dict[str, Any]) -> Figure:
    """The loss by the place in the window: at the length of training, and at the longest one."""
    views = {}
    for name in finds(summary, "loss_by_place"):
        settings = summary["study"]["tasks"][name]
        views[f"{name}, {settings['length']} tokens"] = (name, "validation", settings["length"])
        if longest := max(settings.get("test_lengths", ()), default=0):
            views[f"{name}, {longest} tokens"] = (name, str(longest), longest)
    figure, places = panels(views)
    style = styles(summary)
    for title, axes in places.items():
        name, evaluation, length = views[title]
        for scheme, found in summary["tasks"][name]["schemes"].items():
            rows = found["evaluations"].get(evaluation, {}).get("loss_by_place", [])
            at = [(part + 0.5) * length / len(rows) for part in range(len(rows))]
            add_line(axes, at, rows, scheme, **plain(style[scheme]))
        axes.axvline(summary["study"]["tasks"][name]["length"], color="grey", linewidth=1, linestyle=":")
        axes.set_xlabel("place in the window (tokens)")
        label_first(axes, named("loss"))
    add_legend(figure, places)
    return figure


def draw_identical_words(summary: dict[str, Any]) -> Figure:
    """Attention by distance where one word fills the window; and the long-term decay, of schemes that rotate."""
    tasks, decay = finds(summary, "attention_by_distance"), "RoFormer's long-term decay"
    figure, places = panels([*tasks, decay] if finds(summary, "long_term_decay") else tasks)
    style = styles(summary)
    for name in tasks:
        for scheme, found in summary["tasks"][name]["schemes"].items():
            look, scores = plain(style[scheme]), found["evaluations"].get("validation", {})
            rows = scores.get("attention_by_distance", [])
            farthest = len(rows) // 2
            add_line(places[name], range(-farthest, len(rows) - farthest), rows, scheme, **look)
            if decay in places and (rows := scores.get("long_term_decay", [])):
                add_line(places[decay], range(len(rows)), rows, scheme, **look)
        places[name].set_yscale("log")
        places[name].set_xlabel("distance (tokens)")
        label_first(places[name], "mean attention")
    if decay in places:
        places[decay].set_xlabel("distance (tokens)")
        places[decay].set_ylabel("bound over its value at 0")
    add_legend(figure, places)
    return figure
