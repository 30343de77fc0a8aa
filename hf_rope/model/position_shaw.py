"""Relative positions in keys and values: Shaw et al. 2018 (arXiv 1803.02155), sections 3.1 and 3.2; RoFormer eq. 5."""

from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization as init

from .position_base import PositionScheme, distances, take_columns


class ShawPosition(PositionScheme):
    """s_ij = q_i . (k_j + aK_r) / sqrt(d), z_i = sum_j alpha_ij (v_j + aV_r), with r = clip(j - i, -k, k).

    2k+1 rows for keys and for values in each layer, shared by the heads. No length limit.
    """

    kind = "RPE"
    by_content = True

    @strict
    @dataclass
    class Options:
        """max_distance: the clipping distance k; relative_values: whether values have positions too (needs eager)."""

        max_distance: int = 16
        relative_values: bool = True

    def __init__(self, config):
        super().__init__(config)
        shape = (config.num_hidden_layers, 2 * self.options.max_distance + 1, self.head_dim)
        self.relative_keys = nn.Parameter(torch.empty(shape))
        if self.options.relative_values:
            self.relative_values = nn.Parameter(torch.empty(shape))

    @classmethod
    def check(cls, config, options):
        if options.max_distance < 1:
            raise ValueError(f"position_options['max_distance'] is {options.max_distance}; it must be 1 or more.")

    @classmethod
    def attn_implementations(cls, config):
        if cls.Options(**config.position_options).relative_values:
            return ("eager",)
        return ("eager", "sdpa", "flex_attention")

    def init_weights(self, std):
        for table in self.parameters(recurse=False):
            init.normal_(table, std=std)

    def plan(self, query_positions, key_positions, dtype):
        k = self.options.max_distance
        return (distances(query_positions, key_positions).clamp(-k, k) + k,)

    def score_term(self, query, key, plan, attn, start=0):
        by_distance = query @ self.relative_keys[attn.layer_idx].T * self.scaling()
        return take_columns(by_distance, plan[0][:, start : start + query.shape[-2]])

    def value_term(self, probabilities, plan, attn, start=0):
        if not self.options.relative_values:
            return None
        table = self.relative_values[attn.layer_idx]
        index = plan[0][:, None, start : start + probabilities.shape[-2]].expand_as(probabilities)
        by_distance = probabilities.new_zeros(*probabilities.shape[:3], len(table))
        return by_distance.scatter_add(-1, index, probabilities) @ table
