"""T5's bucketed relative bias: Raffel et al. 2020, section 2.1; RoFormer eq. 8; MPNet."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import nn

from .position_learned import WithAbsoluteTable
from .relative import DistanceBias


class T5Position(DistanceBias, WithAbsoluteTable):
    """s_ij = q_i . k_j / sqrt(d) + b_{h, bucket(j-i)}: one table of (num_buckets, H) for all layers. No length limit.

    T5 itself leaves the sqrt(d) out; MPNet keeps it, and so does this scheme. T5's decoder spends all buckets on j <=
    i; here a decoder keeps the bidirectional ones, and uses half.
    """

    kind = "RPE"
    lr_multipliers: ClassVar = {"bias": 100.0}

    @strict
    @dataclass
    class Options:
        """num_buckets: rows of the table, even; max_distance: from here on all distances share the last bucket.

        absolute_embeddings: add a learned absolute table as well, as MPNet does.
        """

        num_buckets: int = 32
        max_distance: int = 128
        absolute_embeddings: bool = False

    def __init__(self, config):
        super().__init__(config)
        self.bias = nn.Embedding(self.options.num_buckets, self.num_heads)

    @classmethod
    def check(cls, config, options):
        check_buckets(options.num_buckets, options.max_distance)

    def bias_of(self, distance, dtype):
        return self.bias(bucket(distance, self.options.num_buckets, self.options.max_distance))


def check_buckets(num_buckets: int, max_distance: int) -> None:
    """Raises ValueError for bucket settings that the formula cannot use."""
    if num_buckets < 4 or num_buckets % 4:
        raise ValueError(f"position_options['num_buckets'] is {num_buckets}; it must be a multiple of 4, 4 or more.")
    if max_distance <= num_buckets // 4:
        raise ValueError(
            f"position_options['max_distance'] is {max_distance}; it must exceed the {num_buckets // 4} distances that "
            "have buckets of their own (num_buckets / 4)."
        )


def bucket(distance: torch.Tensor, num_buckets: int, max_distance: int) -> torch.Tensor:
    """Bucket of each distance j - i: half of them for j > i; in each half the first half exact, then logarithmic."""
    half, exact = num_buckets // 2, num_buckets // 4
    size = distance.abs()
    beyond = torch.log(size.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (half - exact)
    beyond = (exact + beyond.long()).clamp(max=half - 1)
    return (distance > 0) * half + torch.where(size < exact, size, beyond)
