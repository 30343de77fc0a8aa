"""retrofit: a trained encoder under another position scheme, distilled from itself."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import ModelCard
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..convert import Report, convert
from ..convert.checkpoint import read_tokenizer
from ..folders import last_checkpoint
from ..text_files import read_json, sha256, write_json
from .measure import measure
from .recipe import LONGEST, Recipe
from .start import keep_positions
from .texts import Batches, hold_out, read_texts

if TYPE_CHECKING:
    from transformers import TrainerCallback

SETTINGS = "settings.json"
EVALUATION_BATCHES = 8
"""Batches of held-out text that are measured at each evaluation."""
METHOD = (
    "Made from {source} by self-distillation: its positions were replaced, and then its weights were trained, without "
    "labels, to give the last hidden states of {source} again."
)


@dataclass
class Retrofitted:
    """A model under new positions, and how it was made.

    Args:
        model: in eval mode, with the head and the dtype of its source.
        source: its name.
        report: what became of the source's tensors before the training.
        recipe: how it was distilled.
        texts: names of the texts.
        before, after: figures on held-out text, as `measure.measure` has them.
        steps: the training ran for so many, of which the best evaluation was taken.
        minutes: they took so many, with evaluations and checkpoints.
        history: evaluations, as Trainer logs them.
    """

    model: PreTrainedModel
    source: str
    report: Report
    recipe: Recipe
    texts: list[str]
    before: dict[str, float]
    after: dict[str, float]
    steps: int = 0
    minutes: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    def card(self, name: str | None = None, tokenizer: PreTrainedTokenizerBase | None = None) -> ModelCard:
        """A model card that says how the model was made and what was measured.

        Args:
            name: the title.
            tokenizer: the one that is saved beside the model.
        """
        from ..card import create_card, is_repo_id  # with Trainer, which takes seconds

        folder = Path(self.source).is_dir()
        source = Path(self.source).resolve().name if folder else self.source
        before = {f"{key}_before": value for key, value in self.before.items() if key not in OF_THE_SOURCE}
        return create_card(
            self.model,
            name=name,
            base_model=source if not folder and is_repo_id(source) else None,
            dataset=[described(text) for text in self.texts],
            method=METHOD.format(source=source),
            training_args={**asdict(self.recipe), "steps": self.steps, "minutes": round(self.minutes, 1)},
            metrics={key: round(value, 4) for key, value in {**self.after, **before}.items()},
            tokenizer=tokenizer,
        )


def described(text: str) -> str:
    """What a text is called where others read it: of a path its last name alone."""
    path = Path(text)
    return f"{path.name}, a {'file' if path.is_file() else 'folder'}" if path.exists() else text


OF_THE_SOURCE = ("masked_lm_loss_of_source",)
"""Figures that the training does not change."""


def retrofit(
    source: str | Path,
    position_embedding_type: str | None,
    texts: Sequence[str | Path],
    checkpoints: str | Path,
    position_options: dict[str, Any] | None = None,
    *,
    recipe: Recipe | None = None,
    resume: bool = False,
    progress: bool = False,
    callbacks: Sequence["TrainerCallback"] = (),
) -> Retrofitted:
    """A checkpoint under another position scheme, trained on text until it gives the states that it gave before.

    Teacher is the source as `convert` has it, student the same under the new scheme. Both read the same padded batches,
    and the student's encoder learns the teacher's last hidden states at real tokens, by the stock Trainer, in bfloat16
    where the machine computes it. A head keeps its weights. The evaluation with the least difference is taken.

    Args:
        source: a folder or a name on the Hub of anything that `convert` takes, with a tokenizer.
        position_embedding_type: the new scheme.
        texts: .txt files (a text a line), .jsonl files (`text` of each row), or names of data sets; each is drawn from
            as often as another.
        checkpoints: a folder for what a resume needs, new or empty; whoever has the result may remove it.
        position_options: options of the scheme.
        recipe: how long, and how; None for the defaults.
        resume: go on with the last checkpoint in the folder, which was begun with the same settings.
        progress: show Trainer's progress bar.
        callbacks: further ones for Trainer.

    Raises:
        TypeError: the source is a model, which is to be saved first, or the texts are no list.
        ValueError: the source cannot be converted, has these positions already, has no tokenizer or another model's
            states to read; a text cannot be read; the folder is not as it has to be; the training diverged.
    """
    from .distillation import Clock, build_trainer  # with Trainer, which takes seconds

    if not isinstance(source, str | Path):
        raise TypeError(
            f"The source is a {type(source).__name__}; it must be a folder or a name on the Hub: save the model first."
        )
    if isinstance(texts, str | Path):
        raise TypeError(f"texts is {str(texts)!r}; it must be a list of files or of names of data sets.")
    recipe, names, folder = recipe or Recipe(), [str(text) for text in texts], Path(checkpoints)
    settings: dict[str, Any] = {"source": str(source), "position": position_embedding_type, "options": position_options}
    settings |= {"texts": names, **asdict(recipe), **contents([*names, *weights_of(source)])}
    check_folder(folder, settings, resume)
    torch.manual_seed(recipe.seed)
    student: Any
    student, report = convert(source, position_embedding_type, position_options, return_report=True)
    tokenizer = read_tokenizer(str(source))
    check(str(source), student, report, tokenizer)
    assert tokenizer is not None  # which `check` has seen to
    dtype, teacher = student.dtype, convert(source).float()
    student.float()
    length = long_length(recipe, teacher, student)
    keep_positions(student.base_model, teacher.base_model, recipe.short_length, tokenizer.cls_token_id)

    kept, held = hold_out(read_texts(names), recipe.seed)
    batches = Batches(kept, tokenizer, recipe, length, recipe.steps)
    held_out = Batches(held, tokenizer, recipe, length, EVALUATION_BATCHES)
    before = measure(student, teacher, held_out, tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SETTINGS, settings)
    trainer = build_trainer(student.base_model, teacher.base_model, recipe, batches, held_out, folder, progress)
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=last_of_run(folder) if resume else None)
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)  # else its forward stays in bfloat16
    student.to(dtype).float().cpu().eval()
    after = measure(student, teacher.cpu(), held_out, tokenizer)
    if not math.isfinite(after["hidden_state_difference"]):
        raise ValueError(
            f"The training diverged at learning_rate={recipe.learning_rate:g}: remove {folder}, and give a lower one."
        )
    clock = next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, Clock))
    return Retrofitted(
        model=student.to(dtype),
        source=str(source),
        report=report,
        recipe=recipe,
        texts=names,
        before=before,
        after=after,
        steps=trainer.state.global_step,
        minutes=clock.seconds / 60,
        history=[entry for entry in trainer.state.log_history if "eval_loss" in entry],
    )


def last_of_run(folder: Path) -> str | None:
    """The checkpoint to go on with, None where there is none yet; the folder may have been moved.

    Raises:
        ValueError: the checkpoint of the best evaluation is gone. Trainer would warn of it, and take the last one.
    """
    from transformers.trainer import TRAINER_STATE_NAME, TrainerState

    last = last_checkpoint(folder, TRAINER_STATE_NAME)
    if last is not None:
        path = Path(last, TRAINER_STATE_NAME)
        state = TrainerState.load_from_json(str(path))
        best = folder / Path(str(state.best_model_checkpoint)).name
        if not best.is_dir():
            raise ValueError(f"{best}, the checkpoint of the best evaluation, is gone: remove {folder} and begin anew.")
        state.best_model_checkpoint = str(best)
        state.save_to_json(str(path))
    return last


def weights_of(source: str | Path) -> list[str]:
    """The files of a source in a folder that decide what it computes."""
    folder = Path(source)
    return [str(path) for pattern in ("config.json", "*.safetensors") for path in sorted(folder.glob(pattern))]


def contents(names: Sequence[str]) -> dict[str, str]:
    """A hash of what each file holds, so that a resume is of the same."""
    return {f"sha256 of {name}": sha256(Path(name)) for name in names if Path(name).is_file()}


def check_folder(folder: Path, settings: dict[str, Any], resume: bool) -> None:
    """Raises ValueError where the folder holds anything, or on a resume the work of other settings."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    path = folder / SETTINGS
    if not path.is_file():
        raise ValueError(f"{folder} exists and is no folder of an earlier run: remove it, or name another.")
    if not resume:
        raise ValueError(f"{folder} holds a run that did not end: resume it, or remove the folder first.")
    before = read_json(path)
    for key, value in settings.items():
        if before.get(key) != value:
            raise ValueError(
                f"{folder} was begun with {key} {before.get(key)!r}, and it is {value!r} now: resume with the same "
                "settings, or remove the folder first."
            )


