"""Values of options that several commands have."""

import json
from typing import Annotated, Any

import typer

PositionOptions = Annotated[
    str | None,
    typer.Option(
        metavar="JSON", help='Options of the scheme, such as \'{"form": "learned"}\' of alibi.', show_default=False
    ),
]


def read_object(name: str, text: str, example: str) -> dict[str, Any]:
    """The JSON object that an option holds.

    Raises:
        ValueError: it is no JSON, or no object.
    """
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} {text!r} is no JSON ({error}).") from None
    if not isinstance(found, dict):
        raise ValueError(f"{name} is {text}; it must be a JSON object such as {example}.")
    return found


def read_position_options(text: str | None) -> dict[str, Any] | None:
    """None where the option is left out."""
    return None if text is None else read_object("--position-options", text, '{"form": "learned"}')
