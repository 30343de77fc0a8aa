"""Source: what one architecture calls its tensors and settings, and what of it cannot be computed here."""

import re
from collections.abc import Collection
from typing import Any, ClassVar

import torch

from .weights import Report

EMBEDDINGS = {
    "embeddings.word_embeddings": "embeddings.word_embeddings",
    "embeddings.token_type_embeddings": "embeddings.token_type_embeddings",
    "embeddings.LayerNorm": "embedding_norm",
}
POSITIONS = {
    "embeddings.position_embeddings": "position.embeddings",
    "encoder.layer.{}.attention.self.distance_embedding": "layers.{}.attention.position.distance_embeddings",
}
PROJECTIONS = {
    f"encoder.layer.{{}}.attention.self.{x}": f"layers.{{}}.attention.{x}" for x in ("query", "key", "value")
}
LAYERS = {
    "encoder.layer.{}.attention.output.dense": "layers.{}.attention.output",
    "encoder.layer.{}.attention.output.LayerNorm": "layers.{}.attention_norm",
    "encoder.layer.{}.intermediate.dense": "layers.{}.intermediate",
    "encoder.layer.{}.output.dense": "layers.{}.output",
    "encoder.layer.{}.output.LayerNorm": "layers.{}.output_norm",
}
CROSS_ATTENTION = {
    **{
        f"encoder.layer.{{}}.crossattention.self.{x}": f"layers.{{}}.cross_attention.{x}"
        for x in ("query", "key", "value")
    },
    "encoder.layer.{}.crossattention.output.dense": "layers.{}.cross_attention.output",
    "encoder.layer.{}.crossattention.output.LayerNorm": "layers.{}.cross_attention_norm",
}
PREDICTIONS = {
    "cls.predictions": "lm_head.decoder",
    "cls.predictions.decoder": "lm_head.decoder",
    "cls.predictions.transform.dense": "lm_head.dense",
    "cls.predictions.transform.LayerNorm": "lm_head.norm",
}
LM_HEAD = {
    "lm_head": "lm_head.decoder",
    "lm_head.decoder": "lm_head.decoder",
    "lm_head.dense": "lm_head.dense",
    "lm_head.layer_norm": "lm_head.norm",
}
CLASSIFIERS = {"classifier": "classifier", "qa_outputs": "qa_outputs"}
DENSE_CLASSIFIER = {"classifier.dense": "pooler.dense", "classifier.out_proj": "classifier"}
POOLER = {"pooler.dense": "pooler.dense"}

COMPUTED = {
    r"^embeddings\.(position_ids|token_type_ids)$": "counted anew at every forward",
}
TABLE = "embeddings.position_embeddings.weight"
RELATIVE_KEYS = ("relative_key", "relative_key_query")


