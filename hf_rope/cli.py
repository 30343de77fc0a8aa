"""`hf-rope convert SRC DST`: a native checkpoint as an hf_rope one with its code; `hf-rope to-native SRC DST`: back.

`hf-rope inspect`, `compare`, `export` and `retrofit` are in files of their own, cli_*.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import transformers
import typer
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from transformers import PreTrainedModel
from typer.core import TyperGroup

from . import cli_compare
from .cli_export import export
from .cli_inspect import inspect
from .cli_options import PositionOptions, read_position_options
from .cli_retrofit import retrofit
from .convert import Report
from .convert import convert as convert_checkpoint
from .convert import to_native as checkpoint_to_native
from .convert.check import LIMIT, check_against_source, equal
from .convert.checkpoint import read_tokenizer, sentence_transformer_files, use_own_encoder
from .folders import check_free, new_folder, save_beside

Source = Annotated[str, typer.Argument(metavar="SRC", help="A folder or a name on the Hub.")]
Target = Annotated[Path, typer.Argument(metavar="DST", help="The folder to write; new or empty.")]
Check = Annotated[
    bool, typer.Option("--check", help="Compare with the source's class first; write nothing if they differ.")
]


class Commands(TyperGroup):
    """Ends a command with one sentence and exit code 1 where something cannot be read or does not fit."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except (ValueError, TypeError, OSError, SafetensorError) as error:  # the last where a disk is full
            Console(stderr=True, soft_wrap=True).print(f"Error: {error}", markup=False, highlight=False)
            raise typer.Exit(1) from None


app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command()(inspect)
app.command()(export)
app.command()(retrofit)
app.add_typer(cli_compare.app, name="compare")


@app.callback()
def main() -> None:
    """Encoders in which the position scheme is a setting."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@app.command()
def convert(
    source: Source,
    target: Target,
    position: Annotated[
        str | None, typer.Option(help="Another position scheme; the model then needs training.", show_default=False)
    ] = None,
    position_options: PositionOptions = None,
    check: Check = False,
) -> None:
    """Convert a checkpoint to hf_rope: model, code, tokenizer, and what sentence-transformers reads beside them."""
    options = read_position_options(position_options)
    run(lambda: convert_checkpoint(source, position, options, return_report=True), source, target, check)


@app.command()
def to_native(source: Source, target: Target, check: Check = False) -> None:
    """Convert an hf_rope checkpoint back: `learned` to BERT, `rotary` to RoFormer, Jina v3, NomicBERT or GTE."""
    run(lambda: checkpoint_to_native(source, return_report=True), source, target, check)


def run(make: Callable[[], tuple[PreTrainedModel, Report]], source: str, target: Path, check: bool) -> None:
    """All of a command; raises where something does not fit, and has then written nothing."""
    check_free(target)
    model, report = make()
    tokenizer = read_tokenizer(source)
    if tokenizer is None:
        report.notes.append("The source has no tokenizer: none is written.")
    others = sentence_transformer_files(source)
    if others:
        report.notes.append(f"The files of sentence-transformers are carried over: {', '.join(sorted(others))}.")
    if check and report.needs_training:
        raise ValueError(
            f"--check compares equal models, and position {report.scheme!r} is new: convert without --check."
        )
    if check:
        greatest, size = check_against_source(source, model)
        found = f"The greatest difference from the source's own class is {greatest:.2g}, of outputs up to {size:.2g}"
        if not equal(greatest, size):
            raise ValueError(f"{found}; {LIMIT * max(1, size):.2g} is allowed, so nothing is written.")
        report.notes.append(f"{found}.")
    with new_folder(target) as folder:
        model.save_pretrained(folder)
        save_beside(folder, tokenizer, others)
        report.notes += use_own_encoder(folder)
    show(report, target)


def show(report: Report, target: Path) -> None:
    """Prints the report; tensors of many layers with one reason are one row."""
    positions = "" if report.scheme is None else f", positions {report.scheme!r}"
    table = Table(title=f"{report.source} -> {report.target}{positions}")
    for column in ("tensor", "number", "what", "why"):
        table.add_column(column)
    table.add_row("all others", str(report.copied), "copied", "")
    for name, count, what, why in report.rows():
        table.add_row(name, str(count), what, why)
    console = Console()
    console.print(table)
    for note in [*report.notes, f"Written to {target}."]:
        console.print(note, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
