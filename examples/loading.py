"""Reads the files or the dataset that a user names, and refuses what cannot be used, each in one sentence."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, List, Value, concatenate_datasets, load_dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainingArguments

FORMATS = {".txt": "text", ".json": "json", ".jsonl": "json", ".csv": "csv"}


@dataclass
class DataArguments:
    """Which text to read: files of your own, or a name that `datasets.load_dataset` knows."""

    train_file: list[str] = field(
        default_factory=list, metadata={"help": "One or more .txt (a text a line), .json, .jsonl or .csv files."}
    )
    validation_file: list[str] = field(default_factory=list, metadata={"help": "As --train_file."})
    dataset_name: str | None = field(default=None, metadata={"help": "Instead of files: a name for load_dataset."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "The configuration of that dataset."})
    validation_split: str = field(default="validation", metadata={"help": "The split of that dataset to evaluate on."})
    text_column: str = field(default="text", metadata={"help": "The column that holds the text."})


def describe_precision(training: TrainingArguments) -> str:
    if training.bf16:
        return "Training in bfloat16 (autocast), which this machine computes itself; --bf16 False is float32."
    return "Training in float16 (autocast)." if training.fp16 else "Training in float32."


def load_split(data: DataArguments, split: str, columns: list[str]) -> Dataset:
    """The "train" or "validation" rows with these columns, rows without text left out."""
    files = data.train_file if split == "train" else data.validation_file
    if files:
        rows = load_files(files, columns)
    elif data.dataset_name:
        name = data.validation_split if split == "validation" else split
        rows = pick(load_dataset(data.dataset_name, data.dataset_config_name, split=name), columns, data.dataset_name)
    else:
        raise SystemExit(f"There is no {split} text: give --{split}_file, or --dataset_name.")
    require_text(rows, columns[0])
    rows = rows.filter(lambda row: bool("".join(row[columns[0]] or ()).strip()), desc=f"{split}: texts")
    if not len(rows):
        raise SystemExit(f"The {split} data holds no text in its column {columns[0]!r}.")
    return rows


def require_text(rows: Dataset, column: str, lists: bool | None = None) -> None:
    """Refuses a column that holds neither strings nor lists of strings; `lists` says which of both it must be."""
    kind = rows.features[column]
    is_list = isinstance(kind, List)
    word = kind.feature if is_list else kind
    if not isinstance(word, Value) or word.dtype not in ("string", "large_string"):
        raise SystemExit(f"The column {column!r} holds {kind}; it must hold text.")
    if lists is not None and is_list != lists:
        raise SystemExit(f"The column {column!r} must hold {'lists of strings' if lists else 'strings, not lists'}.")


def require_numbers(rows: Dataset, column: str) -> None:
    """Refuses a column that holds anything but finite numbers."""
    for value in rows[column]:
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise SystemExit(f"The column {column!r} holds {value!r}; regression needs a finite number in every row.")


def load_files(files: list[str], columns: list[str]) -> Dataset:
    """The rows of all files, one after the other."""
    parts = []
    for file in files:
        path = Path(file)
        if not path.is_file():
            raise SystemExit(f"{file} is not there, or is no file.")
        if path.suffix not in FORMATS:
            raise SystemExit(f"{file} ends in {path.suffix!r}; these are read: {', '.join(FORMATS)}.")
        if not path.read_bytes().strip():
            raise SystemExit(f"{file} is empty.")
        try:
            rows = load_dataset(FORMATS[path.suffix], data_files=str(path), split="train")
        except Exception as error:
            raise SystemExit(f"{file} cannot be read as {FORMATS[path.suffix]}: {error.__cause__ or error}") from error
        parts.append(pick(rows, columns, file))
    return concatenate_datasets(parts)


def pick(rows: Dataset, columns: list[str], source: str) -> Dataset:
    for column in columns:
        if column not in rows.column_names:
            raise SystemExit(f"{source} has no column {column!r}; it has: {', '.join(rows.column_names)}.")
    return rows.select_columns(columns)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or of a Hub name."""
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise SystemExit(f"No tokenizer can be loaded from {name!r}: {first_line}") from error


def require_fresh(folder: str | Path, way_out: str = "name another --output_dir") -> None:
    """Refuses a folder that holds something."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SystemExit(f"{folder} already holds something: {way_out}.")


def parse_overrides(text: str) -> dict[str, Any]:
    """The keys of --config_overrides, a JSON object."""
    try:
        overrides = json.loads(text)
    except json.JSONDecodeError as error:
        raise SystemExit(f"--config_overrides is no JSON ({error}).") from error
    if not isinstance(overrides, dict):
        raise SystemExit(f"--config_overrides is {text}; it must be a JSON object such as '{{\"hidden_size\": 256}}'.")
    return overrides
