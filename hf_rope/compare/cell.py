"""Cell: one model of a study, trained by the stock Trainer. What comes out follows from its settings alone."""

import contextlib
import hashlib
import json
import math
import platform
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState, PrinterCallback
from transformers.utils import logging

from ..folders import last_checkpoint
from ..model.configuration_hf_rope import HfRopeConfig
from ..optimization import param_groups
from ..text_files import read_json, write_json
from .tasks import TASKS, Task

RESULT, PROGRESS, ERROR, COMPLETE, LOCK = "result.json", "progress.json", "error.txt", "complete", "lock"
CELLS, MODEL = "cells", "model"
"""The folder of a study's cells in its own, and of a cell's weights in its own."""
MOST_LETTERS = 60
"""Of the name of a task or a scheme in the name of a folder; a hash follows."""
POSITION_LR = "position_lr_multiplier"
"""The setting of a cell whose positions have another learning rate than the scheme recommends."""
SET_BY_CELL = {
    "auto_find_batch_size",
    "batch_eval_metrics",
    "bf16",
    "bf16_full_eval",
    "data_seed",
    "dataloader_drop_last",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
    "disable_tqdm",
    "eval_delay",
    "eval_do_concat_batches",
    "eval_on_start",
    "eval_steps",
    "eval_strategy",
    "fp16",
    "fp16_full_eval",
    "gradient_accumulation_steps",
    "ignore_data_skip",
    "label_names",
    "label_smoothing_factor",
    "learning_rate",
    "load_best_model_at_end",
    "log_level",
    "logging_first_step",
    "logging_nan_inf_filter",
    "logging_steps",
    "logging_strategy",
    "max_steps",
    "num_train_epochs",
    "output_dir",
    "per_device_eval_batch_size",
    "per_device_train_batch_size",
    "prediction_loss_only",
    "push_to_hub",
    "remove_unused_columns",
    "report_to",
    "resume_from_checkpoint",
    "save_only_model",
    "save_steps",
    "save_strategy",
    "save_total_limit",
    "seed",
    "train_sampling_strategy",
    "use_cpu",
}
"""The keys of TrainingArguments that a study cannot give: they follow from its other settings, or would break the
budget, the resume or what is measured."""


@dataclass(frozen=True)
class Cell:
    """A scheme, a task, a learning rate and a seed.

    Args:
        task, scheme: their names in the study.
        settings: all that decides the result, as JSON has it: the hash of the files included, their places not.
        paths: where the files lie on this machine.
        keep_model: whether the weights stay.
        start: the folder, on this machine, of the weights that it starts from, those of another cell; None for initial
            values. That cell's settings are among its own.
    """

    task: str
    scheme: str
    settings: dict[str, Any]
    paths: dict[str, str]
    keep_model: bool
    start: str | None = None

    @property
    def name(self) -> str:
        """The name of its folder: what it is, and a hash of its settings."""
        text = json.dumps(self.settings, sort_keys=True)
        parts = (self.task, self.scheme, f"lr{self.settings['learning_rate']:g}", f"seed{self.settings['seed']}")
        words = [re.sub(r"[^\w.]+", "_", part)[:MOST_LETTERS] for part in parts]
        return "-".join([*words, hashlib.sha256(text.encode()).hexdigest()[:10]])

    @property
    def device(self) -> str:
        """Where it is trained, "cpu" or "cuda"; only the second is among the settings."""
        return self.settings.get("device", "cpu")


def read_result(folder: Path) -> dict[str, Any] | None:
    """What a cell that is finished found; None where it is not.

    Raises:
        ValueError: the file holds something else.
    """
    path = folder / RESULT
    if not path.is_file():
        return None
    result = read_json(path)
    if not isinstance(result, dict) or "evaluations" not in result:
        raise ValueError(f"{path} holds no result of a cell: remove it, and resume.")
    return result


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One thread, so that sums are the same whichever worker takes them, and no output of transformers."""
    threads, verbosity = torch.get_num_threads(), logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def require_device(device: str) -> None:
    """Raises ValueError where a cell would be trained on another device than its study says, or on several."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"The study's device is {device!r}, and PyTorch {torch.__version__} finds no GPU here: run it where there "
            "is one, or write device: cpu."
        )
    if device == "cuda" and torch.cuda.device_count() > 1:
        raise ValueError(
            f"The study's device is {device!r}, and there are {torch.cuda.device_count()} GPUs, of which a cell takes "
            "one: name one in CUDA_VISIBLE_DEVICES."
        )


