"""Encoders with BERT's layers and `rotary` in halves: Jina embeddings v3, NomicBERT and GTE.

transformers saves their tensors under the names of the code that the published checkpoints came with, where query, key
and value, and the two parts of a gate, are rows of one tensor. `saved` leads from these to the names of its classes.
"""

import re
from typing import Any, ClassVar

import torch

from .source import (
    CLASSIFIERS,
    COMPUTED,
    DENSE_CLASSIFIER,
    EMBEDDINGS,
    LM_HEAD,
    NUMBER,
    POOLER,
    PREDICTIONS,
    Source,
    lacks,
    refuse,
)
from .weights import Report

ATTENTION = tuple(f"layers.{{}}.self_attn.{x}_proj" for x in "qkv")
LAYERS = {
    **dict(zip(ATTENTION, (f"layers.{{}}.attention.{x}" for x in ("query", "key", "value")), strict=True)),
    "layers.{}.self_attn.o_proj": "layers.{}.attention.output",
    "layers.{}.post_attention_layernorm": "layers.{}.attention_norm",
    "layers.{}.post_mlp_layernorm": "layers.{}.output_norm",
}
GATE = ("layers.{}.mlp.gate_proj", "layers.{}.mlp.up_proj")
GATED = {"layers.{}.mlp.gate_up_proj": "layers.{}.intermediate", "layers.{}.mlp.down_proj": "layers.{}.output"}
"""The names of a gated feed-forward, whose gate `RotarySource.adapt` has joined."""


class RotarySource(Source):
    """What the three have in common."""

    dropped = {**COMPUTED, r"(^|\.)rotary_emb\.(original_)?inv_freq$": "frequencies, computed at every forward"}
    faster: ClassVar = {"pairing": "interleaved"}
    saved: ClassVar[dict[str, tuple[str, ...]]]
    """Modules under their saved names, and those of the class whose rows they hold, in order."""
    block: ClassVar[dict[str, Any]] = {}
    """The settings of the layers."""

    def check(self, config, head):
        super().check(config, head)
        size = config.hidden_size // config.num_attention_heads
        refuse(config, "head_dim", "hf_rope's is hidden_size / num_attention_heads", unless=(None, size))
        check_rope(config)

    def settings(self, config, head):
        positions = {"position_embedding_type": "rotary", "position_options": {"pairing": "halves"}}
        return {**positions, "rope_parameters": config.rope_parameters, **self.block}

    def adapt(self, tensors, config, head, report):
        for key in [*tensors]:
            module, _, leaf = key.rpartition(".")
            if parts := self.saved.get(NUMBER.sub(".{}", module)):
                rows = tensors.pop(key).chunk(len(parts))
                for name, part in zip(parts, rows, strict=True):
                    tensors[f"{name.format(*NUMBER.findall(module))}.{leaf}"] = part
        if "feed_forward_type" in self.block:
            join_gates(tensors)


def check_rope(config) -> None:
    """Refuses rotary parameters that transformers' classes read otherwise than hf_rope, or not at all."""
    rope = config.rope_parameters
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        refuse(config, "rope_parameters", "transformers' classes of this kind turn whole heads")
    if rope["rope_type"] in ("dynamic", "longrope"):
        follows = "there the angles follow the longest sequence of the batch, and in hf_rope each sequence's own length"
        refuse(config, "rope_parameters", follows)


def join_gates(tensors: dict[str, torch.Tensor]) -> None:
    """Makes one tensor of each layer's gate_proj and up_proj; in place."""
    found = [re.fullmatch(r"layers\.(\d+)\.mlp\.(?:gate|up)_proj\.weight", key) for key in tensors]
    for layer in {match[1] for match in found if match}:
        parts = [f"{name.format(layer)}.weight" for name in GATE]
        if absent := [part for part in parts if part not in tensors]:
            raise lacks(absent[0])
        tensors[f"layers.{layer}.mlp.gate_up_proj.weight"] = torch.cat([tensors.pop(part) for part in parts])


def split_gates(tensors: dict[str, torch.Tensor], layers: int) -> None:
    """Makes `GATE`'s two tensors of each layer's `intermediate`; in place."""
    for layer in range(layers):
        parts = tensors.pop(f"layers.{layer}.intermediate.weight").chunk(2)
        tensors |= {f"{name.format(layer)}.weight": part for name, part in zip(GATE, parts, strict=True)}


