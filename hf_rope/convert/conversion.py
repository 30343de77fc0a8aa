"""convert: the same model as an hf_rope model, every tensor accounted for."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, overload

import torch
from transformers import PreTrainedModel

from ..model import modeling_hf_rope
from ..model.configuration_hf_rope import OLD_NAMES, HfRopeConfig
from ..model.modeling_hf_rope import classifier_dropout
from .checkpoint import Checkpoint, read_checkpoint, read_generation, right_kinds
from .source import Source, lacks, rename
from .sources import SOURCES
from .weights import HEAD_PARTS, HEADS, Report, change_pairing, is_positional, named_tensors

OWN_SETTINGS = {
    *("embedding_size", "position_embedding_type", "position_options", "rope_parameters", "classifier_pooling"),
    *("attention_bias", "feed_forward_type", "mlp_bias", "pooler_activation"),
    *("architectures", "dtype", "transformers_version", "return_dict"),
}
"""Fields of HfRopeConfig that are not taken from a source's field of the same name."""
CROSS_ENCODER_KEYS = ("sentence_transformers", "sbert_ce_default_activation_function")
"""Where a config.json says which activation a CrossEncoder of sentence-transformers puts on the logits."""
DECODER = "lm_head.decoder.weight"
WORDS = "embeddings.word_embeddings.weight"


@overload
def convert(
    model_or_name: PreTrainedModel | str | Path,
    position_embedding_type: str | None = None,
    position_options: dict[str, Any] | None = None,
    *,
    return_report: Literal[False] = False,
) -> PreTrainedModel: ...


@overload
def convert(
    model_or_name: PreTrainedModel | str | Path,
    position_embedding_type: str | None = None,
    position_options: dict[str, Any] | None = None,
    *,
    return_report: Literal[True],
) -> tuple[PreTrainedModel, Report]: ...


def convert(
    model_or_name: PreTrainedModel | str | Path,
    position_embedding_type: str | None = None,
    position_options: dict[str, Any] | None = None,
    *,
    return_report: bool = False,
) -> PreTrainedModel | tuple[PreTrainedModel, Report]:
    """The same head as an hf_rope model, in eval mode and of the same dtype; with its report if asked for.

    Args:
        model_or_name: a model of transformers or of hf_rope, a folder, or a name on the Hub. Folders and names are read
            from config.json and safetensors, without the native class.
        position_embedding_type: another scheme than the source's own. Its parameters are then new, and the model needs
            training.
        position_options: options of the scheme. Another `pairing` of `rotary` is exact; any other change is as
            another scheme.
        return_report: also what became of every tensor, as a second value.

    Raises:
        TypeError, ValueError: the source cannot be read, or cannot be computed exactly; one sentence says why.
    """
    for key, value, kind in (
        ("position_embedding_type", position_embedding_type, str),
        ("position_options", position_options, dict),
    ):
        if not isinstance(value, kind | None):
            raise TypeError(f"{key} is {value!r}; it must be a {kind.__name__}, or left out for the source's own.")
    checkpoint = read_checkpoint(model_or_name, SOURCES)
    source = SOURCES[checkpoint.config.model_type]
    report = Report(f"{checkpoint.class_name or checkpoint.family + 'Model'}, {checkpoint.name}")
    head = head_of(checkpoint, source, report)
    with right_kinds(f"The configuration of {checkpoint.name}"):
        source.check(checkpoint.config, head)
        settings = {**shared_settings(checkpoint.config), **source.settings(checkpoint.config, head)}
        own = HfRopeConfig(**settings)
    if (names := source.names_of(checkpoint.config)) is not None:
        note_training(head, names, own, "the source", report)
    tensors, origin = renamed_tensors(checkpoint, source, head, report)
    if untied(tensors):
        settings["tie_word_embeddings"] = False
        report.notes.append("The decoder is not tied: the source's differs from its word embeddings.")
    if position_embedding_type in (None, own.position_embedding_type):
        position_options = {**source.faster, **(position_options or {})}
    config = with_scheme(own, settings, position_embedding_type, position_options)
    (old, old_options), (new, new_options) = scheme_of(own), scheme_of(config)
    pairings = old_options.pop("pairing", None), new_options.pop("pairing", None)
    if old == new and pairings[0] != pairings[1]:
        change_pairing(tensors, own, pairings[1])
        report.notes.append(
            f"Rotary pairing {pairings[1]!r}: the projections are reordered, the outputs stay the same."
        )
    if (old, old_options) != (new, new_options):
        report.needs_training = True
        report.notes.append(
            f"The source's positions are {old!r} with {own.position_options}: the model needs training before it is of "
            "use."
        )
        for key in [key for key in tensors if is_positional(key)]:
            del tensors[key]
            if report.new.pop(key, None) is None:  # else the source does not have it
                report.dropped[origin[key]] = f"positions of {old!r}"

    model_class = getattr(modeling_hf_rope, HEADS[head])
    pooler = {"add_pooling_layer": "pooler.dense.weight" in tensors} if head == "Model" else {}
    model = model_class._from_config(config, dtype=checkpoint.dtype, **pooler)
    fill(model, tensors, origin, source.names_of(checkpoint.config), report)
    report.target, report.scheme = type(model).__name__, config.position_embedding_type
    if model.can_generate() and (generation := read_generation(model_or_name)):
        model.generation_config = generation
    if not isinstance(model_or_name, str | Path):
        model.to(model_or_name.device)
    model.eval()
    return (model, report) if return_report else model


