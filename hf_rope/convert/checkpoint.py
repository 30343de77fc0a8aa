"""What a source holds, read without its class: configuration, tensors, tokenizer, files of sentence-transformers."""

import json
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_NAME, cached_file

from ..model.configuration_hf_rope import BASE_KEYS, HfRopeConfig
from .remote_code import as_native, has_own_code

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model"),
    *("spm.model", "spiece.model", "tokenizer.model"),
)

REFUSED = {
    "modernbert": "its norms come before attention and feed-forward, and most of its layers see a window of tokens only"
}
"""Architectures that are near to those that are known, and why they are not."""

MODULES = "modules.json"
OWN_FILES = (MODULES, "config_sentence_transformers.json", "sentence_*_config.json")
"""What stands in the folder itself, beside the encoder and its tokenizer; further modules have subfolders."""


@dataclass
class Checkpoint:
    """A source model.

    Args:
        name: the folder, the Hub name, or "a model".
        config: its configuration.
        class_name: the class that it was saved from; None where its configuration does not say.
        tensors: its state dict.
        dtype: the dtype of its floats, the widest where they are several.
        unread: keys of its config.json that the native configuration does not know.
    """

    name: str
    config: PreTrainedConfig
    class_name: str | None
    tensors: dict[str, torch.Tensor]
    dtype: torch.dtype
    unread: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """What its class names begin with, such as "Bert"."""
        return type(self.config).__name__.removesuffix("Config")


def read_checkpoint(source: PreTrainedModel | str | Path, known) -> Checkpoint:
    """Reads a model object, a folder or a name on the Hub.

    Args:
        known: the values of `model_type` that can be read.

    Raises:
        TypeError, ValueError: it is nothing of these, or a part is missing, unknown or broken.
    """
    if isinstance(source, PreTrainedModel):
        if has_own_code(source.config.to_dict()):
            raise ValueError(
                f"{type(source).__name__} is a class of a checkpoint's own code: give its folder or Hub name "
                "instead, where its settings are read."
            )
        check_type(source.config.model_type, "The model's class", known)
        tensors = dict(source.state_dict())
        return Checkpoint("a model", source.config, type(source).__name__, tensors, widest(tensors))
    if not isinstance(source, str | Path):
        raise TypeError(f"The source is a {type(source).__name__}; it must be a model, a folder or a name on the Hub.")
    name = str(source)
    config, raw = read_config(name, known)
    known_keys = {
        *BASE_KEYS,
        *(field.name for field in fields(config)),
        "position_embedding_type",
        "attribute_map",
    }
    unread = tuple(sorted(key for key in raw if key not in known_keys and not key.startswith("_")))
    class_name = (raw.get("architectures") or [None])[0]
    tensors = read_tensors(name)
    return Checkpoint(name, config, class_name, tensors, widest(tensors), unread)


def read_config(name: str, known) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """The configuration of a folder or a repository, and the dictionary that it was built from."""
    try:
        raw, _ = PreTrainedConfig.get_config_dict(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} has no config.json that can be read: {first_line(error)}") from None
    if not raw:
        raise ValueError(f"{name} has no config.json that can be read: save the model again with save_pretrained(...).")
    if "model_type" not in raw:
        raise ValueError(f"{name}/config.json has no model_type: add the one that is right of {', '.join(known)}.")
    raw = as_native(raw)
    check_type(raw["model_type"], f"{name}/config.json", known)
    if raw["model_type"] not in CONFIG_MAPPING:
        raise ValueError(
            f"{name}/config.json has model_type={raw['model_type']!r}, which transformers {transformers.__version__} "
            "does not have: install a newer one."
        )
    config_class = HfRopeConfig if raw["model_type"] == "hf_rope" else CONFIG_MAPPING[raw["model_type"]]
    try:
        return config_class.from_dict(dict(raw)), raw
    except StrictDataclassError as error:
        raise ValueError(f"{name}/config.json does not fit: {error.__cause__ or error}.") from None


def check_type(model_type: str, where: str, known) -> None:
    if reason := REFUSED.get(model_type):
        raise ValueError(f"{where} has model_type={model_type!r}, which cannot be converted: {reason}.")
    if model_type not in known:
        raise ValueError(f"{where} has model_type={model_type!r}, which has no conversion; known: {', '.join(known)}.")


def read_tensors(name: str) -> dict[str, torch.Tensor]:
    """All tensors of model.safetensors or of the shards that its index names."""
    if index := find(name, SAFE_WEIGHTS_INDEX_NAME):
        try:
            places: dict[str, str] = json.loads(Path(index).read_text())["weight_map"]
        except (json.JSONDecodeError, KeyError):
            raise ValueError(f"{index} is not an index of shards: download it again.") from None
        tensors: dict[str, torch.Tensor] = {}
        for shard in sorted(set(places.values())):
            path = find(name, shard)
            if path is None:
                raise ValueError(f"{name} has no {shard}, which {SAFE_WEIGHTS_INDEX_NAME} names: download it.")
            tensors |= load(path)
        if missing := sorted(set(places) - set(tensors)):
            raise ValueError(f"The shards of {name} lack {missing[0]}, which {SAFE_WEIGHTS_INDEX_NAME} names.")
        return tensors
    if path := find(name, SAFE_WEIGHTS_NAME):
        return load(path)
    remedy = "save it again with its own class: Class.from_pretrained(...).save_pretrained(...)"
    if find(name, WEIGHTS_NAME):
        raise ValueError(f"{name} has {WEIGHTS_NAME}, a pickle, and no {SAFE_WEIGHTS_NAME}: {remedy}.")
    raise ValueError(f"{name} has no {SAFE_WEIGHTS_NAME}: {remedy}.")


def read_tokenizer(name: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder or a repository; None where it has no file of one."""
    if any(find(name, file) for file in TOKENIZER_FILES):
        return AutoTokenizer.from_pretrained(name)
    return None


def sentence_transformer_files(source: str) -> dict[str, Path]:
    """The files beside an encoder, by their path in the folder, such as pooling and prompts; none where none is listed.

    Raises:
        ValueError: the list of modules cannot be read, or names a place outside the folder.
    """
    listed = find(source, MODULES)
    if listed is None:
        return {}
    try:
        folders = [PurePosixPath(module["path"]) for module in json.loads(Path(listed).read_text())]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"{listed} is not a list of modules with their paths: save the model again.") from None
    if outside := [str(path) for path in folders if path.is_absolute() or ".." in path.parts]:
        raise ValueError(f"{listed} names {outside[0]!r}, which is not inside the folder: correct it.")
    folders = [path for path in folders if path.parts]
    folder = Path(source)
    if not folder.is_dir():
        folder = Path(snapshot_download(source, allow_patterns=[*OWN_FILES, *(f"{path}/**" for path in folders)]))
    paths = [path for pattern in OWN_FILES for path in folder.glob(pattern)]
    paths += [path for name in folders for path in (folder / name).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path for path in paths}


def find(name: str, file: str) -> str | None:
    """The path of a file of a folder or of a repository on the Hub; None where there is none."""
    missing_is_none: dict[str, Any] = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_gated_repo": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    return cached_file(name, file, **missing_is_none)


def load(path: str) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a complete safetensors file ({first_line(error)}): download it again."
        ) from None


def widest(tensors: dict[str, torch.Tensor]) -> torch.dtype:
    """The dtype that holds every float tensor."""
    found = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    dtype = found.pop() if found else torch.float32
    for other in found:
        dtype = torch.promote_types(dtype, other)
    return dtype


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
