"""The stock Trainer with another loss: how far the last hidden states are from a teacher's."""

import time
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState, PrinterCallback

from ..optimization import param_groups
from ..precision import training_precision
from .recipe import Recipe
from .texts import Batches


def difference(states: torch.Tensor, wanted: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """|states - wanted|^2 / |wanted|^2 over the real tokens of (B, L, D), in float32; `mask` is (B, L)."""
    real = mask.bool()
    states, wanted = states[real].float(), wanted[real].float()
    return (states - wanted).square().sum() / wanted.square().sum()


class Distillation(Trainer):
    """Trainer, but that the loss is `difference` of the model's last hidden states and the teacher's.

    Args:
        teacher: an encoder in eval mode.
        kwargs: Trainer's.
    """

    def __init__(self, teacher: PreTrainedModel, **kwargs: Any):
        super().__init__(**kwargs)
        self.teacher = teacher.to(self.args.device)  # type: ignore[arg-type]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        model.eval()  # the teacher drops nothing, and what the student drops it could not learn
        with torch.no_grad(), self.accelerator.autocast():
            wanted = self.teacher(**inputs).last_hidden_state
        outputs = model(**inputs)
        loss = difference(outputs.last_hidden_state, wanted, inputs["attention_mask"])
        return (loss, outputs) if return_outputs else loss


class Clock(TrainerCallback, ExportableState):
    """Ends a training after some minutes, with an evaluation; those before a resume count.

    Args:
        minutes: None for no limit.
    """

    def __init__(self, minutes: float | None = None):
        self.minutes, self.seconds = minutes, 0.0

    def state(self) -> dict[str, Any]:
        return {"args": {"minutes": self.minutes}, "attributes": {"seconds": self.seconds}}

    def on_train_begin(self, args, state, control, **kwargs):
        self.last = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.tick()
        if self.minutes is not None and self.seconds >= 60 * self.minutes:
            control.should_evaluate = control.should_save = control.should_training_stop = True

    def on_evaluate(self, args, state, control, **kwargs):
        self.tick()

    def on_train_end(self, args, state, control, **kwargs):
        self.tick()

    def tick(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self.last
        self.last = now


def build_trainer(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    recipe: Recipe,
    batches: Batches,
    held_out: Batches,
    folder: Path,
    progress: bool,
) -> Distillation:
    """The Trainer of two encoders, with its checkpoints in a folder."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=recipe.steps,
        learning_rate=recipe.learning_rate,
        warmup_steps=recipe.warmup_share,
        weight_decay=0.0,
        per_device_train_batch_size=1,  # an item of `Batches` is a batch
        per_device_eval_batch_size=1,
        train_sampling_strategy="sequential",
        eval_strategy="steps",
        eval_steps=recipe.evaluate_every,
        logging_steps=recipe.evaluate_every,
        save_strategy="steps",
        save_steps=recipe.evaluate_every,
        save_total_limit=1,  # and the best one
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        restore_callback_states_from_checkpoint=True,
        label_names=["input_ids"],  # the loss needs no label, and Trainer evaluates none without
        prediction_loss_only=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=not progress,
        seed=recipe.seed,
        report_to="none",
        **training_precision(),
    )
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    groups = param_groups(student, arguments.learning_rate)
    trainer = Distillation(
        teacher,
        model=student,
        args=arguments,
        data_collator=itemgetter(0),
        train_dataset=batches,
        eval_dataset=held_out,
        callbacks=[Clock(recipe.minutes), EarlyStoppingCallback(recipe.patience)],
        optimizer_cls_and_kwargs=(kind, {**options, "params": groups}),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
