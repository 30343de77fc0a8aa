"""`hf-rope export SRC DST`: a checkpoint as an ONNX folder that needs neither PyTorch nor this package."""

from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table


def export_package() -> ModuleType:
    """`hf_rope.export`, which needs more than the package does."""
    try:
        from . import export
    except ModuleNotFoundError as error:
        raise ValueError(f"Exporting needs more packages ({error}): pip install 'hf-rope[export]'.") from None
    return export


def export(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A folder or a name on the Hub; BERT and others are converted.")
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write; new or empty.")],
    int8: Annotated[bool, typer.Option("--int8", help="Write a graph with int8 weights and activations too.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Compare with the model on real text; write nothing if they differ.")
    ] = False,
) -> None:
    """Write a checkpoint as ONNX, with its tokenizer and what sentence-transformers reads beside it."""
    package = export_package()
    stages = package.stages(int8, check)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(stages[0], total=len(stages))

        def show_stage(stage: str) -> None:
            progress.update(bar, description=stage, completed=stages.index(stage))

        exported = package.export(source, target, int8=int8, check=check, on_stage=show_stage)
    show(exported, target)


def show(exported: Any, target: Path) -> None:
    """Prints a row for each file and for PyTorch, what was found, and what else there is to know."""
    report, console = exported.report, Console()
    table = Table(title=f"{report.source} -> ONNX")
    for column in ("file", "size", "texts/s"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for name in (*exported.sizes, "PyTorch"):
        size, speed = exported.sizes.get(name), exported.speeds.get(name)
        table.add_row(name, f"{size / 1e6:.1f} MB" if size else "", f"{speed:.1f}" if speed else "")
    console.print(table)
    notes = [
        f"Timed with 8 texts at a time of {exported.tokens:.0f} tokens on average, without tokenizing, threads: "
        f"{exported.threads}.",
        f"The graph takes {', '.join(exported.inputs)} and gives {', '.join(exported.outputs)}.",
    ]
    if exported.difference is not None:
        notes.append(
            f"The greatest difference from the model is {exported.difference:.2g}, of outputs up to "
            f"{exported.size:.2g}."
        )
    if exported.cosine is not None:
        notes.append(f"The least cosine of the int8 graph with the model is {exported.cosine:.4f}.")
    notes += [f"The conversion's {what} tensors: {name} ({count}), {why}." for name, count, what, why in report.rows()]
    for note in [*notes, *report.notes, f"Written to {target}."]:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
