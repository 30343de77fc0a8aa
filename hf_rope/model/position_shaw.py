"""Relative positions in keys and values: Shaw et al. 2018 (arXiv 1803.02155), sections 3.1 and 3.2; RoFormer eq. 5."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import nn

from .position_base import States
from .relative import ContentScheme, ContentScore, band_sum, columns, repeated


class ShawPosition(ContentScheme):
    """s_ij = q_i . (k_j + aK_r) / sqrt(d), z_i = sum_j alpha_ij (v_j + aV_r), with r = clip(j - i, -k, k).

    2k+1 rows for keys and for values in each layer, shared by the heads. No length limit.
    """

    kind = "RPE"
    changes_values = True
    few_rows = True

    @strict
    @dataclass
    class Options:
        """max_distance: the clipping distance k; relative_values: whether values have positions too (needs eager)."""

        max_distance: int = 16
        relative_values: bool = True

    @classmethod
    def check(cls, config, options):
        if options.max_distance < 1:
            raise ValueError(f"position_options['max_distance'] is {options.max_distance}; it must be 1 or more.")

    @classmethod
    def attn_implementations(cls, config):
        if cls.Options(**config.position_options).relative_values:
            return ("eager",)
        return ("eager", "sdpa", "flex_attention")

    @classmethod
    def for_layer(cls, config, layer_idx):
        return LayerShaw(config, cls.Options(**config.position_options))

    def row_of(self, distance):
        k = self.options.max_distance
        return distance.clamp(-k, k) + k


class LayerShaw(ContentScore):
    """One layer's tables."""

    lr_multipliers: ClassVar = {"relative_keys": 30.0, "relative_values": 30.0}

    def __init__(self, config, options):
        super().__init__(config)
        self.max_distance, self.rows = options.max_distance, 2 * options.max_distance + 1
        self.relative_keys = nn.Embedding(self.rows, self.head_dim)
        self.relative_values = nn.Embedding(self.rows, self.head_dim) if options.relative_values else None

    def forward(self, query, key, value, shared, project, samples=1):
        rows = repeated(torch.arange(self.rows, device=query.device), samples)
        tables = [columns(self.relative_keys(rows) * self.scaling())]
        if self.relative_values is not None:
            tables.append(columns(self.relative_values(rows)).transpose(-1, -2))
        return States(query, key, value, tables=tuple(tables))

    def prepare(self, states, pairs):
        """With a row a distance, the outermost repeated, where pairs are consecutive and have no index."""
        if pairs is None:
            farthest = states.key.shape[-2] - 1
            distance = torch.arange(-farthest, farthest + 1, device=states.key.device)
            rows = distance.clamp(-self.max_distance, self.max_distance) + self.max_distance
            keys, *values = states.tables
            keys = keys.transpose(-1, -2)[..., rows, :].transpose(-1, -2)
            states = states._replace(tables=(keys, *(x[..., rows, :] for x in values)))
        return super().prepare(states, pairs)

    def value_term(self, states, pairs, start):
        if len(states.tables) == 1:
            return None
        table = states.tables[1]

        def by_distance(probabilities: torch.Tensor) -> torch.Tensor:
            """Each pair's probability times its row. By index, the probabilities of a row are summed first."""
            if pairs is None:
                return band_sum(probabilities, table, table.shape[-2] // 2 - start)
            index = pairs[:, None, start : start + probabilities.shape[-2]].expand_as(probabilities)
            sums = probabilities.new_zeros(*probabilities.shape[:3], self.rows)
            return sums.scatter_add(-1, index, probabilities) @ table

        return by_distance
