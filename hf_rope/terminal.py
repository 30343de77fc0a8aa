"""What the commands share."""

from collections.abc import Iterator
from contextlib import contextmanager

import transformers
import typer
from rich.console import Console


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