def check(source: str, student: PreTrainedModel, report: Report, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Raises ValueError where there is nothing to train, or nothing to train it with."""
    config: Any = student.config
    if not report.needs_training:
        raise ValueError(
            f"The positions of {source} are {config.position_embedding_type!r} with {config.position_options} already: "
            "choose another scheme."
        )
    if config.add_cross_attention:
        raise ValueError(f"{source} is a decoder that reads an encoder's states, and texts have none: give an encoder.")
    if tokenizer is None:
        raise ValueError(f"{source} has no tokenizer, and texts cannot be read without: save it in the same folder.")
    if tokenizer.pad_token is None:
        raise ValueError(f"The tokenizer of {source} has no padding token, and texts of several lengths need one.")


def long_length(recipe: Recipe, *models: PreTrainedModel) -> int:
    """Tokens of a long text; raises ValueError where a model does not read as many."""
    positions: list[Any] = [model.base_model.position for model in models]
    limits = [position.max_length for position in positions if position.max_length is not None]
    length = recipe.length or max(recipe.short_length, min([LONGEST, *limits]))
    if limits and length > min(limits):
        name = "short_length" if length == recipe.short_length else "length"
        raise ValueError(
            f"{name} is {length}, and the source or the new scheme has positions for {min(limits)} tokens: lower it."
        )
    return length