def build_task(cell: Cell) -> Task:
    settings = dict(cell.settings["task"])
    task = TASKS[settings.pop("kind")](**settings)
    task.load({name: Path(path) for name, path in cell.paths.items()})
    return task


def build_model(cell: Cell, task: Task) -> PreTrainedModel:
    """The model with its initial values: all that it shares with the model without positions is as in that one.

    Where the cell starts from another one, it has that one's weights, and only what is new has initial values.
    """
    keys, seed = {**task.config(), **cell.settings["config"]}, cell.settings["seed"]
    if keys.get("feature_map") == "favor":
        keys.setdefault("feature_seed", seed)
    shared = {key: value for key, value in keys.items() if key not in ("position_options", "rope_parameters")}
    torch.manual_seed(seed)
    plain = task.head.from_config(HfRopeConfig(**{**shared, "position_embedding_type": "none"})).state_dict()
    torch.manual_seed(seed)
    model = task.head.from_config(HfRopeConfig(**keys))
    take_over(model, plain)
    if cell.start is not None:
        take_over(model, load_start(cell).state_dict())
    return model


def take_over(model: PreTrainedModel, values: dict[str, torch.Tensor]) -> None:
    """Gives a model the values of another one, wherever both have the same name and shape."""
    own = model.state_dict()
    same = {name: value for name, value in values.items() if name in own and own[name].shape == value.shape}
    model.load_state_dict({**own, **same})


def load_start(cell: Cell) -> PreTrainedModel:
    """The model that a cell starts from, as it was trained."""
    folder = Path(str(cell.start))
    if not folder.is_dir():
        raise ValueError(
            f"It starts from {folder}, which is not there: see why that cell failed or, where only its weights are "
            f"gone, remove its {RESULT} and resume."
        )
    return TASKS[cell.settings["start"]["task"]["kind"]].head.from_pretrained(folder)


class Clock(TrainerCallback, ExportableState):
    """Counts the seconds of optimizer steps, without evaluations and saving, and tells the folder how far they are."""

    def __init__(self, folder: Path, tokens_per_step: int):
        self.folder, self.tokens_per_step = folder, tokens_per_step
        self.steps, self.seconds, self.told = 0, 0.0, 0.0

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"steps": self.steps, "seconds": self.seconds}}

    @property
    def tokens_per_second(self) -> float | None:
        return self.steps * self.tokens_per_step / self.seconds if self.seconds else None

    def on_train_begin(self, args, state, control, **kwargs):
        saved = state.stateful_callbacks[type(self).__name__]["attributes"]
        self.steps, self.seconds = saved["steps"], saved["seconds"]

    def on_step_begin(self, args, state, control, **kwargs):
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()  # else it is the time in which kernels were launched
        self.seconds += time.perf_counter() - self.began
        self.steps += 1
        if time.monotonic() > self.told + 1:
            self.told = time.monotonic()
            write_json(self.folder / PROGRESS, {"step": state.global_step, "tokens_per_second": self.tokens_per_second})

    def on_save(self, args, state, control, **kwargs):
        """Marks a checkpoint as whole, which is written file by file."""
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


def training_arguments(cell: Cell, task: Task, folder: Path) -> TrainingArguments:
    settings = cell.settings
    sequences = settings["tokens_per_step"] // task.length
    every = settings["evaluate_every"]
    return TrainingArguments(
        **settings["training"],
        output_dir=str(folder),
        max_steps=settings["steps"],
        per_device_train_batch_size=sequences,
        per_device_eval_batch_size=sequences,
        learning_rate=settings["learning_rate"],
        seed=settings["seed"],
        bf16=settings["precision"] == "bfloat16",
        use_cpu=cell.device == "cpu",
        train_sampling_strategy="sequential",
        eval_strategy="steps",
        eval_steps=every,
        logging_steps=every,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,  # the older one is whole while the newer is written
        prediction_loss_only=task.compute_metrics is None,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        log_level="error",
        report_to="none",
    )


