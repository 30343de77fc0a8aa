"""Distances times queries (Shaw 2018, eq. 4, unclipped) and keys (Huang et al. 2020, arXiv 2009.13658, method 4)."""

import torch
from torch import nn
from transformers import initialization as init

from .position_base import PositionScheme, distance_index, distance_scores, distance_scores_by_key


class RelativeKeyPosition(PositionScheme):
    """s_ij = (q_i . k_j + q_i . a_{i-j}) / sqrt(d): BERT's `relative_key` of transformers 4.

    Table of 2 * max_position_embeddings - 1 rows a layer, row i - j + max_position_embeddings - 1, shared by the heads.
    Raises ValueError where two positions lie max_position_embeddings or more apart.
    """

    kind = "RPE"
    by_content = True

    def __init__(self, config):
        super().__init__(config)
        rows = 2 * config.max_position_embeddings - 1
        self.distance_embeddings = nn.Parameter(torch.empty(config.num_hidden_layers, rows, self.head_dim))

    @property
    def max_length(self):
        return self.config.max_position_embeddings

    def init_weights(self, std):
        init.normal_(self.distance_embeddings, std=std)

    def plan(self, query_positions, key_positions, dtype):
        """Each layer's rows for the distances j - i that occur, (layers, 2s+1, E), and the index of the pairs."""
        reach, index = distance_index(query_positions, key_positions)
        self.require_length(reach + 1, self.max_length)
        behind = torch.arange(reach, -reach - 1, -1, device=query_positions.device)
        return self.distance_embeddings.index_select(1, behind + self.max_length - 1), *index

    def score_term(self, query, key, plan, attn, start=0):
        table, *index = plan
        return distance_scores(query * self.scaling(), table[attn.layer_idx].T, index, start)


class RelativeKeyQueryPosition(RelativeKeyPosition):
    """s_ij = (q_i . k_j + q_i . a_{i-j} + k_j . a_{i-j}) / sqrt(d): BERT's `relative_key_query` of transformers 4."""

    def score_term(self, query, key, plan, attn, start=0):
        table, *index = plan
        backwards = table[attn.layer_idx].flip(0).T
        by_key = distance_scores_by_key(key * self.scaling(), backwards, index, start, query.shape[-2])
        return super().score_term(query, key, plan, attn, start).add_(by_key)
