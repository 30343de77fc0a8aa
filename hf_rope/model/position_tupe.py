"""Untied positions: Ke et al. 2020 (TUPE, arXiv 2006.15595), eq. 7 and 8, section 3.2; RoFormer eq. 9."""

from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import nn

from .bare import is_bare
from .position_base import PositionScheme, in_order, spread_distances
from .position_t5 import bucket_bias, check_buckets


class TupePosition(PositionScheme):
    """s_ij = q_i . k_j / sqrt(2d) + (LN(p_i) U_Q) . (LN(p_j) U_K) / sqrt(2d) [+ T5's bias: TUPE-R].

    The table, its norm, U_Q and U_K (no bias) are shared by all layers; nothing is added to the embeddings. With
    `untie_cls`, the pairs of position 0 get two numbers of their own a head: one for [CLS] to all, one for others to
    [CLS]. Raises ValueError for a position beyond the table.
    """

    kind = "APE+RPE"

    @strict
    @dataclass
    class Options:
        """untie_cls: section 3.2; relative_bias: TUPE-R, with T5's `num_buckets` and `max_distance`."""

        untie_cls: bool = True
        relative_bias: bool = False
        num_buckets: int = 32
        max_distance: int = 128

    def __init__(self, config):
        super().__init__(config)
        size = config.hidden_size
        self.embeddings = nn.Embedding(config.max_position_embeddings + 1, size)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.query = nn.Linear(size, size, bias=False)
        self.key = nn.Linear(size, size, bias=False)
        if self.options.relative_bias:
            self.bias = nn.Embedding(self.options.num_buckets, self.num_heads)

    @classmethod
    def check(cls, config, options):
        check_buckets(options.num_buckets, options.max_distance)

    @property
    def shift_invariant(self):
        return False

    @property
    def max_length(self):
        return self.config.max_position_embeddings

    def scaling(self):
        return (2 * self.head_dim) ** -0.5

    def plan(self, query_positions, key_positions, dtype):
        """The positions' own scores, (B or 1, H, Q, K)."""
        query = self.project(self.query, query_positions)
        if query.shape[-2] == 1 and is_bare(self.key, nn.Linear):  # U_K applied to the one query, not to all keys
            query = query @ self.key.weight.unflatten(0, (self.num_heads, -1)) * self.scaling() ** 0.5
            term = query @ self.rows(key_positions)[:, None].transpose(-1, -2)
        else:
            term = query @ self.project(self.key, key_positions).transpose(-1, -2)
        if self.options.untie_cls:
            rows = torch.arange(2, device=query_positions.device)[None]
            query, key = self.project(self.query, rows - 1), self.project(self.key, rows - 1)
            from_cls, to_cls = (query * key).sum(-1)[..., None].unbind(-2)
            term = torch.where(key_positions[:, None, None, :] == 0, to_cls[..., None], term)
            term = torch.where(query_positions[:, None, :, None] == 0, from_cls[..., None], term)
        if self.options.relative_bias:
            bias = bucket_bias(self.bias, query_positions, key_positions, self.options.max_distance)
            term = term + in_order(spread_distances(*bias))
        return (term,)

    def project(self, projection: nn.Linear, positions: torch.Tensor) -> torch.Tensor:
        """(B or 1, L) -> (B or 1, H, L, E), with half of the scaling."""
        x = projection(self.rows(positions)) * self.scaling() ** 0.5
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def rows(self, positions: torch.Tensor) -> torch.Tensor:
        """(B or 1, L) -> (B or 1, L, D), normed; position i has row i + 1, row 0 is [CLS]'s own."""
        self.require_positions(positions)
        return self.norm(self.embeddings(positions + 1))

    def score_term(self, query, key, plan, attn, start=0):
        return plan[0].to(query.dtype)
