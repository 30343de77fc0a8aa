"""Transformer-XL's relative sinusoids: Dai et al. 2019 (arXiv 1901.02860), section 3.3; RoFormer eq. 7."""

from typing import ClassVar

import torch
from torch import nn
from transformers import initialization as init

from .position_base import States
from .relative import ContentScheme, ContentScore, sinusoid


class TransformerXLPosition(ContentScheme):
    """s_ij = [(q_i + u) . k_j + (q_i + v) . (W_R R_{i-j})] / sqrt(d), for i - j of either sign.

    R_{i-j} is the sinusoid of the signed distance, sines first and then cosines, of width D. W_R (D, D) without bias,
    u and v (H, E) are each layer's own, as in XLNet. No length limit.
    """

    kind = "RPE"

    @classmethod
    def check(cls, config, options):
        if config.hidden_size % 2:
            raise ValueError(
                "position_embedding_type='transformer_xl' pairs a sine with a cosine and needs an even hidden_size, "
                f"got {config.hidden_size}."
            )

    @classmethod
    def for_layer(cls, config, layer_idx):
        return LayerTransformerXL(config)

    def row_of(self, distance):
        """Rows are distances, i - j."""
        return -distance

    def share(self, everywhere, dtype):
        """R of the distances up to max_distance, (2 * max_distance + 1, D); where that is not known, of both positions.

        The latter are (B or 1, Q, D) and (B or 1, K, D): by the addition theorem they give R of any difference.
        """
        rows = super().share(everywhere, dtype) or (everywhere.queries, everywhere.keys)
        return tuple(torch.cat(sinusoid(x, self.config.hidden_size, dtype), dim=-1) for x in rows)

    def compare(self, places, dtype):
        return None if places.max_distance is None else super().compare(places, dtype)


class LayerTransformerXL(ContentScore):
    """One layer's W_R, u and v. `relative` is W_R, a parameter and no linear layer, since it is applied either way."""

    lr_multipliers: ClassVar = {"content_bias": 30.0, "position_bias": 30.0}

    def __init__(self, config):
        super().__init__(config)
        self.relative = nn.Parameter(torch.empty(config.hidden_size, config.hidden_size))
        self.content_bias = nn.Parameter(torch.empty(self.num_heads, self.head_dim))
        self.position_bias = nn.Parameter(torch.empty(self.num_heads, self.head_dim))

    def init_weights(self, std):
        for parameter in self.parameters(recurse=False):
            init.normal_(parameter, std=std)

    def forward(self, query, key, value, shared, project, samples=1):
        weight = self.relative.unflatten(0, (self.num_heads, self.head_dim))  # (H, E, D)
        # Of the query's dtype, which under autocast is not the parameters': a half score needs no float32 beside it.
        content, position = (x[:, None].to(query.dtype) for x in (self.content_bias, self.position_bias))
        asking, query = (query + position) * self.scaling(), query + content
        if len(shared) == 2:
            # With y = W_R^T (q_i + v), in halves that meet sines and cosines, the term is a sum over frequencies of
            # y_s sin((i-j)w) + y_c cos((i-j)w) = (y_s sin iw + y_c cos iw) cos jw + (y_c sin iw - y_s cos iw) sin jw.
            by_sin, by_cos = (asking @ weight).chunk(2, dim=-1)
            sin, cos = shared[0][:, None].chunk(2, dim=-1)
            turned = torch.cat((by_cos * sin - by_sin * cos, by_sin * sin + by_cos * cos), dim=-1)
            return States(query, key, value, by_token=(turned, shared[1][:, None].expand(key.shape[0], -1, -1, -1)))
        if query.shape[-2] == 1:  # a decoder's next token: W_R^T (q + v), one row, instead of W_R R, one a distance
            return States(query, key, value, by_token=(asking @ weight,), tables=(shared[0].T,))
        table = (shared[0] @ self.relative.T).unflatten(-1, (self.num_heads, self.head_dim)).permute(1, 2, 0)
        return States(query, key, value, by_token=(asking,), tables=(table,))

    def term_from(self, states, pairs, start, count):
        if len(states.by_token) == 1:
            return super().term_from(states, pairs, start, count)
        turned, keys = states.by_token
        return turned[:, :, start : start + count] @ keys.transpose(-1, -2)
