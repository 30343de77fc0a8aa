"""`hf-rope compare STUDY --output DIR`: a study's cells, then its report; `hf-rope compare report DIR`: that alone."""

from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from typer.core import TyperGroup


class StudyOrCommand(TyperGroup):
    """Takes a first word that is no command as the study of `run`."""

    def parse_args(self, ctx, args):
        known = {*self.commands, "--help"}
        return super().parse_args(ctx, args if not args or args[0] in known else ["run", *args])


app = typer.Typer(cls=StudyOrCommand, no_args_is_help=True, help="Compare position schemes at the same budget.")


def compare_package() -> ModuleType:
    """`hf_rope.compare`, which needs more than the package does."""
    try:
        from . import compare
    except ModuleNotFoundError as error:
        raise ValueError(f"Comparing needs more packages ({error}): pip install 'hf-rope[compare]'.") from None
    return compare


@app.command()
def run(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="A YAML file.")],
    output: Annotated[Path, typer.Option(help="The folder for cells and report; new or empty, but for --resume.")],
    workers: Annotated[int, typer.Option(help="Cells that run at a time, with one thread each.")] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what an earlier run left in the folder.")
    ] = False,
    backend: Annotated[str, typer.Option(help="loky, ray or dask.")] = "loky",
    start: Annotated[
        Path | None, typer.Option(help="The folder of the study that it starts from; `start` in --output if left out.")
    ] = None,
) -> None:
    """Run all cells of a study that are not finished, and report. `run` may be left out."""
    package = compare_package()
    failed = package.compare(study, output, workers=workers, resume=resume, backend=backend, start=start)
    package.report(output)
    show(output)
    if failed:
        number = "1 cell" if len(failed) == 1 else f"{len(failed)} cells"
        errors = "; ".join(f"{name}: {text.strip().splitlines()[-1]}" for name, text in failed.items())
        raise ValueError(f"{number} failed, and --resume tries again: {errors}")


@app.command()
def report(output: Annotated[Path, typer.Argument(metavar="DIR", help="The --output of a study.")]) -> None:
    """Write report.md, results.json and the figures from the cells that are finished."""
    compare_package().report(output)
    show(output)


def show(output: Path) -> None:
    Console().print(Markdown((output / "report.md").read_text(encoding="utf-8")))
    print(f"In {output}: {', '.join(sorted(path.name for path in output.iterdir()))}")
