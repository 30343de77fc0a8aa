"""Texts, rows and JSON in files that a user can reach; what cannot be used is refused in one sentence."""

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub.utils.sha import sha_fileobj


def read_text(path: Path) -> str:
    """A text file's content.

    Raises:
        ValueError: it is not in UTF-8.
    """
    with in_utf8(path):
        return path.read_text(encoding="utf-8")


def read_lines(path: Path) -> Iterator[str]:
    """A text file's lines, one after the other, so that it may be larger than the memory.

    Raises:
        ValueError: it is not in UTF-8.
    """
    with in_utf8(path), path.open(encoding="utf-8") as file:
        for line in file:
            yield line.rstrip("\n")


@contextlib.contextmanager
def in_utf8(path: Path) -> Iterator[None]:
    """Inside it, a file that is not in UTF-8 is refused in one sentence."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}): save it as such.") from None


def sha256(path: Path) -> str:
    """The hash of what a file holds, which may be more than the memory does."""
    with path.open("rb") as file:
        return sha_fileobj(file).hex()


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: it is no JSON, as one that was cut off.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}): restore it, or remove what it belongs to.") from None


def write_json(path: Path, content: Any) -> None:
    """Writes a file that is whole or not there; numbers that are not finite become null."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(finite(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .jsonl file, a JSON object a line; empty lines are left out.

    Raises:
        ValueError: a line holds anything else.
    """
    return (row for _, row in numbered_rows(path))


def numbered_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """As `read_rows`, each with the number of its line."""
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"Line {number} of {path} is no JSON ({error}).") from None
            if not isinstance(row, dict):
                raise ValueError(f"Line {number} of {path} holds {line.strip()[:40]!r}; it must hold a JSON object.")
            if "\\u" in line and not is_text(json.dumps(row, ensure_ascii=False)):
                raise ValueError(
                    f"Line {number} of {path} holds half of a surrogate pair, as a cut emoji leaves it: correct it."
                )
            yield number, row


def is_text(text: str) -> bool:
    """Whether it has an encoding, which half of a surrogate pair has not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_texts(path: Path) -> Iterator[str]:
    """The `text` of each row of a .jsonl file.

    Raises:
        ValueError: as `read_rows`, or a row has no text there.
    """
    for number, row in numbered_rows(path):
        if not isinstance(row.get("text"), str):
            raise ValueError(f"Line {number} of {path} has no text in its `text`; it has: {', '.join(row)}.")
        yield row["text"]
