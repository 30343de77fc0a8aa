"""The floor: the encoder's matrix products and attention alone, no positions, norms, activations or residuals."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

ROWS_AT_ONCE = 128
"""Queries that `products` computes at once, so that their scores stay in the cache."""


class Floor(nn.Module):
    """Each layer's products and the attention between them: (B, L, D) -> (B, L, D)."""

    def __init__(self, layers: int, hidden_size: int, num_heads: int, intermediate_size: int, attention: Callable):
        super().__init__()
        self.num_heads, self.attention = num_heads, attention
        sizes = ((hidden_size, 3 * hidden_size), (hidden_size, hidden_size))
        sizes += ((hidden_size, intermediate_size), (intermediate_size, hidden_size))
        self.layers = nn.ModuleList(nn.ModuleList(nn.Linear(*size) for size in sizes) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for qkv, output, up, down in self.layers:
            query, key, value = qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
            x = self.attention(query, key, value).transpose(1, 2).flatten(-2)
            x = down(up(output(x)))
        return x


def sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """(B, H, L, E), three times -> (B, H, L, E), by PyTorch's fused kernel."""
    return F.scaled_dot_product_attention(query, key, value)


def products(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The same by batched products, a block of queries after the other."""
    scaling = query.shape[-1] ** -0.5
    blocks = [(part * scaling @ key.mT).softmax(-1) @ value for part in query.split(ROWS_AT_ONCE, dim=2)]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)
