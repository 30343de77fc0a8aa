"""New folders that are complete or not there, what lies in them beside a model, and a training's checkpoints."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from transformers import PreTrainedTokenizerBase


def check_free(target: Path) -> None:
    """Refuses a target that is there and is not an empty folder, and the working directory."""
    if target.resolve() == Path.cwd():
        raise ValueError(f"{target} is the working directory, which cannot be replaced: name a folder in it.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists and is not an empty folder: choose another, or remove it first.")


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder beside the target, to be filled and then renamed to it; removed where anything is raised inside.

    Where the target is a link, it is the place that the link names.
    """
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)
        if target.exists():
            target.rmdir()
        os.rename(folder, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def save_beside(folder: Path, tokenizer: PreTrainedTokenizerBase | None, others: Mapping[str, Path]) -> None:
    """Saves the tokenizer, if any, and copies the other files to their paths in the folder."""
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    for name, path in others.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)


def last_checkpoint(folder: Path, mark: str) -> str | None:
    """The newest Trainer checkpoint with a file named `mark`; those without it are removed."""
    steps = {}
    for path in folder.glob("checkpoint-*"):
        step = path.name.removeprefix("checkpoint-")
        if not step.isdigit():  # not Trainer's
            continue
        if (path / mark).exists():
            steps[int(step)] = str(path)
        else:
            shutil.rmtree(path, ignore_errors=True)  # another process may be at it
    return steps[max(steps)] if steps else None
