"""Study: what a file says of a comparison, checked as a whole before anything runs, and the cells that follow."""

import json
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, TrainingArguments

from ..model.configuration_hf_rope import HfRopeConfig
from ..model.positions import SCHEMES
from ..text_files import sha256
from .cell import POSITION_LR, SET_BY_CELL, Cell
from .settings import build, read_yaml, require_known
from .start import Start
from .tasks import TASKS, Task

OF_ALL_MODELS = {field.name for field in fields(PreTrainedConfig)}
CONFIG_KEYS = [field.name for field in fields(HfRopeConfig) if field.name not in OF_ALL_MODELS]
CONFIG_KEYS += ["attn_implementation"]
SCHEME_KEYS = [*CONFIG_KEYS, POSITION_LR]
START = "start"
"""The folder, in a study's own, of the study that it starts from, where that has no other place."""
FROM_SCRATCH = ", from scratch"
TRAINING_KEYS = [field.name for field in fields(TrainingArguments) if field.name not in SET_BY_CELL]


@strict
@dataclass
class Study:
    """One comparison.

    Args:
        tasks: what is learned, by names of the study's own; each has a `kind`, a key of `TASKS`, and its settings.
        schemes: names of `hf_rope.SCHEMES`; or a mapping from names of the study's own to keys of HfRopeConfig, where
            a name that is no scheme's has its `position_embedding_type`. With `start`, names of that study's schemes;
            a name of this study's own has, as `start`, the one whose model it takes. `position_lr_multiplier` is how
            many times the learning rate all parameters of the positions have, in place of what the scheme recommends.
        steps: optimizer steps of a cell; with `start` 0 as well, for models that are measured as they are.
        evaluate_every: after so many steps a cell is measured, and kept for a resume; divides `steps`.
        tokens_per_step: tokens of a batch, a multiple of every task's length; as many in each task and scheme.
        sequences_per_step: in its place, the sequences of a batch, where tasks of every length get as many.
        question: what the study asks, the report's title.
        model: keys of HfRopeConfig that all schemes share.
        seeds: each draws initial values, the order of the data and the masks anew.
        learning_rates: with more than one, each scheme is trained at all of them with the first seed, and with the
            other seeds at the one that gave the least validation loss; for each task.
        precision: "bfloat16" is autocast.
        device: where cells are trained. On "cuda" a cell that is run again is equal within rounding, not to the bit.
        training: keys of TrainingArguments, such as warmup_steps and adam_beta2.
        threshold: a validation loss; the report says when each scheme got there.
        keep_model: whether each cell's weights stay in its folder.
        start: another study, a file named from this one's folder or its settings, with one task, one learning rate and
            `keep_model`. Each cell starts from the weights of that study's cell of the same scheme and seed, whose
            configuration it has but for what `model` and `schemes` change.
        from_scratch: names of `schemes` that are trained from initial values as well, beside `start`.
        leave_out: by the name of a task, names of `schemes` that do not run it.
    """

    tasks: dict[str, Any]
    schemes: dict[str, Any] | list[str]
    steps: int
    evaluate_every: int
    tokens_per_step: int | None = None
    sequences_per_step: int | None = None
    question: str = "A comparison of position schemes"
    model: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    learning_rates: list[float | int] = field(default_factory=lambda: [1e-3])
    precision: Literal["float32", "bfloat16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    training: dict[str, Any] = field(default_factory=dict)
    threshold: float | int | None = None
    keep_model: bool = False
    start: str | dict[str, Any] | None = None
    from_scratch: list[str] = field(default_factory=list)
    leave_out: dict[str, list[str]] = field(default_factory=dict)

    folder: Path = field(default=Path(), init=False)
    """Where the names of files begin."""
    start_folder: Path = field(default=Path(), init=False)
    """Where the study of `start` is run."""
    files: tuple[Path, ...] = field(default=(), init=False)
    """The study's own file, after those of the studies that start from it."""

    def check(self, folder: Path, start_folder: Path, files: tuple[Path, ...] = ()) -> None:
        """Checks all of it, reads the files and builds each scheme's model without its weights.

        Raises:
            ValueError: something does not fit, or a scheme cannot do a task; in one sentence.
        """
        self.folder, self.start_folder, self.files = folder, start_folder, files
        for name in ("tasks", "schemes", "seeds", "learning_rates"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} is {values}; it must hold one value at least, and none twice.")
        if (self.tokens_per_step is None) == (self.sequences_per_step is None):
            raise ValueError(
                f"tokens_per_step is {self.tokens_per_step} and sequences_per_step is {self.sequences_per_step}: give "
                "one of them."
            )
        for name in ("tokens_per_step", "sequences_per_step", "evaluate_every"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be 1 or more.")
        if self.steps < 0 or (self.steps == 0 and self.start is None):
            raise ValueError(f"steps is {self.steps}; it must be 1 or more, or 0 in a study with a start.")
        if min(self.seeds) < 0 or max(self.seeds) >= 2**31:
            raise ValueError(f"seeds is {self.seeds}; each must be from 0 to 2147483647.")
        if not all(0 < rate < float("inf") for rate in self.learning_rates):
            raise ValueError(f"learning_rates is {self.learning_rates}; each must be a number above 0.")
        if self.threshold is not None and not 0 < self.threshold < float("inf"):
            raise ValueError(f"threshold is {self.threshold}; it must be a loss above 0, or left out.")
        if self.steps % self.evaluate_every:
            raise ValueError(
                f"steps={self.steps} is not a multiple of evaluate_every={self.evaluate_every}: change one of them, so "
                "that the last step is measured."
            )
        require_known(self.model, CONFIG_KEYS, "model")
        if (scheme := self.model.get("position_embedding_type")) is not None:
            raise ValueError(f"model has position_embedding_type={scheme!r}; that is for schemes to say: leave it out.")
        require_known(self.training, TRAINING_KEYS, "training")
        self.training_arguments()
        for name, task in self.built_tasks.items():
            if self.tokens_per_step is not None and self.tokens_per_step % task.length:
                raise ValueError(
                    f"tokens_per_step={self.tokens_per_step} is not a multiple of length={task.length} of task "
                    f"{name!r}: change one of them, so that every task gets the same tokens a step."
                )
        require_known(self.leave_out, self.tasks, "leave_out")
        for name, schemes in self.leave_out.items():
            require_known(dict.fromkeys(schemes), self.config_keys, f"leave_out of {name!r}")
        if hidden := [name for name in (*self.tasks, *self.config_keys) if name.startswith("_")]:
            raise ValueError(f"{hidden[0]!r} begins with _, and no figure would name it: give it another name.")
        if idle := [name for name in self.tasks if name not in {task for task, _ in self.pairs}]:
            raise ValueError(f"leave_out names every scheme of task {idle[0]!r}: leave the task out.")
        for keys in self.config_keys.values():
            if (attention := keys.get("attn_implementation", "sdpa")) not in ("sdpa", "eager"):
                raise ValueError(f"attn_implementation is {attention!r}; cells are trained with sdpa or eager.")
        for name, scheme in self.pairs:
            self.check_scheme(scheme, name, self.built_tasks[name])

    def training_arguments(self) -> None:
        """Lets transformers check the keys of `training`."""
        try:
            TrainingArguments(**self.training, report_to="none", use_cpu=True)
        except (ValueError, TypeError, ImportError) as error:
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
    def given_schemes(self) -> dict[str, dict[str, Any]]:
        """What the study gives for each scheme."""
        schemes = self.schemes if isinstance(self.schemes, dict) else dict.fromkeys(self.schemes)
        known = SCHEME_KEYS if self.start is None else ["start", *SCHEME_KEYS]
        for name, given in schemes.items():
            if not isinstance(given, dict | None):
                raise ValueError(f"scheme {name!r} is {given!r}; it must be a mapping of keys of HfRopeConfig.")
            require_known(given or {}, known, f"scheme {name!r}")
            multiplier = (given or {}).get(POSITION_LR, 1)
            if not isinstance(multiplier, int | float) or not 0 < multiplier < float("inf"):
                raise ValueError(f"scheme {name!r} has {POSITION_LR}={multiplier!r}; it must be a number above 0.")
        return {name: given or {} for name, given in schemes.items()}

    @cached_property
    def built_start(self) -> Start | None:
        """The study that this one starts from, checked."""
        if self.start is None:
            if self.from_scratch:
                raise ValueError(f"from_scratch is {self.from_scratch}; without a start, all schemes are.")
            return None
        require_known(dict.fromkeys(self.from_scratch), self.given_schemes, "from_scratch")
        schemes = {name: given.get("start", name) for name, given in self.given_schemes.items()}
        try:
            if isinstance(self.start, dict):
                study = make_study(self.start, self.folder, self.start_folder / START, self.files)
            else:
                study = read_study(self.folder / self.start, self.start_folder / START, self.files)
        except ValueError as error:
            raise ValueError(f"start: {error}") from None
        return Start(study, self.start_folder, schemes, self.seeds)

    @cached_property
    def config_keys(self) -> dict[str, dict[str, Any]]:
        """Each scheme's keys of HfRopeConfig, those that all share included."""
        keys = {}
        for name, given in self.given_schemes.items():
            if self.built_start is None and name not in SCHEMES and "position_embedding_type" not in given:
                require_known({name: None}, SCHEMES, "schemes")
            before = {"position_embedding_type": name} if self.built_start is None else self.built_start.keys(name)
            own = {key: value for key, value in given.items() if key not in ("start", POSITION_LR)}
            other = own.get("position_embedding_type", name)
            if name in SCHEMES and other != name:
                raise ValueError(f"scheme {name!r} has position_embedding_type={other!r}: give it a name of its own.")
            keys[name] = {**before, **self.model, **own}
        return keys | {name + FROM_SCRATCH: keys[name] for name in self.from_scratch}

    def start_of(self, scheme: str) -> Start | None:
        """What a scheme starts from; None for initial values."""
        return self.built_start if self.built_start and scheme in self.built_start.schemes else None

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The tasks and the schemes that run them."""
        return [
            (task, scheme)
            for task in self.tasks
            for scheme in self.config_keys
            if scheme not in self.leave_out.get(task, ())
        ]

    def check_scheme(self, scheme: str, task_name: str, task: Task) -> None:
        """Refuses a scheme that cannot do a task; builds the model on the meta device, where it takes no memory."""
        try:
            config = HfRopeConfig(**{**task.config(), **self.config_keys[scheme]})
            if config.vocab_size < (tokens := task.config()["vocab_size"]):
                raise ValueError(f"vocab_size is {config.vocab_size}, and the task has {tokens} tokens.")
            with torch.device("meta"):
                model = task.head.from_config(config)
            task.check_model(model)
            if (start := self.start_of(scheme)) is not None:
                start.require_place(scheme, model)
            model.base_model.position.require_length(task.length)
        except (ValueError, TypeError) as error:
            raise ValueError(f"scheme {scheme!r} cannot do task {task_name!r}: {error}") from None

    @cached_property
    def cells(self) -> dict[tuple[str, str, float, int], Cell]:
        """All cells by (task, scheme, learning rate, seed), those included that a choice of the rate leaves out."""
        cells = {}
        files = {name: self.paths(task) for name, task in self.built_tasks.items()}
        hashes = {task: {name: sha256(path) for name, path in paths.items()} for task, paths in files.items()}
        for task_name, scheme in self.pairs:
            task, keys = self.built_tasks[task_name], self.config_keys[scheme]
            config = HfRopeConfig(**{**task.config(), **keys})
            written_out = ("position_options", "rope_parameters", "scale_embedding")
            full = {key: getattr(config, key) for key in written_out}
            start = self.start_of(scheme)
            for rate, seed in product(self.learning_rates, self.seeds):
                multiplier = self.given_schemes[scheme.removesuffix(FROM_SCRATCH)].get(POSITION_LR)
                settings = {
                    "task": {"kind": self.tasks[task_name]["kind"], **asdict(task)},  # type: ignore[call-overload]
                    "files": hashes[task_name],
                    "config": {**keys, **{key: value for key, value in full.items() if value}},
                    "seed": seed,
                    "learning_rate": rate,
                    "lr_multipliers": lr_multipliers(config) if multiplier is None else {},
                    "steps": self.steps,
                    "tokens_per_step": self.tokens_per_step or self.sequences_per_step * task.length,  # type: ignore
                    "evaluate_every": self.evaluate_every,
                    "precision": self.precision,
                    "training": self.training,
                }
                if self.device != "cpu":
                    settings["device"] = self.device
                if multiplier is not None:
                    settings[POSITION_LR] = multiplier
                if start is not None:
                    settings["start"] = start.cell(scheme, seed).settings
                cells[task_name, scheme, rate, seed] = Cell(
                    task=task_name,
                    scheme=scheme,
                    settings=json.loads(json.dumps(settings)),
                    paths={name: str(path) for name, path in files[task_name].items()},
                    keep_model=self.keep_model,
                    start=None if start is None else start.weights(scheme, seed),
                )
        return cells


def lr_multipliers(config: HfRopeConfig) -> dict[str, float]:
    """By the names of a scheme's parameters, how many times the learning rate they have; others have it once."""
    scheme = SCHEMES[config.position_embedding_type]
    with torch.device("meta"):
        return {**scheme.lr_multipliers, **scheme.for_layer(config, 0).lr_multipliers}


def read_study(path: str | Path, start_folder: str | Path = START, files: tuple[Path, ...] = ()) -> Study:
    """The study of a file, checked; `start_folder` is where the study that it starts from is run.

    Args:
        files: those of the studies that start from it.

    Raises:
        ValueError: the file, or something in it, cannot be read or does not fit; in one sentence.
    """
    path = Path(path)
    if path.resolve() in files:
        raise ValueError(f"{path} is a study that starts from itself: name another one.")
    if not path.is_file():
        raise ValueError(f"There is no study {str(path)!r}: name a YAML file.")
    return make_study(read_yaml(path), path.parent, start_folder, (*files, path.resolve()))


def make_study(
    settings: dict[str, Any],
    folder: str | Path = ".",
    start_folder: str | Path = START,
    files: tuple[Path, ...] = (),
) -> Study:
    """The study of a mapping, checked; the names of its files begin in a folder; the rest as `read_study` has it."""
    study = build(Study, settings, "the study")
    study.check(Path(folder), Path(start_folder), files)
    return study
