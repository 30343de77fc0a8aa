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
        return x + self.embeddings(position_ids).to(x.device)


class WithAbsoluteTable(PositionScheme):
    """A scheme whose option `absolute_embeddings` adds a learned table as well, and with it its limit (MPNet, DeBERTa).

    Raises ValueError for a position beyond the table.
    """

    def __init__(self, config):
        super().__init__(config)
        if self.options.absolute_embeddings:
            self.absolute = nn.Embedding(config.max_position_embeddings, config.embedding_size)

    @property
    def shift_invariant(self):
        return not self.options.absolute_embeddings

    @property
    def max_length(self):
        return self.config.max_position_embeddings if self.options.absolute_embeddings else None

    def embed(self, x, position_ids):
        if not self.options.absolute_embeddings:
            return x
        self.require_positions(position_ids)
        return x + self.absolute(position_ids).to(x.device)
