"""Native models of transformers and hf_rope models with the same weights, for parity tests and benchmarks."""

import re
from dataclasses import fields
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

import hf_rope

BERT_NAMES = {
    r"^(bert|roformer|mpnet|deberta)\.": "",
    r"embeddings\.LayerNorm": "embeddings.norm",
    r"embeddings\.position_embeddings": "position.embeddings",
    r"^embeddings_project": "embeddings.projection",
    r"^encoder\.layer\.": "layers.",
    r"attention\.self\.(query|key|value)(_proj)?\.": r"attention.\1.",
    r"attention\.output\.dense": "attention.output",
    r"attention\.output\.LayerNorm": "attention_norm",
    r"intermediate\.dense": "intermediate",
    r"(layers\.\d+)\.output\.dense": r"\1.output",
    r"(layers\.\d+)\.output\.LayerNorm": r"\1.output_norm",
    r"^cls\.predictions\.transform\.(dense|LayerNorm)": r"lm_head.\1",
    r"^lm_head\.LayerNorm": "lm_head.norm",
    r"^cls\.predictions\.decoder": "lm_head.decoder",
}
MPNET_NAMES = {
    r"attention\.attn\.q\.": "attention.query.",
    r"attention\.attn\.k\.": "attention.key.",
    r"attention\.attn\.v\.": "attention.value.",
    r"attention\.attn\.o\.": "attention.output.",
    r"attention\.LayerNorm": "attention_norm",
    r"^encoder\.relative_attention_bias": "position.bias",
}
DEBERTA_NAMES = {
    r"^encoder\.rel_embeddings": "position.embeddings",
    r"^encoder\.LayerNorm": "position.norm",
    r"layers\.(\d+)\.attention\.self\.pos_(key|query)_proj": r"position.\2_projections.\1",
}
DROPPED = re.compile(r"embed_positions|embeddings\.position_ids|^cls\.predictions\.bias")
NOT_SHARED = {"rope_parameters", "architectures", "position_embedding_type"}


def weights_of(native: PreTrainedModel, names: dict[str, str]) -> dict[str, torch.Tensor]:
    """The native model's state under hf_rope's names, query, key and value joined."""
    found: dict[str, torch.Tensor] = {}
    for key, value in native.state_dict().items():
        if DROPPED.search(key):
            continue
        for pattern, replacement in names.items():
            key = re.sub(pattern, replacement, key)
        found[key] = value
    for key in [key for key in found if "attention.query." in key]:
        found[key.replace("query", "qkv")] = torch.cat(
            [found.pop(key.replace("query", part)) for part in ("query", "key", "value")]
        )
    return found


def twin_of(
    native: PreTrainedModel, scheme: str, names: dict[str, str], dropped: str = "", **changes: Any
) -> PreTrainedModel:
    """An hf_rope model with the native one's sizes, head and weights; every tensor must find its place."""
    theirs = native.config.to_dict()
    ours = {field.name for field in fields(hf_rope.HfRopeConfig)} - NOT_SHARED
    kept = {key: theirs[key] for key in ours if theirs.get(key) is not None}
    config = hf_rope.HfRopeConfig(**{**kept, "position_embedding_type": scheme, **changes})
    state = weights_of(native, names)
    state.pop(dropped, None)
    if type(native).__name__.endswith("ForMaskedLM"):
        model = hf_rope.HfRopeForMaskedLM._from_config(config)
        state = {key if key.startswith("lm_head") else f"model.{key}": value for key, value in state.items()}
    else:
        model = hf_rope.HfRopeModel._from_config(config, add_pooling_layer="pooler.dense.weight" in state)
    model.load_state_dict(state)
    return model.to(native.dtype).train(native.training)


def build(family: str, head: str, attn_implementation: str = "eager", **config: Any) -> PreTrainedModel:
    """A native model with random weights; layer norms and biases too, so that none of them can be mixed up."""
    config = getattr(transformers, f"{family}Config")(**config, attn_implementation=attn_implementation)
    model = getattr(transformers, family + head)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "LayerNorm.weight" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def bert(head: str = "Model", **config: Any) -> tuple[PreTrainedModel, PreTrainedModel]:
    """BERT, and `learned` with its weights."""
    native = build("Bert", head, **config)
    return native, twin_of(native, "learned", BERT_NAMES)


def roformer(head: str = "Model", **config: Any) -> tuple[PreTrainedModel, PreTrainedModel]:
    """RoFormer, and `rotary` with its weights."""
    native = build("RoFormer", head, **config)
    options = {"rotary_value": native.config.rotary_value}
    return native, twin_of(native, "rotary", BERT_NAMES, position_options=options)


def mpnet(**config: Any) -> tuple[PreTrainedModel, PreTrainedModel]:
    """MPNet with its absolute positions set to zero, and `t5` with its weights."""
    native = build("MPNet", "Model", **config)
    torch.nn.init.zeros_(native.embeddings.position_embeddings.weight)
    names = {**BERT_NAMES, **MPNET_NAMES}
    return native, twin_of(native, "t5", names, dropped="position.embeddings.weight", type_vocab_size=0)


def deberta_v2(**config: Any) -> tuple[PreTrainedModel, PreTrainedModel]:
    """DeBERTa-v2, and `deberta` with its weights."""
    native = build("DebertaV2", "Model", relative_attention=True, position_biased_input=False, **config)
    theirs = native.config
    length = theirs.max_relative_positions
    options = {
        "pos_att_type": list(theirs.pos_att_type),
        "max_relative_positions": length if length > 0 else theirs.max_position_embeddings,
        "position_buckets": max(getattr(theirs, "position_buckets", 0), 0),
        "share_att_key": getattr(theirs, "share_att_key", False),
        "norm_rel_ebd": getattr(theirs, "norm_rel_ebd", "none") == "layer_norm",
    }
    return native, twin_of(native, "deberta", {**BERT_NAMES, **DEBERTA_NAMES}, position_options=options)
