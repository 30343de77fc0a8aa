"""Native models of transformers with random weights, and their conversions, for parity tests and benchmarks."""

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from hf_rope.convert import convert


def build(family: str, head: str, attn_implementation: str = "eager", **config: Any) -> PreTrainedModel:
    """A native model with random weights; layer norms and biases too, so that none of them can be mixed up."""
    config = getattr(transformers, f"{family}Config")(**config, attn_implementation=attn_implementation)
    model = getattr(transformers, family + head)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or ("norm" in name.lower() and name.endswith("weight")):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def pair(family: str, head: str = "Model", **config: Any) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A native model, and the hf_rope model with its weights."""
    native = build(family, head, **config)
    return native, convert(native)


def deberta_v2(**config: Any) -> tuple[PreTrainedModel, PreTrainedModel]:
    """DeBERTa-v2 with its relative positions alone, unless the settings say otherwise."""
    return pair("DebertaV2", **{"relative_attention": True, "position_biased_input": False, **config})
