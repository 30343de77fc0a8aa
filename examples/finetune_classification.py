"""Fine-tunes any checkpoint on classes of sentences or of sentence pairs.

python examples/finetune_classification.py --model runs/mlm/rotary --train_file my.csv --validation_file mine_too.csv \
    --output_dir runs/classifier --num_train_epochs 3

Every option of `TrainingArguments` works. Accuracy and F1 come from scikit-learn; `--evaluate_metric NAME` takes
`evaluate.load(NAME)` instead, which downloads. Writes a model folder with `results.json`.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import evaluate
from datasets import Dataset
from sklearn.metrics import accuracy_score, f1_score
from transformers import (
    AutoModelForSequenceClassification,
    EvalPrediction,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from finetuning import (
    FinetuningArguments,
    Metric,
    build_trainer,
    check_max_length,
    class_names,
    label_settings,
    load_splits,
    parse,
    report,
    train_and_evaluate,
)
from loading import load_tokenizer, parse_overrides, require_text


@dataclass
class Arguments(FinetuningArguments):
    """The task's settings."""

    pair_column: str | None = field(default=None, metadata={"help": "The column of the pair's second sentence."})
    label_column: str = field(default="label", metadata={"help": "The column of the class, a number or a word."})
    evaluate_metric: str | None = field(
        default=None, metadata={"help": "A metric for evaluate.load, from the network."}
    )


def encode(
    rows: Dataset, columns: list[str], names: list, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Dataset:
    """Token ids and `labels`, the class's place in `names`; the last column is the label's."""
    *texts, label = columns
    for column in texts:
        require_text(rows, column, lists=False)
    for value in rows[label]:
        if value not in names:
            raise SystemExit(f"The label {value!r} occurs in the evaluation data only.")

    def tokenize(batch: dict[str, list]) -> dict[str, list]:
        encoded = tokenizer(*(batch[column] for column in texts), truncation=True, max_length=max_length)
        return {**encoded, "labels": [names.index(value) for value in batch[label]]}

    return rows.map(tokenize, batched=True, remove_columns=rows.column_names, desc="tokens")


def accuracy_and_f1(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy, and F1 of class 1 of two or the mean over more classes."""
    predicted, labels = prediction.predictions.argmax(-1), prediction.label_ids
    average = "binary" if prediction.predictions.shape[-1] == 2 else "macro"
    return {"accuracy": accuracy_score(labels, predicted), "f1": f1_score(labels, predicted, average=average)}


def load_metric(name: str) -> Metric:
    """A metric of the `evaluate` library."""
    try:
        metric = evaluate.load(name)
    except Exception as error:
        raise SystemExit(f"evaluate.load({name!r}) failed, {error}; leave --evaluate_metric out.") from error
    return lambda prediction: metric.compute(
        predictions=prediction.predictions.argmax(-1), references=prediction.label_ids
    )


def finetune(
    model: str,
    tokenizer: PreTrainedTokenizerBase,
    splits: dict[str, Dataset],
    columns: list[str],
    training: TrainingArguments,
    max_length: int = 128,
    overrides: dict[str, Any] | None = None,
    metric: Metric = accuracy_and_f1,
) -> tuple[Trainer, dict[str, dict[str, float]]]:
    """Trains on the "train" split, saves, and returns the trainer and the metrics of every other split.

    `majority` is the accuracy of always answering the training data's most frequent class.
    """
    label = columns[-1]
    check_max_length(tokenizer, max_length, pair=len(columns) > 2)
    names = class_names(splits["train"][label])
    encoded = {split: encode(rows, columns, names, tokenizer, max_length) for split, rows in splits.items()}
    settings = {**label_settings(names), **(overrides or {})}
    trainer = build_trainer(AutoModelForSequenceClassification, model, tokenizer, encoded, training, metric, **settings)
    majority = Counter(splits["train"][label]).most_common(1)[0][0]
    shares = {split: {"majority": rows[label][:].count(majority) / len(rows)} for split, rows in splits.items()}
    return trainer, train_and_evaluate(trainer, encoded, shares)


def main() -> None:
    data, arguments, training = parse(Arguments, output_dir="runs/classifier")
    metric = load_metric(arguments.evaluate_metric) if arguments.evaluate_metric else accuracy_and_f1
    columns = [c for c in (data.text_column, arguments.pair_column, arguments.label_column) if c]
    splits = load_splits(data, arguments.test_file, columns)
    overrides, tokenizer = parse_overrides(arguments.config_overrides), load_tokenizer(arguments.model)
    _, results = finetune(
        arguments.model, tokenizer, splits, columns, training, arguments.max_length, overrides, metric
    )
    report(results)


if __name__ == "__main__":
    main()
