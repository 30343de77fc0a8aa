"""What the finetune_*.py scripts share: arguments, the Trainer, and training with a baseline beside the result."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    DataCollator,
    EvalPrediction,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

import hf_rope  # noqa: F401  (registers hf_rope with the Auto classes)
from hf_rope.precision import training_precision
from loading import (
    DataArguments,
    describe_precision,
    load_files,
    load_split,
    require_fresh,
)

Metric = Callable[[EvalPrediction], dict[str, float]]


@dataclass
class FinetuningArguments:
    """What every fine-tuning is told."""

    model: str = field(metadata={"help": "The checkpoint to fine-tune: a folder or a Hub name."})
    test_file: list[str] = field(default_factory=list, metadata={"help": "Evaluate on these too, after training."})
    max_length: int = field(default=128, metadata={"help": "Longer inputs are cut to so many tokens."})
    config_overrides: str = field(
        default="{}", metadata={"help": 'Keys of the configuration, a JSON object: {"classifier_pooling": "mean"}.'}
    )


def parse(arguments: type, training: type = TrainingArguments, **defaults: Any) -> tuple[DataArguments, Any, Any]:
    """The command line, with every option of `training`; an `output_dir` that holds something is refused."""
    parser = HfArgumentParser((DataArguments, arguments, training))
    parser.set_defaults(learning_rate=1e-4, warmup_steps=0.1, per_device_train_batch_size=32)
    parser.set_defaults(eval_strategy="epoch", save_strategy="no", report_to="none")
    parser.set_defaults(dataloader_pin_memory=torch.cuda.is_available(), **training_precision(), **defaults)
    data, task, options = parser.parse_args_into_dataclasses()
    require_fresh(options.output_dir)
    print(describe_precision(options))
    return data, task, options


def load_splits(data: DataArguments, test_file: list[str], columns: list[str]) -> dict[str, Dataset]:
    """The "train" and "validation" rows, and "test" where files are given."""
    splits = {split: load_split(data, split, columns) for split in ("train", "validation")}
    if test_file:
        splits["test"] = load_files(test_file, columns)
    return splits


def class_names(labels: list[Any]) -> list[Any]:
    """The classes of the training labels, sorted."""
    names = set(labels)
    if not all(isinstance(name, int | str) for name in names):
        raise SystemExit(f"Labels must be whole numbers or words; one is {next(n for n in names if n is None or n)!r}.")
    if len(names) < 2:
        raise SystemExit(f"All training labels are {labels[0]!r}; two classes or more are needed.")
    return sorted(names, key=lambda name: (str(type(name)), name))


def label_settings(names: list[Any]) -> dict[str, dict]:
    """The configuration's names of the classes, for the numbers that labels are."""
    return {"id2label": dict(enumerate(map(str, names))), "label2id": {str(name): i for i, name in enumerate(names)}}


def build_trainer(
    auto: type,
    model: str,
    tokenizer: PreTrainedTokenizerBase,
    encoded: dict[str, Dataset],
    training: TrainingArguments,
    compute_metrics: Metric,
    data_collator: DataCollator | None = None,
    **settings: Any,
) -> Trainer:
    """The stock Trainer of a checkpoint with a new head, both seeded; without a collator, batches are padded."""
    set_seed(training.seed)
    return Trainer(
        model=load_pretrained(auto, model, **settings),
        args=training,
        data_collator=data_collator,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
    )


def load_pretrained(auto: type, name: str, **settings: Any) -> PreTrainedModel:
    """The checkpoint as a class of transformers' Auto classes, with a new head and these settings."""
    try:
        return auto.from_pretrained(name, **settings)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{name!r} cannot be loaded: {str(error).strip().splitlines()[0]}") from error


def train_and_evaluate(
    trainer: Trainer,
    encoded: dict[str, Dataset],
    baselines: dict[str, dict[str, float]],
    metrics: dict[str, Metric] | None = None,
) -> dict[str, dict[str, float]]:
    """Trains, saves the model with `results.json`, and returns it: each split's metrics, its baseline's after them.

    `metrics` has a metric for each split, where one metric for all cannot do.
    """
    trainer.train()
    results = {}
    for split in [split for split in encoded if split != "train"]:
        if metrics is not None:
            trainer.compute_metrics = metrics[split]
        found = trainer.evaluate(encoded[split], metric_key_prefix=split)
        kept = {key.removeprefix(f"{split}_"): value for key, value in found.items() if key.startswith(split)}
        speed = ("runtime", "samples_per_second", "steps_per_second")
        results[split] = {key: value for key, value in kept.items() if key not in speed} | baselines[split]
    trainer.save_model()
    (Path(trainer.args.output_dir) / "results.json").write_text(json.dumps(results, indent=2))
    return results


def report(results: dict[str, dict[str, float]]) -> None:
    for split, metrics in results.items():
        print(f"{split}: " + ", ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
