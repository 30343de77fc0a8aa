"""Kernelised distances: Chi et al. 2022 (KERPLE, arXiv 2205.09921), the logarithmic and the power kernel."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization as init

from .relative import DistanceBias


class KerplePosition(DistanceBias):
    """s_ij = q_i . k_j / sqrt(d) - r1_h ln(1 + r2_h |i - j|), or, as a power, - r1_h |i - j|^r2_h.

    r1 and r2 are a positive number a head, and serve all layers, as in the authors' code; the power has r2 <= 2. They
    are sizes of parameters: |r1| and |r2|, where the authors write 0.01 over what has become smaller. Kernels are
    symmetric, so that the paper's form for decoders is one for encoders too, blind to direction. No length limit.
    """

    kind = "RPE"
    lr_multipliers: ClassVar = {"r1": 100.0, "r2": 100.0}

    @strict
    @dataclass
    class Options:
        """kernel: "log", with which the paper extrapolates best, or "power"; ALiBi is the power of r2 = 1."""

        kernel: Literal["log", "power"] = "log"

    def __init__(self, config):
        super().__init__(config)
        self.r1 = nn.Parameter(torch.empty(self.num_heads))
        self.r2 = nn.Parameter(torch.empty(self.num_heads))

    def init_weights(self, std):
        """The authors' own: uniform from 0 to 2 and from 0 to 1, or, of the power, from 0 to 1 and from 0 to 2."""
        of_log = self.options.kernel == "log"
        init.uniform_(self.r1, 0.0, 2.0 if of_log else 1.0)
        init.uniform_(self.r2, 0.0, 1.0 if of_log else 2.0)

    def bias_of(self, distance, dtype):
        precision = torch.promote_types(dtype, torch.float32)
        r1, r2 = self.r1.to(precision).abs(), self.r2.to(precision).abs()
        size = distance.abs()[..., None].to(precision)
        if self.options.kernel == "log":
            kernel = torch.log1p(r2 * size)
        else:
            # Beyond 2 the exponent goes down again, as |r2| goes up below 0: a clamp would give it no gradient there.
            r2 = (r2 - 4 * (r2 / 4).round()).abs()
            kernel = size.clamp(min=1) ** r2 * size.sign()  # 0 for a token itself, without the power of 0
        return (-r1 * kernel).to(dtype)
