"""Start: the study whose models another study's cells start from."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from ..model.configuration_hf_rope import HfRopeConfig
from .cell import CELLS, MODEL, Cell
from .settings import require_known

if TYPE_CHECKING:
    from .study import Study


class Start:
    """Which weights each scheme of a study begins with.

    Args:
        study: the one that is started from, checked.
        folder: where it is run, on this machine.
        schemes: by the names of the schemes that start from it, their names in it.
        seeds: those of the study that starts from it.

    Raises:
        ValueError: it does not say which weights those are.
    """

    def __init__(self, study: "Study", folder: Path, schemes: dict[str, str], seeds: Collection[int]):
        self.study, self.folder, self.schemes = study, folder, schemes
        if len(study.tasks) > 1 or len(study.learning_rates) > 1 or not study.keep_model:
            raise ValueError(
                f"start has {len(study.tasks)} tasks, {len(study.learning_rates)} learning rates and keep_model="
                f"{study.keep_model}; it needs one task, one learning rate and keep_model: true."
            )
        if lacking := sorted({*seeds} - {*study.seeds}):
            raise ValueError(f"seeds has {lacking[0]}, which start has not; it has: {study.seeds}.")
        for scheme in schemes.values():
            require_known({scheme: None}, study.config_keys, "schemes")
        ((self.task_name, self.task),) = study.built_tasks.items()
        self.shapes = {scheme: self.shapes_of(scheme) for scheme in {*schemes.values()}}

    def keys(self, scheme: str) -> dict[str, Any]:
        """The keys of HfRopeConfig of a scheme's model, the rows of its tables included, however long the new task.

        How attention is computed is no property of a model: what is fast at one length need not be at another.
        """
        rows = {key: value for key, value in self.task.config().items() if key == "max_position_embeddings"}
        keys = {**rows, **self.study.config_keys[self.schemes[scheme]]}
        return {key: value for key, value in keys.items() if key != "attn_implementation"}

    def require_place(self, scheme: str, model: PreTrainedModel) -> None:
        """Raises ValueError where a model has no place for some of the encoder's weights that it starts from."""
        decodes = self.config_of(self.schemes[scheme]).is_decoder
        if decodes != model.config.is_decoder:
            raise ValueError(
                f"it starts with is_decoder={decodes}, and has {model.config.is_decoder}: start from a task whose "
                "tokens see the same others."
            )
        own = {name: value.shape for name, value in model.base_model.state_dict().items()}
        for name, shape in self.shapes[self.schemes[scheme]].items():
            if own.get(name) != shape:
                raise ValueError(f"it starts with {name} of {tuple(shape)}, for which it has no place.")

    def config_of(self, scheme: str) -> HfRopeConfig:
        """The configuration of the study's models under one of its own schemes."""
        return HfRopeConfig(**{**self.task.config(), **self.study.config_keys[scheme]})

    def shapes_of(self, scheme: str) -> dict[str, torch.Size]:
        """The sizes of the encoder's weights, under one of the study's own schemes."""
        config = self.config_of(scheme)
        with torch.device("meta"):
            encoder = self.task.head.from_config(config).base_model
        return {name: value.shape for name, value in encoder.state_dict().items()}

    def cell(self, scheme: str, seed: int) -> Cell:
        """The cell that trains the weights."""
        (rate,) = self.study.learning_rates
        return self.study.cells[self.task_name, self.schemes[scheme], rate, seed]

    def weights(self, scheme: str, seed: int) -> str:
        """Where they lie once it is finished."""
        return str(self.folder / CELLS / self.cell(scheme, seed).name / MODEL)
