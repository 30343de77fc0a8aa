"""Sinusoidal absolute positions: Vaswani et al. 2017, sections 3.4 and 3.5; RoFormer eq. 4."""

import torch

from .position_base import PositionScheme
from .relative import sinusoid


class SinusoidalPosition(PositionScheme):
    """x_i + p_i with p_{i,2t} = sin(i / 10000^(2t/D)) and p_{i,2t+1} = cos(the same).

    Word embeddings are multiplied by sqrt(D) before (section 3.4, `config.scale_embedding`): sines have a size of 0.7,
    and rows that begin at 0.02 would not be seen beside them. No parameters, no length limit.
    """

    kind = "APE"
    scale_embedding = True

    @classmethod
    def check(cls, config, options):
        if config.embedding_size % 2:
            raise ValueError(
                "position_embedding_type='sinusoidal' pairs a sine with a cosine and needs an even embedding_size, got "
                f"{config.embedding_size}."
            )

    @property
    def shift_invariant(self):
        return False

    def embed(self, x, position_ids):
        sin, cos = sinusoid(position_ids, x.shape[-1], x.dtype)
        return x + torch.stack((sin, cos), dim=-1).flatten(-2)
