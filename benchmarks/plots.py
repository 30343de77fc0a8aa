"""The benchmark's pictures."""

from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.ticker import NullLocator


def draw(results: dict, folder: Path) -> None:
    """Writes a picture of each part that has been measured: by length, by scheme, and of linear attention."""
    threads = results["setting"]["threads"]
    for precision in {row["precision"]: None for row in results["rows"]}:
        rows = [row for row in results["rows"] if row["precision"] == precision]
        setting, ending = f"base width, {precision}, {threads} threads", f"_{precision}".replace("_float32", "")
        path = folder / f"speed_by_length{ending}.png"
        draw_lengths([row for row in rows if row["part"] == "lengths"], setting, path)
        draw_costs([row for row in rows if row["part"] == "costs"], setting, folder / f"scheme_cost{ending}.png")
    if results["memory"]:
        draw_memory(results["memory"], f"base width, float32, {threads} threads", folder / "memory_by_length.png")
    if results.get("linear"):
        draw_linear(results["linear"], folder / "linear_attention.png")
        draw_favor(results["favor"], folder / "favor_error.png")


def draw_lengths(rows: list[dict], setting: str, path: Path) -> None:
    if not rows:
        return
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
    finish(figure, axes, path)


def draw_memory(memory: dict, setting: str, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, figures in memory.items():
        label, style = ("native RoFormer", "s--") if name == "RoFormer" else (f"hf_rope {name}", "o-")
        axes.plot([int(n) for n in figures], list(figures.values()), style, label=label)
    axes.set(xscale="log", yscale="log", xlabel="tokens in one sequence", ylabel="MB above the weights")
    ticks = [int(n) for n in next(iter(memory.values()))]
    axes.set_xticks(ticks, [str(n) for n in ticks], minor=False)
    axes.set_title(f"Peak memory of a forward\n{setting}")
    finish(figure, axes, path)


def draw_costs(rows: list[dict], setting: str, path: Path) -> None:
    if not rows:
        return
    rows = sorted(rows, key=lambda row: row["median"])
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    costs = [row["median"] for row in rows]
    spread = [[row["median"] - row["low"] for row in rows], [row["high"] - row["median"] for row in rows]]
    bars = axes.barh([row["work"] for row in rows], costs, xerr=spread)
    axes.bar_label(bars, [f"{cost:.2f}" for cost in costs], padding=12)
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xlabel="time of a forward over that of none", xlim=(0, max(costs) * 1.15))
    axes.set_title(f"Cost of each position scheme, 4x512\n{setting}")
    figure.savefig(path, dpi=150)


def draw_linear(measured: dict, path: Path) -> None:
    """Time a token and peak memory by length, side by side."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    lengths = [int(n) for n in max(measured.values(), key=len)]
    for (name, figures), style in zip(measured.items(), ("o-", "o-", "s--", "s--"), strict=True):
        longest = [int(n) for n in figures]
        times = [1e6 * x["seconds"] / n for n, x in zip(longest, figures.values(), strict=True)]
        for axes, values in zip(panels, (times, [x["megabytes"] for x in figures.values()]), strict=True):
            axes.plot(longest, values, style, label=name)
    for axes, what in zip(panels, ("microseconds a token", "MB above the weights"), strict=True):
        axes.set(xscale="log", yscale="log", xlabel="tokens in one sequence", ylabel=what)
        axes.set_xticks(lengths, [f"{n:,}" for n in lengths], minor=False)
    panels[0].set_title("Time of a forward")
    panels[1].set_title("Peak memory of a forward")
    figure.suptitle("Rotary encoders, 2 layers x 256, float32, one thread")
    for axes in panels:
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
    panels[0].legend()
    figure.savefig(path, dpi=150)


def draw_favor(errors: dict, path: Path) -> None:
    """How near FAVOR+ is to softmax attention, by the number of its features."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for scale, by_features in errors.items():
        counts = [int(n) for n in by_features]
        axes.plot(counts, list(by_features.values()), "o-", label=f"queries and keys of deviation {scale}")
    first = next(iter(errors.values()))
    guide = [first[str(counts[0])] * (counts[0] / n) ** 0.5 for n in counts]
    axes.plot(counts, guide, ":", color="gray", label="1 / square root of the features")
    axes.set(xscale="log", yscale="log", xlabel="random features", ylabel="error over the size of the output")
    axes.set_xticks(counts, [str(n) for n in counts], minor=False)
    axes.set_title("FAVOR+ against softmax attention\n128 tokens, one head of 64, mean over 20 draws")
    finish(figure, axes, path)


def finish(figure, axes, path: Path) -> None:
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
