"""Linear biases: Press et al. 2021 (ALiBi, arXiv 2108.12409), in the symmetric form for encoders."""

import torch

from .relative import DistanceBias


class AlibiPosition(DistanceBias):
    """s_ij = q_i . k_j / sqrt(d) - m_h |i - j|, m_h = 2^(-8h/H) for h = 1..H.

    Where H is no power of two: the slopes of the power below, then every second slope of the power above. In a decoder
    it is the paper's own form. No parameters, no length limit.
    """

    kind = "RPE"

    def bias_of(self, distance, dtype):
        precision = torch.promote_types(dtype, torch.float32)
        slopes = torch.tensor(alibi_slopes(self.num_heads), dtype=precision, device=distance.device)
        return (distance.abs().to(precision)[..., None] * -slopes).to(dtype)


def alibi_slopes(num_heads: int) -> list[float]:
    """m_h of each head."""
    below = 1 << (num_heads.bit_length() - 1)
    slopes = [2 ** (-8 * head / below) for head in range(1, below + 1)]
    above = [2 ** (-8 * head / (2 * below)) for head in range(1, 2 * below + 1, 2)]
    return slopes + above[: num_heads - below]
