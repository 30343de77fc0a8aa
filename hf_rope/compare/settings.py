"""Settings that come from a file: read, and refused in one sentence where they do not fit."""

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml
from huggingface_hub.errors import StrictDataclassError

T = TypeVar("T")
MOST_LISTED = 20
"""A refusal lists the keys that there are where they are so few."""


class Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as YAML 1.2 has it; PyYAML alone asks for 1.0e-3. No key is given twice."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a file holds; raises ValueError where it is none."""
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML that can be read: {' '.join(str(error).split())}.") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no settings: a study is a mapping of keys such as tasks, schemes and seeds.")
    return settings


def require_known(settings: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Raises ValueError for a key that nothing reads, and names the nearest."""
    for key in settings:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            others = f", all are: {', '.join(known)}" if len(known) <= MOST_LISTED else ""
            raise ValueError(f"{where} has {key!r}, which nothing reads; the nearest is {nearest!r}{others}.")


def build(cls: type[T], settings: Any, where: str) -> T:
    """A strict dataclass from a mapping.

    Raises:
        ValueError: no mapping, an unknown or missing key, or a value of the wrong type; `where` begins the sentence.
    """
    if not isinstance(settings, Mapping):
        raise ValueError(f"{where} is {settings!r}; it must be a mapping of settings.")
    given = {field.name: field for field in fields(cls) if field.init}  # type: ignore[arg-type]
    require_known(settings, given, where)
    for name, field in given.items():
        if name not in settings and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{where} has no {name!r}, and needs one.")
    try:
        return cls(**settings)
    except StrictDataclassError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # the last one names the field and the value
            cause = cause.__cause__
        raise ValueError(f"{where}: {str(cause).rstrip('.')}.") from None
