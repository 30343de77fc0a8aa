"""Functional interpolation: Li et al. 2023 (FIRE, arXiv 2310.04418), with one function for all layers (FIRE-S)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .device import reads_are_free
from .position_rotary import sequence_lengths
from .relative import DistanceBias, distances


class FirePosition(DistanceBias):
    """s_ij = q_i . k_j / sqrt(d) + f_h(psi(i - j) / psi(max(L, i))) for j <= i, psi(x) = ln(c x + 1).

    f is a layer of `width` units, ReLU and a layer to the heads; c and the threshold L are trained. The largest input
    of f is 1 at any length beyond L, which is what makes it hold for longer ones. The paper is about decoders. What
    encoders need for j > i is ours: the same seen from the other end, f_h(-psi(j - i) / psi(max(L, n - 1 - i))), with n
    the length of the sequence (its largest position plus one). So either side is divided by how far the query could
    look there, and f tells left from right by the sign of its input. In a decoder it is the paper's formula alone.

    c is the size of a parameter, as in the paper's listing; L is trained by its logarithm. The second layer has no
    bias, which would add one number to all scores of a query. No length limit.
    """

    kind = "RPE"
    lr_multipliers: ClassVar = {
        "hidden": 100.0,
        "hidden_bias": 100.0,
        "output": 100.0,
        "rate": 100.0,
        "log_threshold": 100.0,
    }

    @strict
    @dataclass
    class Options:
        """width: units of f's hidden layer.

        threshold: where L begins; None for a quarter of max_position_embeddings, as in the paper, which has 512 for a
        training on 2,048 tokens.
        """

        width: int = 32
        threshold: int | None = None

    def __init__(self, config):
        super().__init__(config)
        # No modules: what is split over devices is split between modules, and these numbers are one function.
        self.hidden = nn.Parameter(torch.empty(self.options.width))
        self.hidden_bias = nn.Parameter(torch.empty(self.options.width))
        self.output = nn.Parameter(torch.empty(self.num_heads, self.options.width))
        self.rate = nn.Parameter(torch.empty(1))
        self.log_threshold = nn.Parameter(torch.empty(1))

    @classmethod
    def check(cls, config, options):
        for name, value in (("width", options.width), ("threshold", options.threshold)):
            if value is not None and value < 1:
                raise ValueError(f"position_options[{name!r}] is {value}; it must be 1 or more.")

    @property
    def shift_invariant(self):
        return False

    @property
    def length_independent(self):
        """Keys after the query are divided by their distance from the sequence's end; a decoder sees none of them."""
        return self.config.is_decoder

    def init_weights(self, std):
        """The paper's listing: PyTorch's own linear layers, uniform up to 1 / sqrt(inputs), and c = 0.1."""
        for parameter in (self.hidden, self.hidden_bias):
            init.uniform_(parameter, -1.0, 1.0)
        bound = self.options.width**-0.5
        init.uniform_(self.output, -bound, bound)
        init.constant_(self.rate, 0.1)
        threshold = self.options.threshold or max(1, self.config.max_position_embeddings // 4)
        init.constant_(self.log_threshold, math.log(threshold))

    def compare(self, places, dtype):
        """(B or 1, H, Q, K), or as the base has it where no query looks beyond L: distances alone then count."""
        _, threshold = self.trained(dtype)
        if places.consecutive and reads_are_free(threshold) and bool(places.queries[0, -1] < threshold):
            return super().compare(places, dtype)
        distance, farthest = distances(places), places.queries[..., None]
        if not self.config.is_decoder:
            after = sequence_lengths(places.queries, places.segments) - 1 - farthest
            farthest = torch.where(distance > 0, after, farthest)
        return self.bias_of(distance, dtype, farthest).permute(0, 3, 1, 2).contiguous()

    def trained(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """c and L, (1,) each, in float32 at least."""
        precision = torch.promote_types(dtype, torch.float32)
        return self.rate.to(precision).abs(), self.log_threshold.to(precision).exp()

    def bias_of(self, distance, dtype, farthest=None):
        """`farthest`: how far each query could look on the side of each distance; None where that is below L."""
        rate, threshold = self.trained(dtype)
        normaliser = threshold if farthest is None else torch.maximum(farthest.to(threshold.dtype), threshold)
        ratio = torch.log1p(rate * distance.abs()) / (torch.log1p(rate * normaliser) + 1e-6)
        signed = (ratio * -distance.sign()).to(self.hidden.dtype)
        return F.linear(torch.addcmul(self.hidden_bias, signed[..., None], self.hidden).relu(), self.output).to(dtype)