class JinaSource(RotarySource):
    """Jina embeddings v3 (Sturua et al. 2024, arXiv 2409.10173): RoBERTa's heads and layers.

    The adapters of its tasks are no part of transformers' class. The published checkpoint holds them beside the
    weights that they add to.
    """

    prefix = "roberta"
    names = {
        **{**EMBEDDINGS, **LAYERS, **POOLER, **LM_HEAD, **CLASSIFIERS, **DENSE_CLASSIFIER},
        "layers.{}.mlp.fc1": "layers.{}.intermediate",
        "layers.{}.mlp.fc2": "layers.{}.output",
    }
    saved = {
        "emb_ln": ("embeddings.LayerNorm",),
        "encoder.layers.{}.mixer.Wqkv": ATTENTION,
        "encoder.layers.{}.mixer.out_proj": ("layers.{}.self_attn.o_proj",),
        "encoder.layers.{}.norm1": ("layers.{}.post_attention_layernorm",),
        "encoder.layers.{}.norm2": ("layers.{}.post_mlp_layernorm",),
        "encoder.layers.{}.mlp.fc1": ("layers.{}.mlp.fc1",),
        "encoder.layers.{}.mlp.fc2": ("layers.{}.mlp.fc2",),
    }
    dropped = {
        **RotarySource.dropped,
        r"\.parametrizations\.weight\.\d+\.lora_[AB]$": "adapters of tasks: outputs are those without a task",
    }
    gelu_head = True

    def adapt(self, tensors, config, head, report):
        for key in [*tensors]:
            if key.endswith(ADAPTED):
                tensors[key.removesuffix(ADAPTED) + ".weight"] = tensors.pop(key)
        super().adapt(tensors, config, head, report)


ADAPTED = ".parametrizations.weight.original"
"""How the name of a weight ends that adapters add to."""


class NomicBertSource(RotarySource):
    """NomicBERT (Nussbaum et al. 2024, arXiv 2402.01613): gated with silu, no biases in the layers."""

    prefix = "nomic_bert"
    other_prefix = "bert"
    names = {
        **{**EMBEDDINGS, **LAYERS, **GATED, **POOLER, **PREDICTIONS, **CLASSIFIERS},
        "cls.predictions.transform.layer_norm": "lm_head.norm",
    }
    saved = {
        **{name: parts for name, parts in JinaSource.saved.items() if ".mixer." not in name and ".mlp." not in name},
        "encoder.layers.{}.attn.Wqkv": ATTENTION,
        "encoder.layers.{}.attn.out_proj": ("layers.{}.self_attn.o_proj",),
        "encoder.layers.{}.mlp.fc11": ("layers.{}.mlp.up_proj",),
        "encoder.layers.{}.mlp.fc12": ("layers.{}.mlp.gate_proj",),
        "encoder.layers.{}.mlp.fc2": ("layers.{}.mlp.down_proj",),
    }
    heads = {"ForPreTraining": "ForMaskedLM"}
    block = {"feed_forward_type": "gated", "attention_bias": False, "mlp_bias": False}

    def adapt(self, tensors, config, head, report):
        """Fills the biases that the masked-LM head of its first code does not have."""
        super().adapt(tensors, config, head, report)
        if head == "ForMaskedLM" and getattr(config, "mlp_fc1_bias", None) is False:
            words = tensors["embeddings.word_embeddings.weight"]
            sizes = {"transform.dense": config.hidden_size, "decoder": config.vocab_size}
            for key, size in ((f"cls.predictions.{module}.bias", size) for module, size in sizes.items()):
                if key not in tensors:
                    tensors[key] = words.new_zeros(size)
                    report.new[key] = "zero: the source has no such bias"


class GteSource(RotarySource):
    """GTE (Zhang et al. 2024, arXiv 2407.19669): gated with gelu, no biases of the gate."""

    prefix = "gte"
    other_prefix = "new"
    names = {**EMBEDDINGS, **LAYERS, **GATED, **POOLER, **LM_HEAD, **CLASSIFIERS}
    saved = {
        "encoder.layer.{}.attention.qkv_proj": ATTENTION,
        **{f"encoder.layer.{{}}.attention.{x}_proj": (f"layers.{{}}.self_attn.{x}_proj",) for x in "qkvo"},
        "encoder.layer.{}.attn_ln": ("layers.{}.post_attention_layernorm",),
        "encoder.layer.{}.mlp_ln": ("layers.{}.post_mlp_layernorm",),
        "encoder.layer.{}.mlp.up_gate_proj": GATE[::-1],
        "encoder.layer.{}.mlp.down_proj": ("layers.{}.mlp.down_proj",),
        "lm_head.norm": ("lm_head.layer_norm",),
    }
    gelu_head = True
    block = {"feed_forward_type": "gated"}

    def adapt(self, tensors, config, head, report):
        super().adapt(tensors, config, head, report)
        note_gate_dropout(config.hidden_dropout_prob, report)


def note_gate_dropout(rate: float, report: Report) -> None:
    """Says that GTE drops out what comes from the gate, in training."""
    if rate:
        report.notes.append(f"Training differs: GTE has dropout ({rate}) after the gate, and hf_rope has none there.")
