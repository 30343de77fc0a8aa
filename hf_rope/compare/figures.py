"""The figures of a study, drawn from its summary alone."""

from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

LABELS = {
    "loss": "validation loss (nats)",
    "bits_per_byte": "validation, bits per byte",
    "accuracy": "validation accuracy",
}
COLUMNS = 3


def draw(summary: dict[str, Any], folder: Path) -> list[str]:
    """Writes the figures that the study has something to show in; returns the names of the files."""
    figures = {"curves.png": draw_curves(summary)}
    if summary["study"]["threshold"] is not None and len(lengths(summary)) > 1:
        figures["steps_to_threshold.png"] = draw_steps(summary)
    if any(task.get("test_lengths") for task in summary["study"]["tasks"].values()):
        figures["by_length.png"] = draw_lengths(summary)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=120)
    return [*figures]


def styles(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A colour and a marker for each scheme, the same in all figures."""
    names = list(dict.fromkeys(name for task in summary["tasks"].values() for name in task["schemes"]))
    colours = colormaps["tab20" if len(names) > 10 else "tab10"]
    return {
        name: {"color": colours(i % colours.N), "linestyle": "-" if i < colours.N else "--", "marker": "os^vD"[i % 5]}
        for i, name in enumerate(names)
    }


def panels(summary: dict[str, Any], height: float = 3.6) -> tuple[Figure, dict[str, Axes]]:
    """A panel for each task."""
    tasks = [*summary["tasks"]]
    columns = min(len(tasks), COLUMNS)
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(max(4.3 * columns + 1.6, 7), height * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(tasks) :]:
        axes.set_axis_off()
    places = dict(zip(tasks, grid.flat, strict=False))
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


def draw_curves(summary: dict[str, Any]) -> Figure:
    """The validation curve of each scheme: the mean over its seeds, with their range as a band."""
    figure, places = panels(summary)
    style = styles(summary)
    for name, axes in places.items():
        task = summary["tasks"][name]
        for scheme, found in task["schemes"].items():
            points = [
                (step, row["mean"], row["lowest"], row["highest"])
                for step, row in zip(
                    found["curve"].get("step", ()), found["curve"].get(f"validation_{task['metric']}", ()), strict=True
                )
                if row["mean"] is not None
            ]
            if points:
                steps, means, lows, highs = zip(*points, strict=True)
                axes.plot(
                    steps,
                    means,
                    color=style[scheme]["color"],
                    linestyle=style[scheme]["linestyle"],
                    linewidth=1.4,
                    label=scheme,
                )
                axes.fill_between(steps, lows, highs, color=style[scheme]["color"], alpha=0.2, linewidth=0)
        if task["metric"] in task.get("baseline", {}):
            axes.axhline(
                task["baseline"][task["metric"]], color="grey", linestyle="--", linewidth=1, label="frequencies alone"
            )
        threshold = summary["study"]["threshold"]
        if threshold is not None and task["metric"] == "loss":
            axes.axhline(threshold, color="grey", linestyle=":", linewidth=1, label=f"{threshold:g} nats")
        axes.set_xlabel("step")
        if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            axes.set_ylabel(LABELS[task["metric"]])
    add_legend(figure, places)
    return figure


def lengths(summary: dict[str, Any]) -> dict[int, str]:
    """The tasks by their length, where these differ and the kind is one."""
    tasks = summary["study"]["tasks"]
    by_length = {task["length"]: name for name, task in tasks.items()}
    return dict(sorted(by_length.items())) if len({task["kind"] for task in tasks.values()}) == 1 else {}


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
    figure, places = panels(summary)
    style = styles(summary)
    for name, axes in places.items():
        task, settings = summary["tasks"][name], summary["study"]["tasks"][name]
        for scheme, found in task["schemes"].items():
            points = []
            for evaluation, scores in found["evaluations"].items():
                length = settings["length"] if evaluation == "validation" else int(evaluation)
                row = scores.get(task["metric"], {})
                if row.get("mean") is not None:
                    points.append((length, row["mean"], row["lowest"], row["highest"]))
            if points:
                at, means, lows, highs = zip(*sorted(points), strict=True)
                axes.plot(at, means, linewidth=1.4, markersize=4, label=scheme, **style[scheme])
                axes.fill_between(at, lows, highs, color=style[scheme]["color"], alpha=0.15, linewidth=0)
        axes.axvline(settings["length"], color="grey", linewidth=1, linestyle=":")
        axes.set_xscale("log", base=2)
        ticks = [settings["length"], *settings.get("test_lengths", ())]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("length (tokens)")
        if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            axes.set_ylabel(LABELS[task["metric"]].removeprefix("validation").strip(" ,"))
    add_legend(figure, places)
    return figure
