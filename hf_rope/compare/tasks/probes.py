"""What a masked language model's positions have learned."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.dataclasses import strict

from ...analysis import long_term_decay, require_scores
from ...probing import by_distance, identical_word_scores, position_properties
from .language import MaskedLM


@strict
@dataclass
class PositionProbes(MaskedLM):
    """As `masked_lm`; of the finished model also the properties of its positions, where one byte fills the window.

    They are those of `hf_rope.probing`, means over layers, heads and bytes. `attention_by_distance` is the mean
    attention at the distances from -length // 4 to length // 4, and `long_term_decay`, of a scheme that rotates, the
    bound of RoFormer's fig. 2 over its value at 0.

    Args:
        words: how many of the most frequent bytes of the validation text are repeated, one after the other.
    """

    words: int = 16

    shown = ("translation_invariance", "symmetry", "monotonicity")

    def check(self):
        super().check()
        if self.length < 8:
            raise ValueError(f"length is {self.length}; positions are compared in windows of 8 or more.")
        if not 1 <= self.words <= 256:
            raise ValueError(f"words is {self.words}; it must be from 1 to 256.")

    def check_model(self, model):
        require_scores(model.base_model)

    def measure(self, model) -> dict[str, Any]:
        """The means over layers, heads and bytes; without the properties that no scores show, as those of `none`."""
        encoder: Any = copy.deepcopy(model.base_model).cpu().double().eval()
        encoder.set_attn_implementation("eager")
        words = self.bytes["validation"].bincount().argsort(descending=True, stable=True)[: self.words]
        shares: dict[str, list[torch.Tensor]] = {}
        attention = []
        for word in words.tolist():
            scores = identical_word_scores(encoder, word, self.length)
            for name, share in position_properties(scores).items():
                shares.setdefault(name, []).append(share)
            attention.append(by_distance(scores.softmax(-1)).mean((0, 1, 2)))
        measured: dict[str, Any] = {name: float(torch.stack(each).nanmean()) for name, each in shares.items()}
        measured = {name: share for name, share in measured.items() if not math.isnan(share)}
        measured["attention_by_distance"] = torch.stack(attention).mean(0).tolist()
        if encoder.position.rotates:
            decay = long_term_decay(encoder.position, self.length // 4)
            measured["long_term_decay"] = (decay / decay[0]).tolist()
        return measured
