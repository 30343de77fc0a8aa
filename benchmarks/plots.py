"""The benchmark's pictures."""

from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.ticker import NullLocator


def draw(results: dict, folder: Path) -> None:
    """Writes speed_by_length.png, memory_by_length.png and scheme_cost.png, each where it has been measured."""
    setting = f"base width, float32, {results['setting']['threads']} threads"
    rows = [row for row in results["rows"] if row["part"] == "lengths"]
    if rows:
        figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
        lengths = [int(row["work"]) for row in rows]
        ours = [n / row["seconds"] for n, row in zip(lengths, rows, strict=True)]
        theirs = [speed / row["median"] for speed, row in zip(ours, rows, strict=True)]
        axes.plot(lengths, ours, "o-", label="hf_rope rotary")
        axes.plot(lengths, theirs, "s--", label="native RoFormer")
        for n, y, row in zip(lengths, theirs, rows, strict=True):
            axes.annotate(f"{row['median']:.2f}x", (n, y), textcoords="offset points", xytext=(0, -16), ha="center")
        axes.set(xscale="log", xlabel="tokens in one sequence", ylabel="tokens a second", ylim=(0, None))
        axes.set_xticks(lengths, [str(n) for n in lengths], minor=False)
        axes.set_title(f"Forward speed by length\n{setting}")
        finish(figure, axes, folder / "speed_by_length.png")
    if results["memory"]:
        figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
        for name, figures in results["memory"].items():
            label, style = ("native RoFormer", "s--") if name == "RoFormer" else (f"hf_rope {name}", "o-")
            axes.plot([int(n) for n in figures], list(figures.values()), style, label=label)
        axes.set(xscale="log", yscale="log", xlabel="tokens in one sequence", ylabel="MB above the weights")
        ticks = [int(n) for n in next(iter(results["memory"].values()))]
        axes.set_xticks(ticks, [str(n) for n in ticks], minor=False)
        axes.set_title(f"Peak memory of a forward\n{setting}")
        finish(figure, axes, folder / "memory_by_length.png")
    rows = sorted((row for row in results["rows"] if row["part"] == "costs"), key=lambda row: row["median"])
    if rows:
        figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
        costs = [row["median"] for row in rows]
        spread = [[row["median"] - row["low"] for row in rows], [row["high"] - row["median"] for row in rows]]
        bars = axes.barh([row["work"] for row in rows], costs, xerr=spread)
        axes.bar_label(bars, [f"{cost:.2f}" for cost in costs], padding=12)
        axes.axvline(1, color="black", linewidth=1)
        axes.set(xlabel="time of a forward over that of none", xlim=(0, max(costs) * 1.15))
        axes.set_title(f"Cost of each position scheme, 4x512\n{setting}")
        figure.savefig(folder / "scheme_cost.png", dpi=150)


def finish(figure, axes, path: Path) -> None:
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
