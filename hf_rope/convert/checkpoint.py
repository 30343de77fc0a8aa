"""What a source holds, read without its class: configuration, tensors, tokenizer, files of sentence-transformers."""

import contextlib
import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import transformers
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    CONFIG_MAPPING,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import (
    GENERATION_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_NAME,
    cached_file,
)

from ..model.configuration_hf_rope import BASE_KEYS, HfRopeConfig
from ..text_files import read_json
from .remote_code import as_native, has_own_code

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model"),
    *("spm.model", "spiece.model", "tokenizer.model"),
)

REFUSED = {
    "modernbert": "its norms come before attention and feed-forward, and most of its layers see a window of tokens only"
}
"""Architectures that are near to those that are known, and why they are not."""

ADAPTER = "adapter_config.json"
MODULES = "modules.json"
OWN_FILES = (MODULES, "config_sentence_transformers.json", "sentence_*_config.json")
"""What stands in the folder itself, beside the encoder and its tokenizer; further modules have subfolders."""
OWN_MODULES = "sentence_transformers."
"""What the classes begin with that need no code beside the list of modules."""
OWN_ENCODER = f"{OWN_MODULES}models.Transformer"


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
    if Path(name, ADAPTER).is_file():  # with a config.json or without
        raise is_adapter(name)
    config, raw = read_config(name, known)
    known_keys = {
        *BASE_KEYS,
        *(field.name for field in fields(config)),
        "position_embedding_type",
        "attribute_map",
    }
    unread = tuple(sorted(key for key in raw if key not in known_keys and not key.startswith("_")))
    class_name = (raw.get("architectures") or [None])[0]
    if find(name, ADAPTER):
        raise is_adapter(name)
    tensors = read_tensors(name)
    return Checkpoint(name, config, class_name, tensors, widest(tensors), unread)


def is_adapter(name: str) -> ValueError:
    return ValueError(
        f"{name} holds an adapter of PEFT ({ADAPTER}), which changes what its model computes: merge it "
        "(merge_and_unload), save the model, and convert that."
    )


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
    classes = raw.get("architectures") or []
    if not isinstance(classes, list) or not all(isinstance(x, str) for x in classes):
        raise ValueError(f"{name}/config.json has architectures={classes!r}; it must be a list of names of classes.")
    with right_kinds(f"{name}/config.json"):
        raw = as_native(raw)
        check_type(raw["model_type"], f"{name}/config.json", known)
        if raw["model_type"] not in CONFIG_MAPPING:
            raise ValueError(
                f"{name}/config.json has model_type={raw['model_type']!r}, which transformers "
                f"{transformers.__version__} does not have: install a newer one."
            )
        config_class = HfRopeConfig if raw["model_type"] == "hf_rope" else CONFIG_MAPPING[raw["model_type"]]
        return config_class.from_dict(dict(raw)), raw


@contextlib.contextmanager
def right_kinds(where: str) -> Iterator[None]:
    """Inside it, what a setting of a wrong kind makes the code that reads it raise is one sentence with its place."""
    try:
        yield
    except (StrictDataclassError, ArithmeticError, AttributeError, LookupError, TypeError) as error:
        cause = error.__cause__ or error
        raise ValueError(
            f"{where} has a setting that is missing or of a wrong kind ({type(cause).__name__}: {first_line(cause)}): "
            "correct it, or save the model again."
        ) from error


def check_type(model_type: str, where: str, known) -> None:
    if reason := REFUSED.get(model_type):
        raise ValueError(f"{where} has model_type={model_type!r}, which cannot be converted: {reason}.")
    if model_type not in known:
        raise ValueError(f"{where} has model_type={model_type!r}, which has no conversion; known: {', '.join(known)}.")


