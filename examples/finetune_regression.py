"""Fine-tunes any checkpoint on a number a sentence or sentence pair: a score, a similarity.

python examples/finetune_regression.py --model runs/mlm/rotary --train_file stsb/train.jsonl \
    --validation_file stsb/validation.jsonl --text_column sentence1 --pair_column sentence2 --output_dir runs/regression

Every option of `TrainingArguments` works. The mean squared error, Pearson's and Spearman's correlation (scipy) stand
beside the error of always answering the mean of the training data. Writes a model folder with `results.json`.
"""

import statistics
from dataclasses import dataclass, field

from datasets import Dataset
from scipy.stats import pearsonr, spearmanr
from transformers import (
    AutoModelForSequenceClassification,
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
from loading import load_tokenizer, parse_overrides, require_correlation, require_numbers, require_text


@dataclass
class Arguments(FinetuningArguments):
    """The task's settings."""

    pair_column: str | None = field(default=None, metadata={"help": "The column of the pair's second sentence."})
    label_column: str = field(default="label", metadata={"help": "The column of the number."})


def encode(rows: Dataset, columns: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Token ids and `labels`; the last column is the number's."""
    *texts, label = columns
    require_numbers(rows, label)
    for column in texts:
        require_text(rows, column, lists=False)

    def tokenize(batch: dict[str, list]) -> dict[str, list]:
        encoded = tokenizer(*(batch[column] for column in texts), truncation=True, max_length=max_length)
        return {**encoded, "labels": [float(value) for value in batch[label]]}

    return rows.map(tokenize, batched=True, remove_columns=rows.column_names, desc="tokens")


def error_and_correlations(prediction: EvalPrediction) -> dict[str, float]:
    """The mean squared error, and both correlations; they are nan where all answers are the same."""
    predicted, labels = prediction.predictions[:, 0], prediction.label_ids
    return {
        "mse": float(((predicted - labels) ** 2).mean()),
        "pearson": float(pearsonr(predicted, labels).statistic),
        "spearman": float(spearmanr(predicted, labels).statistic),
    }


def finetune(
    arguments: Arguments, splits: dict[str, Dataset], columns: list[str], training: TrainingArguments
) -> dict[str, dict[str, float]]:
    """Trains on the "train" split, saves, and returns the metrics of every other split."""
    overrides, tokenizer = parse_overrides(arguments.config_overrides), load_tokenizer(arguments.model)
    check_max_length(tokenizer, arguments.max_length, pair=len(columns) > 2)
    encoded = {split: encode(rows, columns, tokenizer, arguments.max_length) for split, rows in splits.items()}
    require_correlation(splits)
    trainer = build_trainer(
        AutoModelForSequenceClassification,
        arguments.model,
        tokenizer,
        encoded,
        training,
        error_and_correlations,
        num_labels=1,
        problem_type="regression",
        **overrides,
    )
    mean = statistics.fmean(encoded["train"]["labels"])
    errors = {split: statistics.fmean((x - mean) ** 2 for x in rows["labels"]) for split, rows in encoded.items()}
    return train_and_evaluate(trainer, encoded, {split: {"mean_mse": error} for split, error in errors.items()})


def main() -> None:
    data, arguments, training = parse(Arguments, output_dir="runs/regression")
    columns = [c for c in (data.text_column, arguments.pair_column, arguments.label_column) if c]
    report(finetune(arguments, load_splits(data, arguments.test_file, columns), columns, training))


if __name__ == "__main__":
    main()
