"""Reads the files or the dataset that a user names, and refuses what cannot be used, each in one sentence."""

import glob
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, List, Value, concatenate_datasets, load_dataset
from transformers import PreTrainedTokenizerBase, TrainingArguments

from hf_rope.convert.checkpoint import read_tokenizer
from hf_rope.text_files import read_json

FORMATS = {".txt": "text", ".json": "json", ".jsonl": "json", ".csv": "csv"}
DECIDED = ("num_labels", "id2label", "label2id", "problem_type")
LARGEST = 3e38
CSV = {"keep_default_na": False, "na_values": [""]}  # else the words NA, None and null are read as missing


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


def check_training(training: TrainingArguments, way_out: str = "give its folder to --model for its weights") -> None:
    """Refuses options of TrainingArguments that no script here can follow."""
    if training.resume_from_checkpoint is not None:
        raise SystemExit(f"--resume_from_checkpoint {training.resume_from_checkpoint} is not read here: {way_out}.")
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if getattr(training, name) < 1:
            raise SystemExit(f"--{name} is {getattr(training, name)}; it must be 1 or more.")
    if not 0 <= training.learning_rate < math.inf:
        raise SystemExit(f"--learning_rate is {training.learning_rate}; it must be a finite number, 0 or more.")


def require_finite(loss: float, training: TrainingArguments) -> None:
    """Ends a script whose training has diverged."""
    if not math.isfinite(loss):
        raise SystemExit(
            f"The loss after training is {loss}, so the model in {training.output_dir} is of no use: lower "
            f"--learning_rate, which is {training.learning_rate}, or look for rows that do not fit."
        )


def load_split(data: DataArguments, split: str, columns: list[str], test_file: list[str] | None = None) -> Dataset:
    """The "train" or "validation" rows with these columns, or those of `test_file`.

    Rows without text in the first column are left out; those that lack another value are refused.
    """
    files = test_file or (data.train_file if split == "train" else data.validation_file)
    if files:
        rows = load_files(files, columns)
    elif data.dataset_name:
        name = data.validation_split if split == "validation" else split
        rows = pick(load_dataset(data.dataset_name, data.dataset_config_name, split=name), columns, data.dataset_name)
    else:
        raise SystemExit(f"There is no {split} text: give --{split}_file, or --dataset_name.")
    require_text(rows, columns[0])
    rows = rows.filter(lambda row: has_text(row[columns[0]]), desc=f"{split}: texts")
    if not len(rows):
        raise SystemExit(f"The {split} data holds no text in its column {columns[0]!r}.")
    if len(columns) > 1:
        for row in rows:
            for column in columns:
                if is_missing(row[column]):
                    raise SystemExit(
                        f"The {split} row of {str(row[columns[0]])[:40]!r} lacks a value in its column {column!r}: "
                        "fill it in, or leave the row out."
                    )
    return rows


def has_text(value: str | list[str | None] | None) -> bool:
    return bool("".join(word or "" for word in value).strip() if isinstance(value, list) else (value or "").strip())


def is_missing(value: Any) -> bool:
    """Whether it is null, or holds a null."""
    if isinstance(value, dict):
        value = [*value.values()]
    return value is None or (isinstance(value, list) and any(map(is_missing, value)))


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
    """Refuses a column that holds anything but numbers that are finite in float32, as labels are."""
    for value in rows[column]:
        if not isinstance(value, int | float) or not abs(value) <= LARGEST:
            raise SystemExit(
                f"The column {column!r} holds {value!r}; regression needs a finite number in every row, "
                f"{LARGEST:.0e} at most."
            )


def require_correlation(splits: dict[str, Dataset]) -> None:
    """Refuses held-out rows that are too few to correlate."""
    for split, rows in splits.items():
        if split != "train" and len(rows) < 2:
            raise SystemExit(f"The {split} data has {len(rows)} row, and a correlation needs two: add rows to it.")


def load_files(files: list[str], columns: list[str]) -> Dataset:
    """The rows of all files, one after the other."""
    parts = []
    for file in files:
        path = Path(file)
        if not path.is_file():
            raise SystemExit(f"{file} is not there, or is no file.")
        if path.suffix not in FORMATS:
            raise SystemExit(f"{file} ends in {path.suffix!r}; these are read: {', '.join(FORMATS)}.")
        with path.open("rb") as content:
            if not any(map(bytes.strip, content)):
                raise SystemExit(f"{file} is empty.")
        kind = FORMATS[path.suffix]
        options: dict[str, Any] = CSV if kind == "csv" else {}
        try:
            rows = load_dataset(kind, data_files=glob.escape(str(path)), split="train", **options)
        except Exception as error:
            raise SystemExit(f"{file} cannot be read as {kind}: {error.__cause__ or error}") from error
        parts.append(pick(rows, columns, file))
    try:
        return concatenate_datasets(parts)
    except ValueError as error:
        kinds = "; ".join(f"{file} has {part.features}" for file, part in zip(files, parts, strict=True))
        raise SystemExit(f"Files hold other kinds of values in one column, and have to be alike: {kinds}.") from error


def pick(rows: Dataset, columns: list[str], source: str) -> Dataset:
    for column in columns:
        if column not in rows.column_names:
            raise SystemExit(f"{source} has no column {column!r}; it has: {', '.join(rows.column_names)}.")
    if len({*columns}) < len(columns):
        raise SystemExit(f"The columns to read are {', '.join(columns)}: name each once.")
    return rows.select_columns(columns)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or of a Hub name."""
    try:
        tokenizer = read_tokenizer(name)
    except (OSError, ValueError, ImportError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise SystemExit(f"No tokenizer can be loaded from {name!r}: {first_line}") from error
    if tokenizer is None:
        raise SystemExit(f"No tokenizer can be loaded from {name!r}: it has no file of one; save it there.")
    if tokenizer.pad_token is None:
        raise SystemExit(
            f"The tokenizer of {name!r} has no pad token, which batches need: set its pad_token, and save it again."
        )
    return tokenizer


def require_fresh(folder: str | Path, way_out: str = "name another --output_dir") -> None:
    """Refuses a folder that holds something."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SystemExit(f"{folder} already holds something: {way_out}.")


def read_record(path: Path) -> dict[str, Any]:
    """What a JSON file of an earlier run holds; empty where there is no such file."""
    try:
        return read_json(path) if path.is_file() else {}
    except ValueError as error:
        raise SystemExit(f"{error}") from error


def parse_overrides(text: str) -> dict[str, Any]:
    """The keys of --config_overrides, a JSON object."""
    try:
        overrides = json.loads(text)
    except json.JSONDecodeError as error:
        raise SystemExit(f"--config_overrides is no JSON ({error}).") from error
    if not isinstance(overrides, dict):
        raise SystemExit(f"--config_overrides is {text}; it must be a JSON object such as '{{\"hidden_size\": 256}}'.")
    for key in DECIDED:
        if key in overrides:
            raise SystemExit(f"--config_overrides has {key}, which the labels decide: leave it out.")
    return overrides
