"""`hf-rope inspect CHECKPOINT TEXT`: what the positions of a model do, as tables, pictures and arrays."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .analysis import Findings
from .analysis import inspect as inspect_checkpoint
from .cli_options import read_object

WRITTEN = {"arrays.npz", "findings.json", "score_terms.png", "attention_by_distance.png", "long_term_decay.png"}

ROPE = '{"rope_type": "linear", "factor": 4}'


def inspect(
    checkpoint: Annotated[str, typer.Argument(help="A folder or a name on the Hub; BERT and others are converted.")],
    text: Annotated[str, typer.Argument(help="A sentence or a longer text; - reads it from standard input.")],
    output: Annotated[Path, typer.Option(help="The folder for pictures and arrays.")] = Path("runs/inspect"),
    layer: Annotated[int, typer.Option(help="The layer whose terms are drawn.")] = 0,
    head: Annotated[
        int | None, typer.Option(help="Its head; left out, the one in which positions matter most.", show_default=False)
    ] = None,
    tokens: Annotated[int, typer.Option(help="The first tokens of the text, of which the terms are.")] = 24,
    window: Annotated[
        int | None,
        typer.Option(help="Attention is averaged over windows of so many tokens; 128 if left out.", show_default=False),
    ] = None,
    longest: Annotated[int, typer.Option(help="The longest distance of the decay.")] = 512,
    rope: Annotated[
        list[str] | None,
        typer.Option(
            help="rope_parameters, as JSON, to draw the decay for as well; may be repeated.", show_default=False
        ),
    ] = None,
) -> None:
    """See what positions do: the terms of the scores, attention by distance, decay, and what a shift changes."""
    if output.exists() and not (output.is_dir() and {path.name for path in output.iterdir()} <= WRITTEN):
        raise ValueError(f"{output} holds other files than those of an earlier inspection: choose another --output.")
    try:
        from .plots import draw
    except ModuleNotFoundError as error:
        raise ValueError(f"The pictures need matplotlib ({error}): pip install 'hf-rope[inspect]'.") from None
    settings: Any = {"tokens": tokens, "window": window, "longest": longest}
    settings["rope_parameters"] = [read_object("--rope", text, ROPE) for text in rope or []]
    findings = inspect_checkpoint(checkpoint, sys.stdin.read() if text == "-" else text, **settings)
    layers, heads = findings.attention.special.shape
    if not 0 <= layer < layers or not 0 <= (head or 0) < heads:
        raise ValueError(
            f"--layer {layer}, --head {head}: the model has layers 0 to {layers - 1} and heads 0 to {heads - 1}."
        )
    output.mkdir(parents=True, exist_ok=True)
    for name in WRITTEN:
        (output / name).unlink(missing_ok=True)
    findings.save(output)
    draw(findings, output, layer, head)
    show_findings(findings)
    print(f"In {output}: {', '.join(sorted(path.name for path in output.iterdir()))}")


def show_findings(findings: Findings) -> None:
    """Prints a row a layer, means over heads, and a row a shift."""
    spreads = {name: spread.mean(-1) for name, spread in findings.spread().items() if spread.max() > 1e-9}
    attention = findings.attention
    table = Table(title=f"{findings.checkpoint}: positions {findings.scheme!r}, a layer's mean over its heads")
    table.caption = (
        "Each term of the scores: its standard deviation over the keys. Then how far attention goes, special tokens "
        "left out, and the share that goes to these."
    )
    for column in ("layer", *(name.replace("-", "-\n") for name in spreads), "tokens\naway", "to special\ntokens"):
        table.add_column(column, justify="right")
    for layer, (distance, special) in enumerate(zip(attention.mean_distance, attention.special, strict=True)):
        terms = (f"{spread[layer]:.2f}" for spread in spreads.values())
        table.add_row(str(layer), *terms, f"{distance.mean():.1f}", f"{special.mean():.0%}")
    shifts = Table("all positions moved by", "greatest change of a hidden state")
    shifts.title = f"Declared {'' if findings.shift_invariant else 'not '}shift invariant"
    for shift, change in findings.shifts.items():
        size = f"{change:.1e}, of states up to {findings.largest:.1f}" if change is not None else "beyond the table"
        shifts.add_row(str(shift), size)
    console = Console()
    console.print(table)
    console.print(shifts)
