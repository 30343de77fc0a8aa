"""`hf-rope convert SRC DST`: a native checkpoint, a folder or a name on the Hub, as an hf_rope one with its code.

`hf-rope inspect CHECKPOINT TEXT`: what the positions of a model do, as tables, pictures and arrays.
"""

import json
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import transformers
import typer
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .convert import Report, convert_with_report
from .convert.check import LIMIT, check_against_source, equal
from .convert.checkpoint import read_tokenizer
from .inspect import Findings
from .inspect import inspect as inspect_checkpoint

PICTURES = ("score_terms.png", "attention_by_distance.png", "long_term_decay.png")

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Encoders in which the position scheme is a setting."""


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A folder or a name on the Hub.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write; new or empty.")],
    position: Annotated[
        str | None, typer.Option(help="Another position scheme; the model then needs training.", show_default=False)
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Compare with the native class first; write nothing if they differ.")
    ] = False,
) -> None:
    """Convert a checkpoint to hf_rope: model, code and tokenizer."""
    with errors_in_a_sentence():
        run(source, target, position, check)


@app.command()
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
    with errors_in_a_sentence():
        written = {"arrays.npz", "findings.json", *PICTURES}
        if output.exists() and not (output.is_dir() and {path.name for path in output.iterdir()} <= written):
            raise ValueError(
                f"{output} holds other files than those of an earlier inspection: choose another --output."
            )
        try:
            from .plots import draw
        except ModuleNotFoundError as error:
            raise ValueError(f"The pictures need matplotlib ({error}): pip install 'hf-rope[inspect]'.") from None
        settings: Any = {"tokens": tokens, "window": window, "longest": longest}
        settings["rope_parameters"] = [read_rope(text) for text in rope or []]
        findings = inspect_checkpoint(checkpoint, sys.stdin.read() if text == "-" else text, **settings)
        layers, heads = findings.attention.special.shape
        if not 0 <= layer < layers or not 0 <= (head or 0) < heads:
            raise ValueError(
                f"--layer {layer}, --head {head}: the model has layers 0 to {layers - 1} and heads 0 to {heads - 1}."
            )
        output.mkdir(parents=True, exist_ok=True)
        for name in written:
            (output / name).unlink(missing_ok=True)
        findings.save(output)
        draw(findings, output, layer, head)
        show_findings(findings)
        print(f"In {output}: {', '.join(sorted(path.name for path in output.iterdir()))}")


@contextmanager
def errors_in_a_sentence() -> Iterator[None]:
    """Ends the command with one sentence and exit code 1 where something cannot be read or does not fit."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        Console(stderr=True, soft_wrap=True).print(f"Error: {error}", markup=False, highlight=False)
        raise typer.Exit(1) from None


def run(source: str, target: Path, position: str | None, check: bool) -> None:
    """All of `convert`; raises where something does not fit, and has then written nothing."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists and is not an empty folder: choose another, or remove it first.")
    model, report = convert_with_report(source, position)
    tokenizer = read_tokenizer(source)
    if tokenizer is None:
        report.notes.append("The source has no tokenizer: none is written.")
    if check and report.needs_training:
        raise ValueError(f"--check compares equal models, and position {position!r} is new: convert without --check.")
    if check:
        greatest, size = check_against_source(source, model, tokenizer)
        found = f"The greatest difference from the native class is {greatest:.2g}, of outputs up to {size:.2g}"
        if not equal(greatest, size):
            raise ValueError(f"{found}; {LIMIT * max(1, size):.2g} is allowed, so nothing is written.")
        report.notes.append(f"{found}.")
    write(target, model, tokenizer)
    show(report, target)


def write(target: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Saves into a folder beside the target and renames it, so that the target is complete or not there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        folder.chmod(0o755)
        if target.exists():
            target.rmdir()
        os.rename(folder, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def show(report: Report, target: Path) -> None:
    """Prints the report; tensors of many layers with one reason are one row."""
    table = Table(title=f"{report.source} -> {report.target}, positions {report.scheme!r}")
    for column in ("tensor", "number", "what", "why"):
        table.add_column(column)
    table.add_row("all others", str(report.copied), "copied", "")
    for what, tensors in (("dropped", report.dropped), ("new", report.new)):
        rows = Counter((re.sub(r"\.\d+(?=\.)", ".*", name), why) for name, why in tensors.items())
        for (name, why), count in rows.items():
            table.add_row(name, str(count), what, why)
    console = Console()
    console.print(table)
    for note in [*report.notes, f"Written to {target}."]:
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def read_rope(text: str) -> dict[str, Any]:
    """The value of --rope."""
    try:
        parameters = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--rope {text!r} is no JSON ({error}).") from None
    if not isinstance(parameters, dict):
        raise ValueError(f'--rope is {text}; it must be a JSON object such as {{"rope_type": "linear", "factor": 4}}.')
    return parameters


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


if __name__ == "__main__":
    app()
