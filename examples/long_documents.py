"""Classifies long documents cut at several lengths: what more of the text is worth, and which model can read it.

python examples/long_documents.py --models my-learned-model my-rotary-model --lengths 256 512 1024 2048 --seeds 0 1 2 \
    --train_file train.jsonl --validation_file test.jsonl --output_dir runs/documents

Each checkpoint is fine-tuned as in finetune_classification.py, once a length and seed. A model with a table of
positions takes no document beyond it, and its cell stays empty. Every option of `TrainingArguments` works. After each
training `results.json`, `results.md` and `accuracy_by_length.png` are written; the same command goes on where an
earlier one was stopped.
"""

import copy
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from rich.console import Console
from rich.markdown import Markdown
from transformers import AutoConfig, AutoModel, HfArgumentParser, TrainingArguments

import hf_rope  # noqa: F401  (registers hf_rope with the Auto classes)
from finetune_classification import finetune
from finetuning import load_pretrained, load_splits, longest_input
from hf_rope.text_files import write_json
from length import SETTINGS, cell, check_folder, training_settings
from loading import DataArguments, check_training, load_tokenizer, parse_overrides, read_record


@dataclass
class Arguments:
    """Which checkpoints, and how much of a document they read."""

    models: list[str] = field(metadata={"help": "Checkpoints to fine-tune: folders or Hub names."})
    lengths: list[int] = field(default_factory=lambda: [256, 512, 1024, 2048], metadata={"help": "Tokens to cut at."})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "One training each."})
    label_column: str = field(default="label", metadata={"help": "The column of the class, a number or a word."})
    config_overrides: str | None = field(
        default=None,
        metadata={"help": 'Keys of the configuration, a JSON object; {"classifier_pooling": "mean"} for hf_rope.'},
    )


def resolve(model: str) -> str:
    """Which checkpoint a folder's name means, wherever the command is given from; a Hub name as it is."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def overrides_of(model: str, config_overrides: str | None) -> dict[str, Any]:
    """Keys of a model's configuration; by default the mean over all tokens, where a model knows that setting."""
    if config_overrides is not None:
        return parse_overrides(config_overrides)
    return {"classifier_pooling": "mean"} if load_pretrained(AutoConfig, model).model_type == "hf_rope" else {}


def run(data: DataArguments, arguments: Arguments, training: TrainingArguments) -> dict[str, Any]:
    """Trains and measures what is missing; returns what results.json holds."""
    folder = Path(training.output_dir)
    names = [Path(model).name for model in arguments.models]
    if len({*names}) < len(names):
        raise SystemExit(f"--models are {arguments.models}; their last names must differ, for a folder each.")
    if min(arguments.lengths) < 3:
        raise SystemExit(
            f"--lengths are {arguments.lengths}; they must be 3 or more, for one token and two special ones."
        )
    columns = [data.text_column, arguments.label_column]
    check_training(training, "the same command goes on where it was stopped")
    own = {key: getattr(arguments, key) for key in ("label_column", "config_overrides")}
    places = {f"models {Path(model).name}": resolve(model) for model in arguments.models}
    settings = check_folder(folder, {**asdict(data), **own, **places, **training_settings(training)})
    splits = load_splits(data, [], columns)
    tokenizers = {model: load_tokenizer(model) for model in arguments.models}
    overrides = {model: overrides_of(model, arguments.config_overrides) for model in arguments.models}
    limits = {model: longest_input(load_pretrained(AutoModel, model, **overrides[model])) for model in arguments.models}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SETTINGS, settings)
    results: dict[str, Any] = {"lengths": arguments.lengths, "accuracy": {}, "documents": len(splits["validation"])}
    first = tokenizers[arguments.models[0]]
    sizes = [len(first(text, verbose=False)["input_ids"]) for text in splits["validation"][data.text_column]]
    results["whole"] = {str(n): sum(size <= n for size in sizes) / len(sizes) for n in arguments.lengths}
    for seed in arguments.seeds:
        for model, name in zip(arguments.models, names, strict=True):
            for length in arguments.lengths:
                cells = results["accuracy"].setdefault(name, {})
                if limits[model] is not None and length > limits[model]:
                    cells[str(length)] = None
                    continue
                place = folder / name / f"{length}-seed-{seed}"
                record = place / "results.json"
                if not read_record(record):
                    print(f"{name}, {length} tokens, seed {seed}")
                    once = copy.copy(training)
                    once.output_dir, once.seed = str(place), seed
                    finetune(model, tokenizers[model], splits, columns, once, length, overrides[model])
                measured = read_record(record)["validation"]
                results["majority"] = measured["majority"]
                cells.setdefault(str(length), []).append(measured["accuracy"])
                write(results, folder)
    return results


def as_markdown(results: dict[str, Any]) -> str:
    """A row a model: the mean accuracy of the seeds, and their range where they are several."""
    lengths = [str(length) for length in results["lengths"]]
    lines = [f"| accuracy | {' | '.join(f'{int(n):,}' for n in lengths)} |", "|---" + "|---:" * len(lengths) + "|"]
    for name, cells in results["accuracy"].items():
        lines.append(f"| {name} | {' | '.join(cell(cells.get(n)) for n in lengths)} |")
    whole = [f"{results['whole'][n]:.0%}" for n in lengths]
    lines.append(f"| documents that are whole | {' | '.join(whole)} |")
    return "\n".join(lines) + "\n"


def write(results: dict[str, Any], folder: Path) -> None:
    """results.json, results.md and accuracy_by_length.png."""
    write_json(folder / "results.json", results)
    (folder / "results.md").write_text(as_markdown(results))
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, cells in results["accuracy"].items():
        known = {int(n): accuracies for n, accuracies in cells.items() if accuracies}
        (line,) = axes.plot(list(known), [statistics.mean(found) for found in known.values()], "o-", label=name)
        for length, found in known.items():
            axes.scatter([length] * len(found), found, s=12, color=line.get_color(), alpha=0.6)
    axes.axhline(results["majority"], color="grey", linewidth=1, linestyle=":", label="the most frequent class")
    axes.set(xscale="log", xlabel="tokens that are read", ylabel=f"accuracy on {results['documents']} documents")
    axes.set_xticks(results["lengths"], [f"{n:,}" for n in results["lengths"]])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title("Long documents, cut at several lengths: a point a seed, a line the mean")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(folder / "accuracy_by_length.png", dpi=130)


def main() -> None:
    parser = HfArgumentParser((DataArguments, Arguments, TrainingArguments))
    parser.set_defaults(output_dir="runs/documents", learning_rate=3e-4, warmup_steps=0.1, num_train_epochs=1)
    parser.set_defaults(per_device_train_batch_size=16, eval_strategy="no", save_strategy="no", report_to="none")
    parser.set_defaults(dataloader_pin_memory=torch.cuda.is_available())
    data, arguments, training = parser.parse_args_into_dataclasses()
    folder = training.output_dir
    results = run(data, arguments, training)
    Console().print(Markdown(as_markdown(results)))
    print(f"In {folder}: results.json, results.md, accuracy_by_length.png and a folder each training.")


if __name__ == "__main__":
    main()
