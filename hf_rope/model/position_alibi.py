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
        slopes = alibi_slopes(self.num_heads, precision, distance.device)
        return (distance.abs().to(precision)[..., None] * -slopes).to(dtype)


def alibi_slopes(num_heads: int, dtype: torch.dtype, device) -> torch.Tensor:
    """m_h of each head, (H,), computed on the device: numbers of Python's would be copied there."""
    below = 1 << (num_heads.bit_length() - 1)
    heads = torch.arange(num_heads, dtype=dtype, device=device)
    return torch.exp2(-8 / below * torch.where(heads < below, heads + 1, heads - below + 0.5))
