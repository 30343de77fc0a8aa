"""Learned absolute positions: BERT (Devlin et al. 2018), ConvS2S, GPT; RoFormer section 2.2."""

from torch import nn

from .position_base import PositionScheme


class LearnedPosition(PositionScheme):
    """x_i + P_i, with one trained row of P a position: (max_position_embeddings, embedding_size).

    Raises ValueError for a position beyond the table.
    """

    kind = "APE"

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.max_position_embeddings, config.embedding_size)

    @property
    def shift_invariant(self):
        return False

    @property
    def max_length(self):
        return self.config.max_position_embeddings

    def embed(self, x, position_ids):
        self.require_positions(position_ids)
        return x + self.embeddings(position_ids)
