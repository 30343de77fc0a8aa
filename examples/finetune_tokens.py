"""Fine-tunes any checkpoint on a tag a word: parts of speech, named entities.

python examples/finetune_tokens.py --model runs/mlm/rotary --train_file train.jsonl --validation_file validation.jsonl \
    --output_dir runs/tokens --num_train_epochs 3

A row has a list of words (`tokens`) and one of tags (`tags`), and a word is tagged at its first piece. Where all tags
are O, B-X or I-X, precision, recall and F1 of whole entities come from seqeval. Each metric stands beside that of
always answering the training data's most frequent tag. `words_left_out` counts the words without a piece, beyond
`--max_length` or dropped by the tokenizer: no metric counts them. Writes a model folder with `results.json`.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from datasets import Dataset
from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    EvalPrediction,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from finetuning import (
    FinetuningArguments,
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

    label_column: str = field(default="tags", metadata={"help": "The column of the tags, a list of strings."})


def encode(
    rows: Dataset, columns: tuple[str, str], names: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Dataset:
    """Token ids, and `labels` that are -100 but for each word's first piece."""
    words, tags = columns
    if unknown := set(chain.from_iterable(rows[tags])) - set(names):
        raise SystemExit(f"The tag {min(unknown)!r} occurs in the evaluation data only.")

    def tokenize(row: dict[str, Any]) -> dict[str, Any]:
        if len(row[words]) != len(row[tags]):
            raise SystemExit(f"A row has {len(row[words])} words and {len(row[tags])} tags: {' '.join(row[words])}.")
        encoded = tokenizer(row[words], is_split_into_words=True, truncation=True, max_length=max_length)
        labels, before = [], None
        for word in encoded.word_ids():
            labels.append(-100 if word is None or word == before else names.index(row[tags][word]))
            before = word
        return {**encoded, "labels": labels}

    return rows.map(tokenize, remove_columns=rows.column_names, desc="tokens")


def score(truth: list[list[str]], answers: list[list[str]]) -> dict[str, float]:
    """Accuracy over words; precision, recall and F1 of whole entities where the tags mark some."""
    scores = {"accuracy": float(accuracy_score(truth, answers))}
    tags = set(chain.from_iterable(truth))
    if tags != {"O"} and all(tag == "O" or tag.startswith(("B-", "I-")) for tag in tags):
        found = {"precision": precision_score, "recall": recall_score, "f1": f1_score}
        scores |= {name: float(function(truth, answers, zero_division=0)) for name, function in found.items()}
    return scores


def tags_of(labels: Iterable, names: list[str], answers: Iterable | None = None) -> list[list[str]]:
    """The tags of each row where it has a label: the labels themselves, or the answers' numbers."""
    pairs = zip(labels, labels if answers is None else answers, strict=True)
    return [[names[y] for x, y in zip(row, answer, strict=True) if x != -100] for row, answer in pairs]


def finetune(
    arguments: Arguments, splits: dict[str, Dataset], columns: tuple[str, str], training: TrainingArguments
) -> dict[str, dict[str, float]]:
    """Trains on the "train" split, saves, and returns the metrics of every other split, and of the baseline."""
    overrides, tokenizer = parse_overrides(arguments.config_overrides), load_tokenizer(arguments.model)
    check_max_length(tokenizer, arguments.max_length)
    for rows in splits.values():
        for column in columns:
            require_text(rows, column, lists=True)
    counts = Counter(chain.from_iterable(splits["train"][columns[1]]))
    names, most_frequent = class_names(list(counts.elements())), counts.most_common(1)[0][0]
    encoded = {split: encode(x, columns, names, tokenizer, arguments.max_length) for split, x in splits.items()}
    baselines = {}
    for split, rows in encoded.items():
        truth = tags_of(rows["labels"], names)
        always = score(truth, [[most_frequent] * len(row) for row in truth])
        baselines[split] = {f"most_frequent_{name}": value for name, value in always.items()}
        baselines[split]["words_left_out"] = sum(map(len, splits[split][columns[1]])) - sum(map(len, truth))

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        labels = prediction.label_ids
        return score(tags_of(labels, names), tags_of(labels, names, prediction.predictions.argmax(-1)))

    trainer = build_trainer(
        AutoModelForTokenClassification,
        arguments.model,
        tokenizer,
        encoded,
        training,
        compute_metrics,
        DataCollatorForTokenClassification(tokenizer),
        **label_settings(names),
        **overrides,
    )
    return train_and_evaluate(trainer, encoded, baselines)


def main() -> None:
    data, arguments, training = parse(Arguments, output_dir="runs/tokens", text_column="tokens")
    columns = (data.text_column, arguments.label_column)
    report(finetune(arguments, load_splits(data, arguments.test_file, list(columns)), columns, training))


if __name__ == "__main__":
    main()
