"""Untied positions: Ke et al. 2020 (TUPE, arXiv 2006.15595), eq. 7 and 8, section 3.2; RoFormer eq. 9."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import nn

from .position_base import PositionScheme
from .position_t5 import bucket, check_buckets
from .relative import LayerDistanceBias, distances


class TupePosition(PositionScheme):
    """s_ij = q_i . k_j / sqrt(2d) + reset((LN(p_i) U_Q) . (LN(p_j) U_K) / sqrt(2d) [+ T5's bias: TUPE-R]).

    The table, its norm, U_Q and U_K (no bias) are shared by all layers; nothing is added to the embeddings. With
    `untie_cls`, `reset` gives the pairs of position 0 two numbers of their own a head: one for [CLS] to all, one for
    others to [CLS]. Raises ValueError for a position beyond the table.
    """

    kind = "APE+RPE"
    lr_multipliers: ClassVar = {"bias": 100.0}
    score = "distance"

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
        self.bias = nn.Embedding(self.options.num_buckets, self.num_heads) if self.options.relative_bias else None

    @classmethod
    def check(cls, config, options):
        check_buckets(options.num_buckets, options.max_distance)

    @classmethod
    def for_layer(cls, config, layer_idx):
        return LayerTupe(config)

    @property
    def shift_invariant(self):
        return False

    @property
    def max_length(self):
        return self.config.max_position_embeddings

    def compare(self, places, dtype):
        """The positions' own scores, (B or 1, H, Q, K)."""
        query, key = self.project(self.query, places.queries), self.project(self.key, places.keys)
        term = query @ key.transpose(-1, -2)
        if self.bias is not None:
            buckets = bucket(distances(places), self.options.num_buckets, self.options.max_distance)
            term = term + self.bias(buckets).permute(0, 3, 1, 2).to(term.device)
        if self.options.untie_cls:
            rows = torch.arange(2, device=places.queries.device)[None]
            query, key = self.project(self.query, rows - 1), self.project(self.key, rows - 1)
            from_cls, to_cls = (query * key).sum(-1)[..., None].unbind(-2)
            term = torch.where(places.keys[:, None, None, :] == 0, to_cls[..., None], term)
            term = torch.where(places.queries[:, None, :, None] == 0, from_cls[..., None], term)
        return term

    def project(self, projection: nn.Linear, positions: torch.Tensor) -> torch.Tensor:
        """(B or 1, L) -> (B or 1, H, L, E), with half of the scaling; position i has row i + 1, row 0 is [CLS]'s."""
        self.require_positions(positions)
        x = projection(self.norm(self.embeddings(positions + 1))) * (2 * self.head_dim) ** -0.25
        return x.view(*x.shape[:-1], self.num_heads, self.head_dim).transpose(1, 2).to(positions.device)


class LayerTupe(LayerDistanceBias):
    """A layer under TUPE's scores of positions, whose content scores have half of the usual variance."""

    def scaling(self):
        return (2 * self.head_dim) ** -0.5
