"""Configurations of checkpoints that came with code of their own, as transformers' classes have them.

These are the encoders of `from_rotary`, published before transformers had a class for them. Their code is not run: the
settings are renamed, and those that change what is computed are refused.
"""

from types import SimpleNamespace
from typing import Any

from .source import refuse

NOMIC_NAMES: dict[str, tuple[str, Any]] = {
    "hidden_size": ("n_embd", 768),
    "num_hidden_layers": ("n_layer", 12),
    "num_attention_heads": ("n_head", 12),
    "max_position_embeddings": ("n_positions", 1024),
    "layer_norm_eps": ("layer_norm_epsilon", 1e-5),
    "hidden_dropout_prob": ("resid_pdrop", 0.1),
    "attention_probs_dropout_prob": ("attn_pdrop", 0.1),
}
"""NomicBertConfig's settings, what its first code called them, and their defaults there."""
NOMIC_ACTIVATIONS = {"swiglu": "silu", "geglu": "gelu"}
NOMIC_FIXED = {
    **{"prenorm": False, "parallel_block": False, "causal": False, "use_rms_norm": False},
    **{"rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "rotary_emb_scale_base": None},
    **{"qkv_proj_bias": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False},
}
"""The one value of each setting that transformers' class computes."""
GTE_KEYS = ("layer_norm_type", "logn_attention_scale", "pack_qkv")
"""What the first code's settings have, also under the name of transformers' class, and that class has not."""
GTE_FIXED = {"position_embedding_type": "rope", "layer_norm_type": "layer_norm", "logn_attention_scale": False}


def as_native(raw: dict[str, Any]) -> dict[str, Any]:
    """A config.json under transformers' names; as it is where it has them already.

    Raises:
        ValueError: a setting that transformers' class does not compute.
    """
    if not has_own_code(raw):
        return raw
    own = {"xlm-roberta": jina_embeddings_v3, "nomic_bert": nomic_bert, "new": gte, "gte": gte}
    return own[raw["model_type"]](raw)


def has_own_code(raw: dict[str, Any]) -> bool:
    """Whether a configuration is of one of the three, under its first code's names."""
    kind = raw.get("model_type")
    jina = kind == "xlm-roberta" and raw.get("position_embedding_type") == "rotary"
    nomic = kind == "nomic_bert" and "n_embd" in raw and "hidden_size" not in raw
    gte = kind == "new" or (kind == "gte" and any(key in raw for key in GTE_KEYS))
    return jina or nomic or gte


def jina_embeddings_v3(raw: dict[str, Any]) -> dict[str, Any]:
    found = {"model_type": "jina_embeddings_v3", "rope_parameters": rope(raw.get("rotary_emb_base", 10000.0))}
    read = ("position_embedding_type", "rotary_emb_base", "architectures")
    return without(raw, read) | found | class_names(raw, "XLMRoberta", "JinaEmbeddingsV3")


def nomic_bert(raw: dict[str, Any]) -> dict[str, Any]:
    raw = {"activation_function": "gelu_new", "rotary_emb_fraction": 0.0, "vocab_size": 50257, **raw}
    for key, value in NOMIC_FIXED.items():
        check(raw, key, f"transformers' NomicBERT, and hf_rope's, has {value!r}", (value,))
    check(raw, "activation_function", f"only {' and '.join(NOMIC_ACTIVATIONS)} are known", NOMIC_ACTIVATIONS)
    follows = "beyond max_trained_positions the angles follow the longest sequence of a batch; for inputs up to there, "
    check(raw, "rotary_scaling_factor", f"{follows}set it to null", (None,))
    found = {ours: raw.get(theirs, default) for ours, (theirs, default) in NOMIC_NAMES.items()}
    found |= {
        "hidden_act": NOMIC_ACTIVATIONS[raw["activation_function"]],
        "intermediate_size": up_to(raw.get("n_inner") or 8 * found["hidden_size"] // 3, 256),
        "vocab_size": up_to(raw["vocab_size"], raw.get("pad_vocab_size_multiple", 1)),
        "pad_token_id": raw.get("pad_token_id") or 0,
        "rope_parameters": rope(raw.get("rotary_emb_base", 10000.0)),
    }
    read = {*NOMIC_FIXED, *(theirs for theirs, _ in NOMIC_NAMES.values())} - {"mlp_fc1_bias"}
    read |= {"activation_function", "n_inner", "pad_vocab_size_multiple", "rotary_emb_base", "rotary_scaling_factor"}
    return without(raw, read) | found


def gte(raw: dict[str, Any]) -> dict[str, Any]:
    """NTK scaling by f is theta * f with frequencies over f^(2/d): transformers' linear scaling with that theta."""
    for key, value in GTE_FIXED.items():
        check(raw, key, f"transformers' GTE, and hf_rope's, has {value!r}", (value,))
    theta, scaling = raw.get("rope_theta", 10000.0), raw.get("rope_scaling")
    found = rope(theta)
    if scaling is not None:
        if scaling.get("type") != "ntk" or scaling.get("mixed_b") is not None:
            check(raw, "rope_scaling", "only the type 'ntk' without mixed_b is known")
        size, factor = raw["hidden_size"] // raw["num_attention_heads"], float(scaling["factor"])
        found = rope(theta * factor) | {"rope_type": "linear", "factor": factor ** (2 / size)}
    read = (*GTE_FIXED, "rope_theta", "rope_scaling", "architectures")
    return without(raw, read) | {"model_type": "gte", "rope_parameters": found} | class_names(raw, "New", "Gte")


def rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": float(theta)}


def check(raw: dict[str, Any], key: str, why: str, unless=()) -> None:
    refuse(SimpleNamespace(**raw), key, why, unless)


def without(raw: dict[str, Any], keys) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key not in keys}


def class_names(raw: dict[str, Any], before: str, after: str) -> dict[str, list[str]]:
    """`architectures`, where it is given, with another beginning."""
    names = raw.get("architectures") or []
    return {"architectures": [name.replace(before, after, 1) for name in names]} if names else {}


def up_to(number: int, multiple: int) -> int:
    """The next multiple."""
    return -(-number // multiple) * multiple
