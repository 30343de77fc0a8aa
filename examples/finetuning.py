"""What the finetune_*.py scripts share: arguments, the Trainer, and training with a baseline beside the result."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
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
from hf_rope.text_files import write_json
from loading import (
    DataArguments,
    check_training,
    describe_precision,
    load_split,
    require_finite,
    require_fresh,
)

LOAD_ERRORS = (OSError, ValueError, TypeError, RuntimeError, SafetensorError, StrictDataclassError)
"""What from_pretrained raises for a checkpoint or a setting that it cannot use."""
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
    check_training(options)
    require_fresh(options.output_dir)
    print(describe_precision(options))
    return data, task, options


def load_splits(data: DataArguments, test_file: list[str], columns: list[str]) -> dict[str, Dataset]:
    """The "train" and "validation" rows, and "test" where files are given."""
    splits = {split: load_split(data, split, columns) for split in ("train", "validation")}
    if test_file:
        splits["test"] = load_split(data, "test", columns, test_file)
    return splits


def class_names(labels: list[Any]) -> list[Any]:
    """The classes of the training labels, sorted."""
    for label in labels:
        if not isinstance(label, int | str):
            raise SystemExit(f"Labels must be whole numbers or words; one is {label!r}.")
    names = set(labels)
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
    loaded = load_pretrained(auto, model, **settings)
    check_positions(model, loaded, max(count_tokens(ids) for rows in encoded.values() for ids in rows["input_ids"]))
    return Trainer(
        model=loaded,
        args=training,
        data_collator=data_collator,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
    )


def load_pretrained(auto: type, name: str, **settings: Any) -> Any:
    """The checkpoint, or its configuration, as a class of transformers' Auto classes, with these settings."""
    try:
        return auto.from_pretrained(name, **settings)
    except LOAD_ERRORS as error:
        raise refusal(name, error) from error


def refusal(name: str, error: Exception) -> SystemExit:
    """One sentence of what from_pretrained raised, whose first line may only name the setting."""
    first, *more = str(error).strip().splitlines() or [type(error).__name__]
    return SystemExit(f"{name!r} cannot be loaded: {' '.join([first, *map(str.strip, more[: first.endswith(':')])])}")


def longest_input(model: PreTrainedModel) -> int | None:
    """The tokens that a model's table of positions is for, None where it has none."""
    position = getattr(model.base_model, "position", None)
    if position is not None:
        return position.max_length
    for name, module in model.named_modules():
        if name.endswith(("position_embeddings", "embed_positions")) and isinstance(module, torch.nn.Embedding):
            # RoBERTa's positions begin after the padding's row
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None


def check_positions(name: str, model: PreTrainedModel, longest: int) -> None:
    """Refuses inputs of up to `longest` tokens where a model's table of positions ends before."""
    limit = longest_input(model)
    if limit is not None and longest > limit:
        raise SystemExit(f"{name!r} has positions for {limit} tokens, and inputs have {longest}: lower --max_length.")


def check_max_length(tokenizer: PreTrainedTokenizerBase, max_length: int, pair: bool = False) -> None:
    """Refuses a length that leaves no room for a token of each text beside the special ones."""
    least = tokenizer.num_special_tokens_to_add(pair=pair) + (2 if pair else 1)
    if max_length < least:
        raise SystemExit(f"--max_length is {max_length}; with the special tokens it must be {least} or more.")


def count_tokens(input_ids: list) -> int:
    """The tokens of an input, or of the longest of several choices."""
    return max(map(len, input_ids)) if input_ids and isinstance(input_ids[0], list) else len(input_ids)


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
    trainer.save_model()
    trainer.args.dataloader_persistent_workers = False  # else Trainer evaluates what it evaluated first
    results = {}
    for split in [split for split in encoded if split != "train"]:
        if metrics is not None:
            trainer.compute_metrics = metrics[split]
        found = trainer.evaluate(encoded[split], metric_key_prefix=split)
        require_finite(found[f"{split}_loss"], trainer.args)
        kept = {key.removeprefix(f"{split}_"): value for key, value in found.items() if key.startswith(split)}
        speed = ("runtime", "samples_per_second", "steps_per_second")
        results[split] = {key: value for key, value in kept.items() if key not in speed} | baselines[split]
    write_json(Path(trainer.args.output_dir) / "results.json", results)
    return results


def report(results: dict[str, dict[str, float]]) -> None:
    for split, metrics in results.items():
        print(f"{split}: " + ", ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
