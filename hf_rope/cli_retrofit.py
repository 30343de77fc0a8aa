"""`hf-rope retrofit SRC DST --position rotary --texts FILES`: a checkpoint under other positions."""

import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .cli_options import PositionOptions, read_position_options
from .convert.checkpoint import read_config, read_tokenizer, sentence_transformer_files, use_own_encoder
from .convert.sources import SOURCES
from .folders import check_free, new_folder, save_beside
from .retrofit import Recipe
from .retrofit import retrofit as retrofit_checkpoint

DEFAULT = Recipe()


def retrofit(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A folder or a name on the Hub.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write; new or empty.")],
    position: Annotated[str, typer.Option(help="The new position scheme.")],
    texts: Annotated[
        list[str], typer.Option(help="A .txt or .jsonl file, or the name of a data set; may be repeated.")
    ],
    position_options: PositionOptions = None,
    steps: Annotated[int, typer.Option(help="At most so many steps.")] = DEFAULT.steps,
    minutes: Annotated[
        float | None, typer.Option(help="At most so many minutes; no limit if left out.", show_default=False)
    ] = DEFAULT.minutes,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW.")] = DEFAULT.learning_rate,
    warmup_share: Annotated[float, typer.Option(help="The share of steps with a rising rate.")] = DEFAULT.warmup_share,
    batch_size: Annotated[int, typer.Option(help="Short texts of a step.")] = DEFAULT.batch_size,
    short_length: Annotated[int, typer.Option(help="Tokens of a short text, at most.")] = DEFAULT.short_length,
    length: Annotated[
        int | None,
        typer.Option(help="Tokens of a long text; 512, or what the source reads, if left out.", show_default=False),
    ] = DEFAULT.length,
    long_share: Annotated[float, typer.Option(help="The share of steps with long texts.")] = DEFAULT.long_share,
    evaluate_every: Annotated[
        int, typer.Option(help="After so many steps held-out text is measured, and a checkpoint kept.")
    ] = DEFAULT.evaluate_every,
    patience: Annotated[
        int, typer.Option(help="End after so many evaluations without a better one.")
    ] = DEFAULT.patience,
    seed: Annotated[int, typer.Option(help="Of new weights and of all that is drawn.")] = DEFAULT.seed,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that did not end.")] = False,
) -> None:
    """Put a checkpoint under other positions, and train it until it gives the states that it gave before."""
    check_free(target)
    checkpoints = target.with_name(f"{target.name}-checkpoints")
    settings = {name: value for name, value in locals().items() if name in Recipe.__dataclass_fields__}
    recipe = Recipe(**settings)
    options = read_position_options(position_options)
    # What cannot be carried over is refused now, and not after the training; a source that is none, before that.
    read_config(source, SOURCES)
    others = sentence_transformer_files(source)
    found = retrofit_checkpoint(
        source, position, texts, checkpoints, options, recipe=recipe, resume=resume, progress=True
    )
    tokenizer = read_tokenizer(source)
    card = found.card(target.name, tokenizer)
    with new_folder(target) as folder:
        found.model.save_pretrained(folder)
        save_beside(folder, tokenizer, others)
        notes = use_own_encoder(folder)
        card.save(folder / "README.md")
    shutil.rmtree(checkpoints)
    show(found.before, found.after)
    if others:
        print(f"The files of sentence-transformers are carried over: {', '.join(sorted(others))}.")
    for note in notes:
        print(note)
    print(f"{found.steps} steps in {found.minutes:.1f} minutes. Written to {target}.")


def show(before: dict[str, float], after: dict[str, float]) -> None:
    """Prints each figure before and after the training."""
    table = Table(title="On held-out text, beside the source")
    for column in ("figure", "before", "after"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for name, value in after.items():
        table.add_row(name.replace("_", " "), f"{before[name]:.4f}", f"{value:.4f}")
    Console().print(table)
