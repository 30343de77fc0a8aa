"""The names of heads, and of an hf_rope model's tensors."""

import torch
from torch import nn

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


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of an hf_rope model, which can be written to, by their names in the encoder: without "model."."""
    return {key.removeprefix("model."): tensor for key, tensor in model.state_dict().items()}


def is_positional(key: str) -> bool:
    """Whether a tensor of such a name is the position scheme's: shared by the layers, or one layer's own."""
    return ".position." in f".{key}"
