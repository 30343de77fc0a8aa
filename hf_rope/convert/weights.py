"""The tensors of an hf_rope model: their names, rotary's two orders of them, and what a conversion did with each."""

import re
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import nn

from ..model.position_rotary import rotary_size

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


def head_of_model(model: nn.Module) -> str:
    """The key of `HEADS` whose class a model has, or a subclass of it; raises ValueError where it has none."""
    for cls in type(model).__mro__:
        for head, ours in HEADS.items():
            if cls.__name__ == ours:
                return head
    raise ValueError(f"{type(model).__name__} is no head of hf_rope, which has: {', '.join(HEADS.values())}.")


@dataclass
class Report:
    """What a conversion did.

    Args:
        source: class of the source model, and where it came from.
        target: class of the model that was built.
        scheme: its position scheme; None for a native model.
        copied: how many of the source's tensors are in the target.
        dropped: the source's tensors that are not, each with the reason.
        new: the target's tensors that did not come from the source, each with what fills it.
        needs_training: whether the target computes something else than the source until it is trained.
        notes: what else there is to know, a sentence each.
    """

    source: str
    target: str = ""
    scheme: str | None = None
    copied: int = 0
    dropped: dict[str, str] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)
    needs_training: bool = False
    notes: list[str] = field(default_factory=list)

    def rows(self) -> list[tuple[str, int, str, str]]:
        """The tensors that were not copied: name, how many, dropped or new, why; those of all layers are one row."""
        found: Counter[tuple[str, str, str]] = Counter()
        for what, tensors in (("dropped", self.dropped), ("new", self.new)):
            found.update((re.sub(r"\.\d+(?=\.)", ".*", name), what, why) for name, why in tensors.items())
        return [(name, count, what, why) for (name, what, why), count in found.items()]


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of an hf_rope model, which can be written to, by their names in the encoder: without "model."."""
    return {key.removeprefix("model."): tensor for key, tensor in model.state_dict().items()}


def is_positional(key: str) -> bool:
    """Whether a tensor of such a name is the position scheme's: shared by the layers, or one layer's own."""
    return ".position." in f".{key}"


def change_pairing(tensors: dict[str, torch.Tensor], config, pairing: str) -> None:
    """Reorders the projections, named as by `named_tensors`, from `config`'s pairing to another; in place, exact.

    Rotary's two pairings hold the same model: one is the other with the components of each head in another order. These
    are rows of query and key; with `rotary_value` also those of value, and with them the columns of the output
    projection.
    """
    heads, head_dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    size = rotary_size(config)
    to_halves = [*range(0, size, 2), *range(1, size, 2), *range(size, head_dim)]
    within = torch.tensor(to_halves) if pairing == "halves" else torch.tensor(to_halves).argsort()
    order = (torch.arange(heads)[:, None] * head_dim + within).flatten()
    rows = ("query", "key", "value") if config.position_options["rotary_value"] else ("query", "key")
    for layer in range(config.num_hidden_layers):
        attention = f"layers.{layer}.attention"
        for name in rows:
            for leaf in ("weight", "bias"):
                key = f"{attention}.{name}.{leaf}"
                if key in tensors:  # not a bias without attention_bias
                    tensors[key] = tensors[key][order.to(tensors[key].device)]
        if "value" in rows:
            key = f"{attention}.output.weight"
            tensors[key] = tensors[key][:, order.to(tensors[key].device)]
