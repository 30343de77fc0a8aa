"""Distances times queries (Shaw 2018, eq. 4, unclipped) and keys (Huang et al. 2020, arXiv 2009.13658, method 4)."""

from typing import ClassVar

import torch
from torch import nn

from .device import reads_are_free
from .position_base import States
from .relative import ContentScheme, ContentScore, columns, distances, repeated


class RelativeKeyPosition(ContentScheme):
    """s_ij = (q_i . k_j + q_i . a_{i-j}) / sqrt(d): BERT's `relative_key` of transformers 4.

    Table of 2 * max_position_embeddings - 1 rows a layer, row i - j + max_position_embeddings - 1, shared by the heads.
    Raises ValueError where two positions lie max_position_embeddings or more apart.
    """

    kind = "RPE"

    @classmethod
    def for_layer(cls, config, layer_idx):
        return LayerRelativeKey(config)

    @property
    def max_length(self):
        return self.config.max_position_embeddings

    def row_of(self, distance):
        return self.max_length - 1 - distance

    def share(self, everywhere, dtype):
        return super().share(self.within(everywhere), dtype)

    def compare(self, places, dtype):
        if places.consecutive:
            self.require_length(places.queries.shape[-1])
        elif reads_are_free(places.queries):
            self.require_length(int(distances(places).abs().max()) + 1)
        return super().compare(self.within(places), dtype)

    def within(self, places):
        """No farther than the table: a static cache, or padding, is longer than the tokens in it."""
        if places.max_distance is None:
            return places
        return places._replace(max_distance=min(places.max_distance, self.max_length - 1))


class LayerRelativeKey(ContentScore):
    """One layer's table."""

    lr_multipliers: ClassVar = {"distance_embeddings": 30.0}

    def __init__(self, config):
        super().__init__(config)
        self.rows = 2 * config.max_position_embeddings - 1
        self.distance_embeddings = nn.Embedding(self.rows, self.head_dim)

    def forward(self, query, key, value, shared, project, samples=1):
        rows = shared[0] if shared else torch.arange(self.rows, device=query.device)
        table = columns(self.distance_embeddings(repeated(rows, samples)) * self.scaling())
        return States(query, key, value, tables=(table,) * (self.by_query + self.by_key))


class RelativeKeyQueryPosition(RelativeKeyPosition):
    """s_ij = (q_i . k_j + q_i . a_{i-j} + k_j . a_{i-j}) / sqrt(d): BERT's `relative_key_query` of transformers 4."""

    @classmethod
    def for_layer(cls, config, layer_idx):
        return LayerRelativeKeyQuery(config)


class LayerRelativeKeyQuery(LayerRelativeKey):
    """The same table, times queries and keys."""

    by_key = True