def read_tensors(name: str) -> dict[str, torch.Tensor]:
    """All tensors of model.safetensors, or without it of the shards that the index names: as transformers reads."""
    if path := find(name, SAFE_WEIGHTS_NAME):
        return load(path)
    if index := find(name, SAFE_WEIGHTS_INDEX_NAME):
        places = read_object(index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
            raise ValueError(f"{index} is not an index of shards: download it again.")
        tensors: dict[str, torch.Tensor] = {}
        for shard in sorted(set(places.values())):
            path = find(name, shard)
            if path is None:
                raise ValueError(f"{name} has no {shard}, which {SAFE_WEIGHTS_INDEX_NAME} names: download it.")
            tensors |= load(path)
        if missing := sorted(set(places) - set(tensors)):
            raise ValueError(f"The shards of {name} lack {missing[0]}, which {SAFE_WEIGHTS_INDEX_NAME} names.")
        return tensors
    remedy = "save it again with its own class: Class.from_pretrained(...).save_pretrained(...)"
    if find(name, WEIGHTS_NAME):
        raise ValueError(f"{name} has {WEIGHTS_NAME}, a pickle, and no {SAFE_WEIGHTS_NAME}: {remedy}.")
    raise ValueError(f"{name} has no {SAFE_WEIGHTS_NAME}: {remedy}.")


def read_tokenizer(name: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder or a repository; None where it has no file of one.

    Raises:
        ValueError: a file of it is damaged, or there is no vocabulary.
    """
    paths = {file: path for file in TOKENIZER_FILES if (path := find(name, file))}
    if not paths:
        return None
    for file, path in paths.items():
        if file.endswith(".json"):
            read_object(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # no class tells of a damaged file, and Rust raises plain Exceptions
        raise ValueError(
            f"{name} has a tokenizer that cannot be read from {', '.join(paths)} ({type(error).__name__}: "
            f"{first_line(error)}): save it again, or remove these files."
        ) from error
    words = {*tokenizer.get_vocab()} - {*tokenizer.all_special_tokens}
    if len(words) < 2:  # what transformers makes of settings alone, for some classes with a space
        raise ValueError(
            f"{name} has a tokenizer without a vocabulary, in {', '.join(paths)}: add the file that holds it, such as "
            "tokenizer.json, or remove these."
        )
    return tokenizer


def read_generation(source: PreTrainedModel | str | Path) -> GenerationConfig | None:
    """A copy of how a decoder generates; None where its folder or repository does not say."""
    if isinstance(source, PreTrainedModel):
        return copy.deepcopy(source.generation_config)
    path = find(str(source), GENERATION_CONFIG_NAME)
    if path is None:
        return None
    with right_kinds(path):
        return GenerationConfig.from_pretrained(source)


def sentence_transformer_files(source: str) -> dict[str, Path]:
    """The files beside an encoder, by their path in the folder, such as pooling and prompts; none where none is listed.

    Raises:
        ValueError: the list of modules cannot be read, names a place outside the folder, or a module beside the encoder
            whose class is in a file of the source.
    """
    listed = find(source, MODULES)
    if listed is None:
        return {}
    modules = read_modules(listed)
    folders = [PurePosixPath(module["path"]) for module in modules if not is_encoder(module)]
    if outside := [str(path) for path in folders if path.is_absolute() or ".." in path.parts]:
        raise ValueError(f"{listed} names {outside[0]!r}, which is not inside the folder: correct it.")
    for kind in (module["type"] for module in modules if has_other_class(module) and not is_encoder(module)):
        if file := find(source, f"{kind.split('.')[0]}.py"):
            raise ValueError(
                f"{listed} has the module {kind}, whose code in {file} is not carried over: take it out of a copy of "
                "the source, and put it behind the converted model yourself."
            )
    folder = Path(source)
    if not folder.is_dir():
        folder = Path(snapshot_download(source, allow_patterns=[*OWN_FILES, *(f"{path}/**" for path in folders)]))
    paths = [path for pattern in OWN_FILES for path in folder.glob(pattern)]
    paths += [path for name in folders for path in (folder / name).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path for path in paths}


def use_own_encoder(folder: Path) -> list[str]:
    """In a written list of modules, puts sentence-transformers' encoder in the place of one with code of the source.

    Returns:
        A note of each.
    """
    listed = folder / MODULES
    modules = read_modules(listed) if listed.exists() else []
    notes = []
    for module in modules:
        if is_encoder(module) and has_other_class(module):
            notes.append(f"{MODULES} has {OWN_ENCODER} in the place of the source's own {module['type']}.")
            module["type"] = OWN_ENCODER
            module.pop("kwargs", None)  # arguments that the source's class took
            listed.write_text(json.dumps(modules, indent=2))
    return notes


def read_modules(path: str | Path) -> list[dict[str, Any]]:
    """The list of a SentenceTransformer's modules."""
    found = read_json(Path(path))
    if not isinstance(found, list) or not all(
        isinstance(module, dict) and isinstance(module.get("path"), str) for module in found
    ):
        raise ValueError(f"{path} is not a list of modules with their paths: save the model again.")
    return found


def is_encoder(module: dict[str, Any]) -> bool:
    """Whether a module is in the folder itself."""
    return not PurePosixPath(module["path"]).parts


def has_other_class(module: dict[str, Any]) -> bool:
    """Whether a module names a class that is not sentence-transformers' own."""
    return isinstance(module.get("type"), str) and not module["type"].startswith(OWN_MODULES)


def read_object(path: str | Path) -> dict[str, Any]:
    """What a JSON file holds, which must be an object."""
    found = read_json(Path(path))
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {found!r:.40}; it must hold a JSON object: restore it.")
    return found


def find(name: str, file: str) -> str | None:
    """The path of a file of a folder or of a repository on the Hub; None where there is none.

    Offline (HF_HUB_OFFLINE) a file that is not in the cache counts as not there, since nobody can say.

    Raises:
        ValueError: the Hub cannot be reached, or refuses the file.
    """
    missing_is_none: dict[str, Any] = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": not constants.HF_HUB_OFFLINE,
    }
    try:
        return cached_file(name, file, **missing_is_none)
    except OSError as error:
        raise ValueError(f"{file} of {name} cannot be read: {first_line(error)}") from None


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


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