def note_training(head: str, names: dict[str, str], config, whose: str, report: Report) -> None:
    """Notes what a native head trains otherwise than ours, of a configuration of ours; `names` are its family's."""
    rate = classifier_dropout(config).p
    if head == "ForSequenceClassification" and "classifier.dense" in names and rate:
        report.notes.append(
            f"Training differs: {whose}'s classifier drops out ({rate}) before its dense layer as well as after it."
        )
    if head == "ForQuestionAnswering":
        report.notes.append(
            "Training differs in padded batches: in hf_rope, padding takes no part in the softmax over places."
        )


def head_of(checkpoint: Checkpoint, source: Source, report: Report) -> str:
    """The head's name, as in `weights.HEADS`."""
    if checkpoint.class_name is None:
        report.notes.append("config.json names no class (architectures): the encoder is converted, without a head.")
        return "Model"
    head = checkpoint.class_name.removeprefix(checkpoint.family)
    if head != "Model" and all(key == source.without_prefix(key) for key in checkpoint.tensors):
        report.notes.append(
            f"The source calls itself {checkpoint.class_name} and holds an encoder alone, which is what is converted."
        )
        return "Model"
    if head in source.refused_heads:
        raise ValueError(f"{checkpoint.class_name} cannot be converted: {source.refused_heads[head]}.")
    head = source.heads.get(head, head)
    if head not in HEADS:
        known = ", ".join(checkpoint.family + head for head in HEADS)
        raise ValueError(f"{checkpoint.class_name} cannot be converted; of this family: {known}.")
    return head


def shared_settings(config) -> dict[str, Any]:
    """The settings that the source and hf_rope call by the same name; no keys that the source's class does not know."""
    names = {field.name for field in fields(HfRopeConfig)} - OWN_SETTINGS | {"bos_token_id", "eos_token_id"}
    known = {field.name for field in fields(config)}
    found = {name: getattr(config, name) for name in names if name in known or hasattr(type(config), name)}
    return found | {key: getattr(config, key) for key in CROSS_ENCODER_KEYS if hasattr(config, key)}


