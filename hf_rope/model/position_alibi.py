"""Linear biases: Press et al. 2021 (ALiBi, arXiv 2108.12409), in the author's three forms for encoders."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization as init

from .relative import DistanceBias

HIDDEN = -1e4
"""The score of a token that a head does not see: a probability of 0 in every dtype, and within float16."""


class AlibiPosition(DistanceBias):
    """s_ij = q_i . k_j / sqrt(d) - m_ij |i - j|, in the three forms of the author's note on encoders.

    - learned: two trained slopes a head, m_ij = sigmoid(a_h) for j < i and sigmoid(b_h) for j > i.
    - symmetric: m_ij = 2^(-8h/H) for h = 1..H. It cannot tell left from right. In a decoder it is the paper's own form.
    - one_sided: the slopes of H/2 heads, twice. The first half of the heads sees j <= i only, the second j >= i.

    Fixed slopes where H is no power of two: those of the power below, then every second slope of the power above. No
    length limit. The note: ofirpress/attention_with_linear_biases, issue 5.
    """

    kind = "RPE"
    lr_multipliers: ClassVar = {"slopes": 100.0}

    @strict
    @dataclass
    class Options:
        """form: "learned", "symmetric" or "one_sided"."""

        form: Literal["learned", "symmetric", "one_sided"] = "learned"

    def __init__(self, config):
        super().__init__(config)
        learned = self.options.form == "learned"
        self.slopes = nn.Parameter(torch.empty(2, self.num_heads)) if learned else None

    @classmethod
    def check(cls, config, options):
        if options.form == "one_sided" and config.num_attention_heads % 2:
            raise ValueError(
                "position_options['form'] is 'one_sided', which needs as many heads for the left as for the right, and "
                f"num_attention_heads is {config.num_attention_heads}: use an even number, or another form."
            )

    def init_weights(self, std):
        """The author's own spread, of slopes about sigmoid(-2) = 0.12."""
        if self.slopes is not None:
            init.normal_(self.slopes, mean=-2.0, std=1.0)

    def bias_of(self, distance, dtype):
        precision = torch.promote_types(dtype, torch.float32)
        distance = distance[..., None]
        size, form = distance.abs().to(precision), self.options.form
        if self.slopes is not None:
            left, right = self.slopes.to(precision).sigmoid()
            bias = size * -torch.where(distance > 0, right, left)
        elif form == "one_sided":
            half = size * -alibi_slopes(self.num_heads // 2, precision, distance.device)
            bias = torch.cat((half.masked_fill(distance > 0, HIDDEN), half.masked_fill(distance < 0, HIDDEN)), dim=-1)
        else:
            bias = size * -alibi_slopes(self.num_heads, precision, distance.device)
        return bias.to(dtype)


def alibi_slopes(num_heads: int, dtype: torch.dtype, device) -> torch.Tensor:
    """m_h of each head, (H,), computed on the device: numbers of Python's would be copied there."""
    below = 1 << (num_heads.bit_length() - 1)
    heads = torch.arange(num_heads, dtype=dtype, device=device)
    return torch.exp2(-8 / below * torch.where(heads < below, heads + 1, heads - below + 0.5))