class Source:
    """One architecture. Names are those of modules, "{}" for a layer's number, without the prefix of the encoder.

    A further one is a subclass and its row in `sources.SOURCES`, and for its tests a row in tests/native_models.py.
    """

    prefix: ClassVar[str]
    """What the encoder's tensors begin with where the model has a head."""
    other_prefix: ClassVar[str | None] = None
    """The same in checkpoints that came with code of their own."""
    names: ClassVar[dict[str, str]]
    """The source's modules and what they are called here."""
    heads: ClassVar[dict[str, str]] = {}
    """Heads that the source has beside those of `weights.HEADS`, and the one of these that they become."""
    dropped: ClassVar[dict[str, str]] = {}
    """Tensors, as regular expressions, that have no place here and that nothing misses, with the reason."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Settings that the source reads and its configuration class does not list."""
    decodes: ClassVar[bool] = False
    """Whether its decoders are converted too, with cross-attention or without."""
    gelu_head: ClassVar[bool] = False
    """Whether its masked-LM head has gelu whatever the layers have."""
    faster: ClassVar[dict[str, Any]] = {}
    """Options of the scheme under which the same model is faster here than under the source's."""
    refused_heads: ClassVar[dict[str, str]] = {}
    """Heads that have no place here, with the way out."""

    def check(self, config, head: str) -> None:
        """Raises ValueError for a setting that cannot be computed here; `head` as in `weights.HEADS`."""
        heads = range(1, config.hidden_size + 1)
        refuse(config, "num_attention_heads", "it must be from 1 to hidden_size", unless=heads)
        alone = "convert its encoder and its decoder, each alone"
        refuse(config, "is_encoder_decoder", alone, unless=(False, None))
        for key in () if self.decodes else ("is_decoder", "add_cross_attention"):
            refuse(config, key, "only decoders of BERT and RoFormer are", unless=(False, None))
        if self.gelu_head and head == "ForMaskedLM":
            fixed = "its masked-LM head has gelu whatever the layers have: convert the encoder alone"
            refuse(config, "hidden_act", fixed, unless=("gelu",))

    def settings(self, config, head: str) -> dict[str, Any]:
        """The fields of HfRopeConfig that are not those of the same name in the source; here those of BERT."""
        return {"position_embedding_type": absolute_or_relative(config)}

    def adapt(self, tensors: dict[str, torch.Tensor], config, head: str, report: Report) -> None:
        """Changes tensors, under the source's names, that differ by more than the name; in place.

        Here it drops the absolute table that transformers 4 built, and did not read, beside relative keys.
        """
        kind = getattr(config, "position_embedding_type", None)
        if kind in RELATIVE_KEYS and tensors.pop(TABLE, None) is not None:
            report.dropped[TABLE] = f"not read by position_embedding_type={kind!r}"

    def names_of(self, config) -> dict[str, str]:
        """`names`, where they depend on a setting."""
        return self.names

    def without_prefix(self, key: str) -> str:
        """The name of a tensor in the encoder alone."""
        for prefix in (self.prefix, self.other_prefix):
            if prefix is not None and key.startswith(f"{prefix}."):
                return key.removeprefix(f"{prefix}.")
        return key


NUMBER = re.compile(r"\.(\d+)(?=\.|$)")


def rename(key: str, names: dict[str, str]) -> str | None:
    """The name of a tensor under another architecture, from its module's; None where it has no such module."""
    module, _, leaf = key.rpartition(".")
    template = names.get(NUMBER.sub(".{}", module))
    return None if template is None else f"{template.format(*NUMBER.findall(module))}.{leaf}"


def refuse(config, key: str, why: str, unless: Collection = ()) -> None:
    """Raises ValueError for a setting, unless it is not there or has one of the values that are right."""
    if hasattr(config, key) and (value := getattr(config, key)) not in unless:
        raise ValueError(f"The source has {key}={value!r}, which cannot be converted: {why}.")


def lacks(key: str) -> ValueError:
    """What is raised where a tensor is missing."""
    return ValueError(
        f"The source lacks the tensor {key}: load what it has with the class that it was saved from, such as the "
        "encoder alone, and convert that model."
    )


def absolute_or_relative(config) -> str:
    """The scheme of BERT and its kin: absolute, or one of transformers 4's relative keys."""
    refuse(config, "position_embedding_type", "that is no scheme of BERT", unless=("absolute", *RELATIVE_KEYS))
    kind = getattr(config, "position_embedding_type", "absolute")
    return "learned" if kind == "absolute" else kind


def check_summary(config) -> None:
    """Refuses a summary of a sequence that hf_rope's pooler cannot be."""
    pooled = "hf_rope pools the first token through one dense layer"
    refuse(config, "summary_type", pooled, unless=("first",))
    refuse(config, "summary_proj_to_labels", pooled, unless=(False,))


def summary_settings(config) -> dict[str, Any]:
    """The pooler of a summary of the first token."""
    return {
        "pooler_activation": getattr(config, "summary_activation", None) or "linear",
        "classifier_dropout": getattr(config, "summary_last_dropout", 0.0),
    }
