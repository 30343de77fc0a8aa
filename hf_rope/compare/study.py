"""Study: what a file says of a comparison, checked as a whole before anything runs, and the cells that follow."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, TrainingArguments

from ..model.configuration_hf_rope import HfRopeConfig
from ..model.positions import SCHEMES
from .cell import SET_BY_CELL, Cell
from .settings import build, read_yaml, require_known
from .tasks import TASKS, Task

OF_ALL_MODELS = {field.name for field in fields(PreTrainedConfig)}
CONFIG_KEYS = [field.name for field in fields(HfRopeConfig) if field.name not in OF_ALL_MODELS]
TRAINING_KEYS = [field.name for field in fields(TrainingArguments) if field.name not in SET_BY_CELL]


@strict
@dataclass
class Study:
    """One comparison.

    Args:
        tasks: what is learned, by names of the study's own; each has a `kind`, a key of `TASKS`, and its settings.
        schemes: names of `hf_rope.SCHEMES`; or a mapping from names of the study's own to keys of HfRopeConfig, where
            a name that is no scheme's has its `position_embedding_type`.
        steps: optimizer steps of a cell.
        tokens_per_step: tokens of a batch, a multiple of every task's length; as many in each task and scheme.
        evaluate_every: after so many steps a cell is measured, and kept for a resume; divides `steps`.
        question: what the study asks, the report's title.
        model: keys of HfRopeConfig that all schemes share.
        seeds: each draws initial values, the order of the data and the masks anew.
        learning_rates: with more than one, each scheme is trained at all of them with the first seed, and with the
            other seeds at the one that gave the least validation loss; for each task.
        precision: "bfloat16" is autocast.
        training: keys of TrainingArguments, such as warmup_steps and adam_beta2.
        threshold: a validation loss; the report says when each scheme got there.
        keep_model: whether each cell's weights stay in its folder.
    """

    tasks: dict[str, Any]
    schemes: dict[str, Any] | list[str]
    steps: int
    tokens_per_step: int
    evaluate_every: int
    question: str = "A comparison of position schemes"
    model: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    learning_rates: list[float | int] = field(default_factory=lambda: [1e-3])
    precision: Literal["float32", "bfloat16"] = "float32"
    training: dict[str, Any] = field(default_factory=dict)
    threshold: float | int | None = None
    keep_model: bool = False

    folder: Path = field(default=Path(), init=False)
    """Where the names of files begin."""

    def check(self, folder: Path) -> None:
        """Checks all of it, reads the files and builds each scheme's model without its weights.

        Raises:
            ValueError: something does not fit, or a scheme cannot do a task; in one sentence.
        """
        self.folder = folder
        for name in ("tasks", "schemes", "seeds", "learning_rates"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} is {values}; it must hold one value at least, and none twice.")
        for name in ("steps", "tokens_per_step", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more.")
        if min(self.seeds) < 0 or max(self.seeds) >= 2**31:
            raise ValueError(f"seeds is {self.seeds}; each must be from 0 to 2147483647.")
        if not min(self.learning_rates) > 0:
            raise ValueError(f"learning_rates is {self.learning_rates}; each must be above 0.")
        if self.steps % self.evaluate_every:
            raise ValueError(
                f"steps={self.steps} is not a multiple of evaluate_every={self.evaluate_every}: change one of them, so "
                "that the last step is measured."
            )
        require_known(self.model, CONFIG_KEYS, "model")
        require_known(self.training, TRAINING_KEYS, "training")
        self.training_arguments()
        for name, task in self.built_tasks.items():
            if self.tokens_per_step % task.length:
                raise ValueError(
                    f"tokens_per_step={self.tokens_per_step} is not a multiple of length={task.length} of task "
                    f"{name!r}: change one of them, so that every task gets the same tokens a step."
                )
            for scheme in self.config_keys:
                self.check_scheme(scheme, name, task)

    def training_arguments(self) -> None:
        """Lets transformers check the keys of `training`."""
        try:
            TrainingArguments(**self.training, report_to="none", use_cpu=True)
        except (ValueError, TypeError) as error:
            raise ValueError(f"training: {' '.join(str(error).split()).rstrip('.')}.") from None

    @cached_property
    def built_tasks(self) -> dict[str, Task]:
        """The tasks, checked, with their files read."""
        tasks = {}
        for name, settings in self.tasks.items():
            where = f"task {name!r}"
            kind = settings.get("kind") if isinstance(settings, dict) else None
            if kind not in TASKS:
                raise ValueError(f"{where} has kind={kind!r}; it must be one of: {', '.join(TASKS)}.")
            task = build(TASKS[kind], {key: value for key, value in settings.items() if key != "kind"}, where)
            try:
                task.check()
                task.load(self.paths(task))
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            tasks[name] = task
        return tasks

    def paths(self, task: Task) -> dict[str, Path]:
        """Where each of a task's files lies: from the study's folder on, or else from the working directory."""
        paths = {}
        for name in task.files():
            found = [path for path in (self.folder / name, Path(name)) if path.is_file()]
            if not found:
                raise ValueError(
                    f"there is no file {name!r}, neither from {self.folder.resolve()} nor from {Path.cwd()}."
                )
            paths[name] = found[0].resolve()
        return paths

    @cached_property
    def config_keys(self) -> dict[str, dict[str, Any]]:
        """Each scheme's keys of HfRopeConfig, those that all share included."""
        schemes = self.schemes if isinstance(self.schemes, dict) else dict.fromkeys(self.schemes)
        keys = {}
        for name, given in schemes.items():
            given = given or {}
            if not isinstance(given, dict):
                raise ValueError(f"scheme {name!r} is {given!r}; it must be a mapping of keys of HfRopeConfig.")
            require_known(given, CONFIG_KEYS, f"scheme {name!r}")
            if name not in SCHEMES and "position_embedding_type" not in given:
                require_known({name: None}, SCHEMES, "schemes")
            keys[name] = {"position_embedding_type": name, **self.model, **given}
        return keys

    def check_scheme(self, scheme: str, task_name: str, task: Task) -> None:
        """Refuses a scheme that cannot do a task; builds the model on the meta device, where it takes no memory."""
        try:
            config = HfRopeConfig(**{**task.config(), **self.config_keys[scheme]})
            with torch.device("meta"):
                model = task.head.from_config(config)
            model.base_model.position.require_length(task.length)
        except (ValueError, TypeError) as error:
            raise ValueError(f"scheme {scheme!r} cannot do task {task_name!r}: {error}") from None

    @cached_property
    def cells(self) -> dict[tuple[str, str, float, int], Cell]:
        """All cells by (task, scheme, learning rate, seed), those included that a choice of the rate leaves out."""
        cells = {}
        for task_name, task in self.built_tasks.items():
            paths = self.paths(task)
            hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}
            kind = self.tasks[task_name]["kind"]
            for scheme, keys in self.config_keys.items():
                config = HfRopeConfig(**{**task.config(), **keys})
                written_out = ("position_options", "rope_parameters", "scale_embedding")
                full = {key: getattr(config, key) for key in written_out}
                for rate in self.learning_rates:
                    for seed in self.seeds:
                        settings = {
                            "task": {"kind": kind, **asdict(task)},  # type: ignore[call-overload]
                            "files": hashes,
                            "config": {**keys, **{key: value for key, value in full.items() if value}},
                            "seed": seed,
                            "learning_rate": rate,
                            "lr_multipliers": lr_multipliers(config),
                            "steps": self.steps,
                            "tokens_per_step": self.tokens_per_step,
                            "evaluate_every": self.evaluate_every,
                            "precision": self.precision,
                            "training": self.training,
                        }
                        settings = json.loads(json.dumps(settings))
                        cells[task_name, scheme, rate, seed] = Cell(
                            task=task_name,
                            scheme=scheme,
                            settings=settings,
                            paths={name: str(path) for name, path in paths.items()},
                            keep_model=self.keep_model,
                        )
        return cells


def lr_multipliers(config: HfRopeConfig) -> dict[str, float]:
    """By the names of a scheme's parameters, how many times the learning rate they have; others have it once."""
    scheme = SCHEMES[config.position_embedding_type]
    with torch.device("meta"):
        return {**scheme.lr_multipliers, **scheme.for_layer(config, 0).lr_multipliers}


def read_study(path: str | Path) -> Study:
    """The study of a file, checked.

    Raises:
        ValueError: the file, or something in it, cannot be read or does not fit; in one sentence.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no study {str(path)!r}: name a YAML file.")
    return make_study(read_yaml(path), path.parent)


def make_study(settings: dict[str, Any], folder: str | Path = ".") -> Study:
    """The study of a mapping, checked; the names of its files begin in a folder."""
    study = build(Study, settings, "the study")
    study.check(Path(folder))
    return study
