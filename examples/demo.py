"""Two things in minutes: which position schemes know of order, and the whole road from text to a classifier.

python examples/demo.py [--output_dir runs/demo]

First a small study of tasks with a right answer, order.yaml, under five schemes. Then, on the text in examples/data, a
tokenizer, a pre-trained rotary model, and a classifier of reviews, which is loaded without the package. Writes the
study's folder with its report, the tokenizer, both models, `results.json` and `loss_curve.png`.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Column, Table
from transformers import HfArgumentParser, PreTrainedTokenizerBase, Trainer, TrainingArguments

from finetune_classification import finetune
from hf_rope.compare import compare
from hf_rope.compare import report as write_report
from hf_rope.compare.summary import mean_score
from hf_rope.precision import training_precision
from loading import DataArguments, describe_precision, load_files, load_split, require_fresh
from pretrain_mlm import build_config, pretrain, unigram_loss
from text_rows import group_texts
from train_tokenizer import train_tokenizer

HERE = Path(__file__).parent
STUDY = HERE / "order.yaml"
WRITTEN = {"order", "tokenizer", "pretrained", "sentiment", "results.json", "loss_curve.png", "reference.json"}
MASKED = (
    "he stood at the end [MASK] the road.",
    "he put his hand on [MASK] shoulder and said nothing.",
    "the cast is good, but the [MASK] is dull.",
)


@dataclass
class Arguments:
    """Sizes of the demo, chosen to end within ten minutes on two cores."""

    output_dir: str = "runs/demo"
    study: str = str(STUDY)
    vocab_size: int = 6000
    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    block_size: int = 64
    batch_size: int = 16
    pretrain_steps: int = 1000
    pretrain_learning_rate: float = 1e-3
    finetune_epochs: float = 3
    finetune_learning_rate: float = 3e-4
    reviews: int = 8000
    seed: int = 0


def prepare_folder(folder: Path) -> None:
    """Empties the folder of what an earlier demo wrote; refuses one that holds anything else."""
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= WRITTEN:
        shutil.rmtree(folder)
    require_fresh(folder)
    folder.mkdir(parents=True)


def load_reviews(arguments: Arguments, split: str) -> Dataset:
    """The first `arguments.reviews` labelled sentences of a split."""
    rows = load_files([str(HERE / f"data/reviews/{split}.jsonl")], ["text", "label"])
    return rows.select(range(min(arguments.reviews, len(rows))))


def compare_schemes(arguments: Arguments, folder: Path) -> dict[str, Any]:
    """Runs the study and writes its report; returns the accuracy by task, scheme and evaluation, None where refused."""
    print("Comparing schemes on tasks that depend on order")
    failed = compare(arguments.study, folder / "order", workers=min(2, os.cpu_count() or 1))
    if failed:
        raise SystemExit("\n".join(failed.values()))
    summary = write_report(folder / "order")
    return {
        name: {
            scheme: {evaluation: mean_score(task, scheme, evaluation) for evaluation in found["evaluations"]}
            for scheme, found in task["schemes"].items()
        }
        for name, task in summary["tasks"].items()
    }


def pretrain_rotary(
    arguments: Arguments, reviews: Dataset, folder: Path
) -> tuple[PreTrainedTokenizerBase, dict[str, Any], float]:
    """Trains the tokenizer and the model on the books and the training reviews; validates on another book.

    Returns the tokenizer, the model's numbers and the unigram loss.
    """
    books = DataArguments(
        train_file=[str(HERE / "data/books/train.txt")], validation_file=[str(HERE / "data/books/validation.txt")]
    )
    texts = load_split(books, "train", ["text"])
    texts = Dataset.from_dict({"text": texts["text"][:] + reviews["text"][:]})
    tokenizer = train_tokenizer(texts["text"], arguments.vocab_size)
    tokenizer.save_pretrained(folder / "tokenizer")
    train = group_texts(texts, tokenizer, arguments.block_size)
    validation = group_texts(load_split(books, "validation", ["text"]), tokenizer, arguments.block_size)
    training = TrainingArguments(
        output_dir=str(folder / "pretrained"),
        max_steps=arguments.pretrain_steps,
        per_device_train_batch_size=arguments.batch_size,
        per_device_eval_batch_size=32,
        learning_rate=arguments.pretrain_learning_rate,
        warmup_steps=0.1,
        adam_beta2=0.98,
        eval_strategy="steps",
        eval_steps=max(1, arguments.pretrain_steps // 10),
        logging_steps=max(1, arguments.pretrain_steps // 20),
        **common_arguments(arguments),
        prediction_loss_only=True,
    )
    sizes = {
        "hidden_size": arguments.hidden_size,
        "num_hidden_layers": arguments.num_hidden_layers,
        "num_attention_heads": arguments.num_attention_heads,
        "intermediate_size": 4 * arguments.hidden_size,
        "initializer_range": 0.05,  # with 0.02, for 768 units, narrow layers stay at word frequencies long
    }
    print(describe_precision(training))
    print("Pre-training rotary")
    config = build_config("rotary", tokenizer, arguments.block_size, sizes)
    result = pretrain(config, tokenizer, train, validation, training)
    return tokenizer, result, unigram_loss(train, validation, tokenizer)


def common_arguments(arguments: Arguments) -> dict[str, Any]:
    pin_memory = torch.cuda.is_available()
    plain = {"save_strategy": "no", "report_to": "none", "seed": arguments.seed, "dataloader_pin_memory": pin_memory}
    return plain | training_precision()


def finetune_sentiment(
    arguments: Arguments, tokenizer: PreTrainedTokenizerBase, reviews: Dataset, folder: Path
) -> tuple[Trainer, dict[str, dict[str, float]]]:
    """Fine-tunes the rotary model on the reviews, and evaluates it on the validation and test reviews."""
    print("Fine-tuning rotary for sentiment")
    splits = {split: load_reviews(arguments, split) for split in ("validation", "test")}
    training = TrainingArguments(
        output_dir=str(folder / "sentiment"),
        num_train_epochs=arguments.finetune_epochs,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        learning_rate=arguments.finetune_learning_rate,
        warmup_steps=0.1,
        eval_strategy="epoch",
        logging_steps=50,
        **common_arguments(arguments),
    )
    checkpoint = str(folder / "pretrained/rotary")
    splits = {"train": reviews, **splits}
    overrides = {"classifier_pooling": "mean"}
    return finetune(checkpoint, tokenizer, splits, ["text", "label"], training, arguments.block_size, overrides)


def check_without_package(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path) -> dict[str, Any]:
    """Loads both folders in a fresh process that cannot import hf_rope; raises if the logits differ."""
    sentences = ["A warm, funny, beautifully played film.", "Dull, far too long and without a single good joke."]
    model = model.cpu().eval()
    with torch.no_grad():
        logits = model(**tokenizer(sentences, padding=True, return_tensors="pt")).logits
    reference = folder / "reference.json"
    reference.write_text(json.dumps({"sentences": sentences, "logits": logits.tolist(), "masked": MASKED}))
    paths = [folder / "sentiment", folder / "pretrained/rotary", reference]
    with tempfile.TemporaryDirectory() as elsewhere:
        process = subprocess.run(
            [sys.executable, "-I", str(HERE.resolve() / "load_without_package.py"), *(str(p.resolve()) for p in paths)],
            cwd=elsewhere,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": elsewhere},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    if process.returncode:
        raise SystemExit(f"The saved models do not load without the package:\n{process.stderr}")
    check = json.loads(process.stdout.splitlines()[-1])
    if not check["difference"] <= 1e-5:
        raise SystemExit(f"Loaded without the package, the logits differ by {check['difference']:.1e}.")
    return check


def plot_loss(arguments: Arguments, results: dict[str, Any], folder: Path) -> None:
    """The validation curve, with the training loss behind it and the unigram model as a line."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    history = json.loads((folder / "pretrained/rotary/log_history.json").read_text())
    points = sorted({(row["step"], row["eval_loss"]) for row in history if "eval_loss" in row})
    label = f"validation, ends at {results['pretraining']['validation_loss']:.2f}"
    axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label)
    training = [(row["step"], row["loss"]) for row in history if "loss" in row]
    axes.plot(*zip(*training, strict=True), color="C0", alpha=0.3, linewidth=1, label="training (with dropout)")
    unigram = results["unigram_loss"]
    axes.set_ylim(top=max(unigram, points[0][1]) + 0.1)  # the training loss starts far above
    axes.axhline(unigram, color="gray", linestyle="--", label=f"word frequencies alone, {unigram:.2f}")
    tokens = arguments.batch_size * arguments.block_size
    axes.set(
        title="Masked-LM loss of rotary on a book not trained on",
        xlabel=f"training step ({tokens:,} tokens each)",
        ylabel="loss (nats per masked token)",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / "loss_curve.png", dpi=150)
    plt.close(figure)


