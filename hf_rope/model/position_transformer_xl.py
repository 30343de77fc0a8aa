"""Transformer-XL's relative sinusoids: Dai et al. 2019 (arXiv 1901.02860), section 3.3; RoFormer eq. 7."""

import torch
from torch import nn
from transformers import initialization as init

from .bare import is_bare
from .position_base import PositionScheme, distance_index, distance_scores, sinusoid


class TransformerXLPosition(PositionScheme):
    """s_ij = [(q_i + u) . k_j + (q_i + v) . (W_R R_{i-j})] / sqrt(d), for i - j of either sign.

    R_{i-j} is the sinusoid of the signed distance, sines first and then cosines, of width D. W_R (D, D) without bias,
    u and v (H, E) are each layer's own, as in XLNet. No length limit.
    """

    kind = "RPE"
    by_content = True

    def __init__(self, config):
        super().__init__(config)
        layers = config.num_hidden_layers
        self.projections = nn.ModuleList(
            nn.Linear(config.hidden_size, config.hidden_size, bias=False) for _ in range(layers)
        )
        self.content_bias = nn.Parameter(torch.empty(layers, self.num_heads, self.head_dim))
        self.position_bias = nn.Parameter(torch.empty(layers, self.num_heads, self.head_dim))

    @classmethod
    def check(cls, config, options):
        if config.hidden_size % 2:
            raise ValueError(
                "position_embedding_type='transformer_xl' pairs a sine with a cosine and needs an even hidden_size, "
                f"got {config.hidden_size}."
            )

    def init_weights(self, std):
        for bias in self.parameters(recurse=False):
            init.normal_(bias, std=std)

    def plan(self, query_positions, key_positions, dtype):
        """R for the distances j - i that occur, (2s+1, D), and the index of the pairs."""
        reach, index = distance_index(query_positions, key_positions)
        behind = torch.arange(reach, -reach - 1, -1, device=query_positions.device)
        return torch.cat(sinusoid(behind, self.config.hidden_size, dtype), dim=-1), *index

    def layer_plan(self, plan, attn):
        """W_R R, (H, E, 2s+1), and the index of the pairs; for a single query, which W_R is applied to instead, R."""
        sinusoids, *index = plan
        projection = self.projections[attn.layer_idx]
        if index and index[0].shape[-2] == 1 and is_bare(projection, nn.Linear):
            return plan
        rows = projection(sinusoids).unflatten(-1, (self.num_heads, self.head_dim))
        return rows.permute(1, 2, 0), *index

    def rotate(self, query, key, value, plan, attn):
        return query + self.content_bias[attn.layer_idx][:, None], key, value

    def score_term(self, query, key, plan, attn, start=0):
        query = (query + self.position_bias[attn.layer_idx][:, None]) * self.scaling()
        if plan[0].ndim == 2:
            weight = self.projections[attn.layer_idx].weight
            return distance_scores(query @ weight.unflatten(0, (self.num_heads, -1)), plan[0].T, plan[1:], start)
        return distance_scores(query, plan[0], plan[1:], start)