def renamed_tensors(checkpoint: Checkpoint, source: Source, head: str, report: Report) -> tuple[dict, dict[str, str]]:
    """The tensors under the names of `weights.named_tensors`, and what the source calls each of them.

    Raises:
        ValueError: a tensor that the source's architecture does not have.
    """
    tensors: dict[str, torch.Tensor] = {}
    for key, tensor in checkpoint.tensors.items():
        key = source.without_prefix(key)
        if key.endswith((".gamma", ".beta")):  # LayerNorm's names in the checkpoints of 2018 and 2019
            key = key.removesuffix(".gamma") + ".weight" if key.endswith(".gamma") else key[: -len("beta")] + "bias"
        if reason := next((why for pattern, why in source.dropped.items() if re.search(pattern, key)), None):
            report.dropped[key] = reason
        elif not tensor.numel():
            report.dropped[key] = "empty"
        else:
            tensors[key] = tensor
    source.adapt(tensors, checkpoint.config, head, report)
    if ignored := [key for key in checkpoint.unread if key not in source.reads]:
        report.notes.append(f"Settings that nothing reads: {', '.join(ignored)}.")

    names = source.names_of(checkpoint.config)
    found: dict[str, torch.Tensor] = {}
    origin: dict[str, str] = {}
    for key in sorted(tensors, key=lambda key: is_read(key, head)):
        ours = key if names is None else rename(key, names)
        if ours is None:
            raise ValueError(
                f"The source has the tensor {key}, which hf_rope does not know of {checkpoint.family}: it cannot be "
                "converted."
            )
        if ours in found:
            same = torch.equal(found[ours], tensors[key])
            report.dropped[origin[ours]] = f"the same as {key}" if same else f"not read where there is a {key}"
        if key in report.new:
            report.new[ours] = report.new.pop(key)
        found[ours], origin[ours] = tensors[key], key
    return found, origin


def is_read(key: str, head: str) -> bool:
    """Whether a tensor is the one that a class reads of two that go to one place here.

    Of an LM head that is its decoder's. Of a classifier it is its own dense layer, where a file also holds the pooler
    that it was pretrained with.
    """
    return "decoder." in key or key.startswith("classifier.") == (head == "ForSequenceClassification")


def untied(tensors: dict[str, torch.Tensor]) -> bool:
    """Whether the source has a decoder of its own, which transformers then leaves untied."""
    if DECODER not in tensors or WORDS not in tensors:
        return False
    return not torch.equal(tensors[DECODER], tensors[WORDS])


def with_scheme(own: HfRopeConfig, settings: dict[str, Any], name: str | None, options: dict[str, Any] | None):
    """The configuration with another scheme or other options; as it is where none are given."""
    old, old_options = scheme_of(own)
    name = old if name is None else OLD_NAMES.get(name, name)
    if name == old:
        return HfRopeConfig(**{**settings, "position_options": {**old_options, **(options or {})}})
    new: dict[str, Any] = {"position_embedding_type": name, "position_options": options, "rope_parameters": None}
    new["scale_embedding"] = own.scale_embedding or None  # as the words were trained, or as the new scheme needs them
    return HfRopeConfig(**{**settings, **new})


def scheme_of(config: HfRopeConfig) -> tuple[str, dict[str, Any]]:
    """The scheme's name, and a copy of its options."""
    return config.position_embedding_type, dict(config.position_options or {})


def fill(model: PreTrainedModel, tensors: dict, origin: dict[str, str], names: dict[str, str] | None, report: Report):
    """Copies every tensor into the model.

    Raises:
        ValueError: one is missing, has no place, another shape, or numbers that are none or infinite.
    """
    views = named_tensors(model)
    if model.config.tie_word_embeddings and DECODER in views:
        del views[DECODER]
        if DECODER in tensors:
            del tensors[DECODER]
            report.dropped[origin[DECODER]] = "tied to the word embeddings"
    for key in [key for key in tensors if key not in views]:
        if not key.startswith(HEAD_PARTS):
            raise ValueError(
                f"The source has the tensor {origin[key]}, and its configuration has no place for it: check the "
                "number of layers and the settings in its config.json."
            )
        del tensors[key]
        report.dropped[origin[key]] = f"{type(model).__name__} has no such part"
    backwards = {ours: theirs for theirs, ours in (names or {}).items()}
    for key, view in views.items():
        if key in tensors:
            if tensors[key].shape != view.shape:
                raise ValueError(
                    f"{origin[key]} has shape {tuple(tensors[key].shape)}, and by the configuration it is "
                    f"{tuple(view.shape)}: weights and config.json do not belong together."
                )
            if not bool(tensors[key].isfinite().all()):
                raise ValueError(
                    f"{origin[key]} holds numbers that are NaN or infinite, as a training that diverged leaves them: "
                    "take weights from before that."
                )
            with torch.no_grad():
                view.copy_(tensors[key])
            report.copied += key not in report.new
        elif report.needs_training and is_positional(key):
            report.new[key] = "initialised at random"
        else:
            raise lacks(rename(key, backwards) or key)