def run_cell(cell: Cell, folder: Path) -> dict[str, Any]:
    """Trains a cell in its folder, from its last checkpoint on, and writes its result there; never twice.

    Where another process trains it, such as a worker that outlives a study that was killed, that one's end is waited
    for. Checkpoints are removed at the end. Raises what building or training raises.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK):
        result = read_result(folder)
        if result is None:
            result = run_locked(cell, folder)
    (folder / LOCK).unlink(missing_ok=True)  # whoever waits for it finds a result
    return result


def run_locked(cell: Cell, folder: Path) -> dict[str, Any]:
    """As `run_cell`, in a folder that no other process works in."""
    (folder / ERROR).unlink(missing_ok=True)
    write_json(folder / PROGRESS, {"step": 0, "tokens_per_second": None})
    try:
        with alone():
            result = train(cell, folder)
        write_json(folder / RESULT, result)
    finally:
        (folder / PROGRESS).unlink(missing_ok=True)
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)
    return result


def build_trainer(cell: Cell, task: Task, folder: Path) -> Trainer:
    """The stock Trainer on the task's examples, in their own order; positions learn at rates of their own."""
    arguments = training_arguments(cell, task, folder)
    examples = cell.settings["steps"] * arguments.per_device_train_batch_size
    model = build_model(cell, task)
    lr, multiplier = arguments.learning_rate, cell.settings.get(POSITION_LR)
    position_lr = None if multiplier is None else multiplier * lr
    groups = param_groups(model, lr, weight_decay=arguments.weight_decay, position_lr=position_lr)
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    trainer = Trainer(
        model=model,
        args=arguments,
        optimizers=(kind(groups, **options), None),
        data_collator=task.collator(),
        train_dataset=task.training(cell.settings["seed"], examples) if examples else None,
        eval_dataset=task.evaluation(),
        compute_metrics=task.compute_metrics,
        preprocess_logits_for_metrics=task.predictions,
        callbacks=[Clock(folder, cell.settings["tokens_per_step"])],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def train(cell: Cell, folder: Path) -> dict[str, Any]:
    """The result of a cell."""
    require_device(cell.device)
    task = build_task(cell)
    trainer = build_trainer(cell, task, folder)
    model: Any = trainer.model
    if cell.settings["steps"]:
        trainer.train(resume_from_checkpoint=last_checkpoint(folder, COMPLETE))
    else:
        trainer.evaluate()
    history = trainer.state.log_history
    steps = [row["step"] for row in history if "eval_loss" in row]
    measured = [scores(task, row, "eval") for row in history if "eval_loss" in row]
    evaluations = {"validation": {**measured[-1], **task.measure(model)}}
    for length in task.test_lengths:
        evaluations[str(length)] = score_length(trainer, task, length)
    if cell.keep_model:
        trainer.save_model(str(folder / MODEL))
    clock = next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, Clock))
    return {
        "task": cell.task,
        "scheme": cell.scheme,
        "settings": cell.settings,
        "evaluations": evaluations,
        "curve": {
            "step": steps,
            "training_loss": [row["loss"] for row in history if "loss" in row],
            **{
                f"validation_{key}": [row[key] for row in measured]
                for key, value in measured[0].items()
                if not isinstance(value, list)
            },
        },
        "baseline": task.baseline(),
        "parameters": model.num_parameters(),
        "speed": {"seconds": clock.seconds, "tokens_per_second": clock.tokens_per_second},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        | ({} if cell.device == "cpu" else {"device": torch.cuda.get_device_name()}),
    }


def score_length(trainer: Trainer, task: Task, length: int) -> dict[str, Any]:
    """The scores of longer sequences, or why the scheme refuses them."""
    model: Any = trainer.model
    try:
        model.base_model.position.require_length(length)
    except ValueError as error:
        return {"refused": str(error)}
    trainer.args.per_device_eval_batch_size = task.evaluation_batch(length, trainer.args.per_device_train_batch_size)
    return scores(task, trainer.evaluate(task.evaluation(length), metric_key_prefix="test"), "test")


def scores(task: Task, metrics: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The task's scores. Where the loss is not finite, they are None and lists empty: of NaN no class is the best."""
    found = task.scores({key.removeprefix(f"{prefix}_"): value for key, value in metrics.items()})
    if math.isfinite(found["loss"]):
        return found
    return {key: [] if isinstance(value, list) else None for key, value in found.items()}
