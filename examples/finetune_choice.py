"""Fine-tunes any checkpoint on choosing one of several texts that could go with a context.

python examples/make_choices.py --train_file books.jsonl --validation_file other_books.jsonl --output_dir runs/choices
python examples/finetune_choice.py --model runs/mlm/rotary --train_file runs/choices/train.jsonl \
    --validation_file runs/choices/validation.jsonl --output_dir runs/choice --num_train_epochs 3

A row has a context (`text`), the choices and the place of the right one (`label`, from 0). The choices are one column
with a list (`choices`) or several columns: `--choice_columns ending0 ending1`. Accuracy stands beside that of guessing.
Writes a model folder with `results.json`.
"""

from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from datasets import Dataset
from sklearn.metrics import accuracy_score
from transformers import (
    AutoModelForMultipleChoice,
    DataCollatorForMultipleChoice,
    EvalPrediction,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from finetuning import (
    FinetuningArguments,
    build_trainer,
    check_max_length,
    load_splits,
    parse,
    report,
    train_and_evaluate,
)
from loading import load_tokenizer, parse_overrides, require_text


@dataclass
class Arguments(FinetuningArguments):
    """The task's settings."""

    choice_columns: list[str] = field(
        default_factory=lambda: ["choices"], metadata={"help": "One column of lists, or a column a choice."}
    )
    label_column: str = field(default="label", metadata={"help": "The column of the right choice's place, from 0."})


def gather_choices(rows: Dataset, columns: list[str]) -> list[list[str]]:
    """Each row's choices, as many in every row."""
    if len(columns) == 1:
        require_text(rows, columns[0], lists=True)
        choices = rows[columns[0]][:]
    else:
        for column in columns:
            require_text(rows, column, lists=False)
        choices = [list(row) for row in zip(*(rows[column] for column in columns), strict=True)]
    counts = {len(row) for row in choices}
    if len(counts) > 1 or min(counts) < 2:
        raise SystemExit(f"Rows have {sorted(counts)} choices; they must have the same number, two or more.")
    return choices


def encode(
    rows: Dataset, context: str, choices: list[str], label: str, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Dataset:
    """Token ids of each choice after its context, and `labels`."""
    require_text(rows, context, lists=False)
    gathered = gather_choices(rows, choices)
    number = len(gathered[0])
    for value in rows[label]:
        if not isinstance(value, int) or not 0 <= value < number:
            raise SystemExit(
                f"The column {label!r} holds {value!r}; with {number} choices it must be 0 to {number - 1}."
            )

    def tokenize(batch: dict[str, list], indices: list[int]) -> dict[str, Any]:
        contexts = [text for text in batch[context] for _ in range(number)]
        flat = tokenizer(
            contexts, list(chain.from_iterable(gathered[i] for i in indices)), truncation=True, max_length=max_length
        )
        nested = {key: [x[i : i + number] for i in range(0, len(x), number)] for key, x in flat.items()}
        return {**nested, "labels": batch[label]}

    return rows.map(tokenize, batched=True, with_indices=True, remove_columns=rows.column_names, desc="tokens")


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float(accuracy_score(prediction.label_ids, prediction.predictions.argmax(-1)))}


def finetune(
    arguments: Arguments, splits: dict[str, Dataset], context: str, training: TrainingArguments
) -> dict[str, dict[str, float]]:
    """Trains on the "train" split, saves, and returns the metrics of every other split."""
    overrides, tokenizer = parse_overrides(arguments.config_overrides), load_tokenizer(arguments.model)
    check_max_length(tokenizer, arguments.max_length, pair=True)
    columns = (context, arguments.choice_columns, arguments.label_column)
    encoded = {split: encode(rows, *columns, tokenizer, arguments.max_length) for split, rows in splits.items()}
    guessing = {split: {"guessing": 1 / len(rows[0]["input_ids"])} for split, rows in encoded.items()}
    trainer = build_trainer(
        AutoModelForMultipleChoice,
        arguments.model,
        tokenizer,
        encoded,
        training,
        accuracy,
        DataCollatorForMultipleChoice(tokenizer),
        **overrides,
    )
    return train_and_evaluate(trainer, encoded, guessing)


def main() -> None:
    data, arguments, training = parse(Arguments, output_dir="runs/choice")
    columns = [data.text_column, *arguments.choice_columns, arguments.label_column]
    report(finetune(arguments, load_splits(data, arguments.test_file, columns), data.text_column, training))


if __name__ == "__main__":
    main()
