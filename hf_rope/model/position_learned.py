"""Learned absolute positions: BERT (Devlin et al. 2018), ConvS2S, GPT; RoFormer section 2.2."""

from torch import nn
from transformers.utils.import_utils import is_tracing

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
        if position_ids.numel() and not is_tracing(position_ids):
            self.require_length(int(position_ids.max()) + 1, self.max_length)
        return x + self.embeddings(position_ids)
