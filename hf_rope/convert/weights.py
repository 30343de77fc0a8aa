"""The tensors of an hf_rope model under names that other architectures have too: one query, one key, one value."""

from collections.abc import Mapping

import torch

HEADS = {
    "Model": "HfRopeModel",
    "ForMaskedLM": "HfRopeForMaskedLM",
    "ForCausalLM": "HfRopeForCausalLM",
    "ForSequenceClassification": "HfRopeForSequenceClassification",
    "ForTokenClassification": "HfRopeForTokenClassification",
    "ForQuestionAnswering": "HfRopeForQuestionAnswering",
    "ForMultipleChoice": "HfRopeForMultipleChoice",
}
"""What follows the family's name in a class name, and our class for it."""

HEAD_PARTS = ("pooler.", "lm_head.", "classifier.", "qa_outputs.")
"""What the tensors of the heads begin with; a head that the target does not have may leave them out."""


def parts(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An hf_rope state dict as views into it: `qkv` in three, `key_value` in two, a table of all layers
    in one a layer, no "model."."""
    found: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        key = key.removeprefix("model.")
        if ".qkv." in key:
            names = [key.replace("qkv", name) for name in ("query", "key", "value")]
            found |= dict(zip(names, tensor.chunk(3), strict=True))
        elif ".key_value." in key:
            names = [key.replace("key_value", name) for name in ("key", "value")]
            found |= dict(zip(names, tensor.chunk(2), strict=True))
        elif key == "position.distance_embeddings":
            found |= {f"{key}.{layer}.weight": table for layer, table in enumerate(tensor)}
        else:
            found[key] = tensor
    return found
