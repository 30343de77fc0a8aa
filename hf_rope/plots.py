"""Pictures of what `inspect` found."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from .analysis import Findings

NOTHING = 1e-9
"""Terms that are nowhere larger than this are left out: they are rounding."""
LABELLED = 40
"""The most tokens whose names fit along an axis."""
LOWEST = 1e-4
"""Where the picture of attention ends below."""
NEAR = 8
"""Distances up to this one have equal room; farther ones are logarithmic."""


def draw(findings: Findings, folder: Path, layer: int = 0, head: int | None = None) -> None:
    """Writes score_terms.png, attention_by_distance.png and, where something rotates, long_term_decay.png.

    Args:
        layer, head: whose terms to draw; without a head, the one of the layer in which positions matter most.
    """
    if head is None:
        head = most_positional(findings, layer)
    draw_terms(findings, layer, head).savefig(folder / "score_terms.png", dpi=120)
    draw_attention(findings).savefig(folder / "attention_by_distance.png", dpi=120)
    if findings.decay:
        draw_decay(findings).savefig(folder / "long_term_decay.png", dpi=120)


def most_positional(findings: Findings, layer: int) -> int:
    """The head of a layer whose terms other than content-content spread most over the keys."""
    spreads = [spread[layer] for name, spread in findings.spread().items() if name != "content-content"]
    return int(np.argmax(sum(spreads)))


def draw_terms(findings: Findings, layer: int, head: int) -> Figure:
    """A panel each term of one head, their sum, and the model's attention."""
    panels = {name: term[layer, head] for name, term in findings.terms.items() if np.abs(term).max() > NOTHING}
    spreads = findings.spread()
    titles = {name: f"{name}, spread {spreads[name][layer, head]:.2f}" for name in panels}
    scores = sum(term[layer, head] for term in findings.terms.values())
    panels["sum"], titles["sum"] = scores, f"their sum, spread {scores.std(-1).mean():.2f}"
    panels["attention"], titles["attention"] = findings.probabilities[layer, head], "attention, the softmax of the sum"

    columns = 2 if len(panels) <= 4 else 3
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns + 1.2, 4.4 * rows + 0.9), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    limit = max(np.abs(panel).max() for name, panel in panels.items() if name != "attention")
    places = dict(zip(panels, grid.flat, strict=False))
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for name, axes in places.items():
        colours = (
            {"cmap": "viridis", "vmin": 0} if name == "attention" else {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
        )
        image = axes.imshow(panels[name], **colours)
        axes.set_title(titles[name], fontsize=10)
        label_tokens(axes, findings.tokens, outer=axes.get_subplotspec())
        if name == "attention":
            figure.colorbar(
                image, ax=axes, shrink=0.8, format=PercentFormatter(1, decimals=0), label="share of attention"
            )
        elif name == "sum":
            figure.colorbar(image, ax=axes, shrink=0.8, label="score before the softmax, all other panels")
    absent = [name for name in findings.terms if name not in panels]
    figure.suptitle(
        f"{findings.scheme}: the score of each pair of tokens as a sum, layer {layer}, head {head}\n"
        f"spread: standard deviation over keys. Terms that are zero: {', '.join(absent) or 'none'}",
        fontsize=11,
    )
    return figure


def label_tokens(axes: Axes, tokens: list[str], outer) -> None:
    """Tokens along both axes; names where they fit and where a panel is at the edge."""
    if len(tokens) <= LABELLED:
        places, size = range(len(tokens)), 7 if len(tokens) <= 26 else 5
        axes.set_yticks(places, tokens if outer.is_first_col() else [""] * len(tokens), fontsize=size)
        axes.set_xticks(places, tokens, rotation=90, fontsize=size)
    if outer.is_first_col():
        axes.set_ylabel("query")
    axes.set_xlabel("key")


def draw_attention(findings: Findings) -> Figure:
    """A panel each layer, a line each head: the mean probability of each distance."""
    attention = findings.attention
    layers, heads, _ = attention.mean.shape
    columns = min(layers, 3)
    rows = -(-layers // columns)
    figure = Figure(figsize=(4 * columns + 1, 2.9 * rows + 0.8), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    colours = colormaps["viridis"].resampled(heads)
    ticks = [n for n in (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096) if n <= attention.distances.max()]
    for axes in grid.flat[layers:]:
        axes.set_axis_off()
    for layer, axes in enumerate(grid.flat[:layers]):
        for head in range(heads):
            axes.plot(attention.distances, attention.mean[layer, head], color=colours(head), linewidth=1)
        axes.set_yscale("log")
        axes.set_ylim(LOWEST, 1.3)
        axes.set_xscale("symlog", base=2, linthresh=NEAR, linscale=2)
        axes.set_xticks(
            [-n for n in reversed(ticks)] + [0, *ticks], [str(-n) for n in reversed(ticks)] + ["0", *map(str, ticks)]
        )
        axes.minorticks_off()
        axes.tick_params(labelsize=7, labelbottom=layer + columns >= layers)
        axes.axvline(0, color="grey", linewidth=0.5)
        axes.grid(alpha=0.3)
        distance, special = attention.mean_distance[layer].mean(), attention.special[layer].mean()
        axes.set_title(f"layer {layer}: {distance:.0f} tokens away, {special:.0%} to special tokens", fontsize=9)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("mean attention to one token")
        if layer + columns >= layers:
            axes.set_xlabel("key position - query position, tokens")
    norm = BoundaryNorm(np.arange(heads + 1) - 0.5, heads)
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=grid, ticks=range(heads), label="head", aspect=40)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(
        f"{findings.scheme}: attention between tokens that are not special, by distance: the mean over all pairs\n"
        "beside each layer how far its attention goes, the mean over heads",
        fontsize=11,
    )
    return figure


def draw_decay(findings: Findings) -> Figure:
    """The curves of `long_term_decay`."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, curve in findings.decay.items():
        axes.plot(curve, linewidth=1.2, label=name)
    axes.set(
        xlabel="relative distance, tokens",
        ylabel="mean |S|: upper bound of the score,\nrelative to the contents",
        title="Long-term decay of rotary embeddings (RoFormer, fig. 2)",
        ylim=(0, None),
        xlim=(0, None),
    )
    axes.grid(alpha=0.3)
    axes.legend(title="rope_parameters", fontsize=8)
    return figure
