"""`hf-rope convert SRC DST`: a native checkpoint, a folder or a name on the Hub, as an hf_rope one with its code.

The other commands are in files of their own: `hf-rope inspect` in cli_inspect.py.
"""

import os
import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .cli_inspect import inspect
from .convert import Report, convert_with_report
from .convert.check import LIMIT, check_against_source, equal
from .convert.checkpoint import read_tokenizer
from .terminal import errors_in_a_sentence

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command()(inspect)


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


if __name__ == "__main__":
    app()