def report(results: dict[str, Any], console: Console) -> None:
    """Prints the tables."""
    order = results["order"]
    table = Table(
        Column("scheme", no_wrap=True),
        title="Accuracy on sequences as long as in training, and on those of the longest test",
    )
    for name in order:
        table.add_column(name, justify="right")
    for scheme in next(iter(order.values())):
        rows = [[*order[name][scheme].values()] for name in order]
        table.add_row(
            scheme, *(f"{row[0]:.2f}, " + ("refuses" if row[-1] is None else f"{row[-1]:.2f}") for row in rows)
        )
    console.print(table)
    table = Table(Column("model", no_wrap=True), title="Masked-LM pre-training, validated on a book not trained on")
    for column in ("parameters", "validation loss", "perplexity", "tokens/s"):
        table.add_column(column, justify="right")
    row, unigram = results["pretraining"], results["unigram_loss"]
    speed = f"{row['tokens_per_second']:,.0f}"
    table.add_row(
        "rotary", f"{row['parameters']:,}", f"{row['validation_loss']:.3f}", f"{row['perplexity']:,.0f}", speed
    )
    table.add_row("word frequencies", "", f"{unigram:.3f}", f"{math.exp(unigram):,.0f}", "", style="dim")
    console.print(table)
    table = Table("reviews", title="Sentiment, rotary, fine-tuned")
    for column in ("accuracy", "F1", "majority baseline"):
        table.add_column(column, justify="right")
    for split, row in results["sentiment"].items():
        table.add_row(split, f"{row['accuracy']:.3f}", f"{row['f1']:.3f}", f"{row['majority']:.3f}")
    console.print(table)
    check = results["without_package"]
    console.print(
        f"Loaded in a fresh process without hf_rope: greatest difference of the logits {check['difference']:.1e}.",
        soft_wrap=True,
    )
    for text, words in check["filled"].items():
        console.print(f"  {text} -> {', '.join(words)}", markup=False)
    console.print(f"{results['seconds'] / 60:.1f} minutes.")


def run(arguments: Arguments) -> dict[str, Any]:
    """Does it all and returns what `results.json` holds."""
    start, folder = time.perf_counter(), Path(arguments.output_dir)
    prepare_folder(folder)
    order = compare_schemes(arguments, folder)
    reviews = load_reviews(arguments, "train")
    tokenizer, pretraining, unigram = pretrain_rotary(arguments, reviews, folder)
    trainer, sentiment = finetune_sentiment(arguments, tokenizer, reviews, folder)
    results = {
        "arguments": vars(arguments),
        "order": order,
        "pretraining": pretraining,
        "unigram_loss": unigram,
        "sentiment": sentiment,
    }
    # Trainer has put autocast around the model's forward, if it trained in bfloat16.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    results["without_package"] = check_without_package(model, tokenizer, folder)
    plot_loss(arguments, results, folder)
    results["seconds"] = time.perf_counter() - start
    (folder / "results.json").write_text(json.dumps(results, indent=2))
    return results


def main() -> None:
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    results = run(arguments)
    report(results, Console())
    print(
        f"In {arguments.output_dir}: " + ", ".join(sorted(path.name for path in Path(arguments.output_dir).iterdir()))
    )


if __name__ == "__main__":
    main()
