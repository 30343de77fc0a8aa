"""Trains sentence embeddings from any checkpoint with sentence-transformers: the mean of the last hidden states.

python examples/train_sentence_embeddings.py --model runs/mlm/rotary --train_file stsb/train.jsonl \
    --validation_file stsb/validation.jsonl --test_file stsb/test.jsonl --output_dir runs/sentences --num_train_epochs 3

A row has two sentences and a number that grows with their similarity. The cosine of the two embeddings is trained to be
that number, the training data's lowest as 0 and its highest as 1. Every option of
`SentenceTransformerTrainingArguments` works. Spearman's and Pearson's correlation of cosine and number stand beside
those before training. Writes a SentenceTransformer with `results.json`; it carries its code, for
`trust_remote_code=True`.
"""

from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import set_seed

from finetuning import LOAD_ERRORS, check_max_length, check_positions, load_splits, parse, refusal, report
from hf_rope.text_files import write_json
from loading import load_tokenizer, require_correlation, require_finite, require_numbers, require_text


@dataclass
class Arguments:
    """The task's settings."""

    model: str = field(metadata={"help": "The checkpoint to train: a folder or a Hub name."})
    test_file: list[str] = field(default_factory=list, metadata={"help": "Evaluate on these too, after training."})
    pair_column: str = field(default="sentence2", metadata={"help": "The column of the second sentence."})
    label_column: str = field(default="label", metadata={"help": "The column of the similarity."})
    max_length: int = field(default=128, metadata={"help": "Longer sentences are cut to so many tokens."})


def build(model: str, max_length: int) -> SentenceTransformer:
    """The checkpoint's encoder with the mean over its tokens."""
    check_max_length(load_tokenizer(model), max_length)
    try:
        encoder = Transformer(model, max_seq_length=max_length)
    except LOAD_ERRORS as error:
        raise refusal(model, error) from error
    check_positions(model, encoder.auto_model, max_length)
    return SentenceTransformer(modules=[encoder, Pooling(encoder.get_embedding_dimension(), pooling_mode="mean")])


def scale(splits: dict[str, Dataset], column: str) -> dict[str, Dataset]:
    """The rows with numbers from 0, the training data's lowest, to 1, its highest."""
    for rows in splits.values():
        require_numbers(rows, column)
        for text in rows.column_names:
            if text != column:
                require_text(rows, text, lists=False)
    low, high = min(splits["train"][column]), max(splits["train"][column])
    if low == high:
        raise SystemExit(f"All training rows have the similarity {low}; two values or more are needed.")
    require_correlation(splits)
    return {
        split: rows.map(lambda row: {"score": (row[column] - low) / (high - low)}, remove_columns=column, desc="scores")
        for split, rows in splits.items()
    }


def correlations(model: SentenceTransformer, rows: Dataset) -> dict[str, float]:
    """Spearman and Pearson of cosine and score."""
    first, second, score = rows.column_names
    evaluator = EmbeddingSimilarityEvaluator(
        rows[first][:], rows[second][:], rows[score][:], main_similarity="cosine", show_progress_bar=True
    )
    found = evaluator(model)
    return {name: float(found[f"{name}_cosine"]) for name in ("spearman", "pearson")}


def train(
    model: SentenceTransformer, splits: dict[str, Dataset], training: SentenceTransformerTrainingArguments
) -> dict[str, dict[str, float]]:
    """Trains, saves with `results.json`, and returns each split's correlations, those before training after them."""
    held_out = {split: rows for split, rows in splits.items() if split != "train"}
    before = {split: correlations(model, rows) for split, rows in held_out.items()}
    trainer = SentenceTransformerTrainer(
        model=model,
        args=training,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        loss=CosineSimilarityLoss(model),
    )
    trainer.train()
    if trainer.is_world_process_zero():
        model.save_pretrained(training.output_dir)
    require_finite(trainer.evaluate()["eval_loss"], training)
    results = {
        split: correlations(model, rows) | {f"{name}_before": value for name, value in before[split].items()}
        for split, rows in held_out.items()
    }
    if trainer.is_world_process_zero():
        write_json(Path(training.output_dir) / "results.json", results)
    return results


def main() -> None:
    defaults = {"text_column": "sentence1", "output_dir": "runs/sentences"}
    data, arguments, training = parse(Arguments, SentenceTransformerTrainingArguments, **defaults)
    columns = [data.text_column, arguments.pair_column, arguments.label_column]
    splits = scale(load_splits(data, arguments.test_file, columns), arguments.label_column)
    set_seed(training.seed)
    report(train(build(arguments.model, arguments.max_length), splits, training))


if __name__ == "__main__":
    main()
