"""The floor: the encoder's matrix products and fused attention alone, no positions, norms, activations or residuals."""

import torch
from torch import nn
from torch.nn import functional as F


class Floor(nn.Module):
    """Each layer's products and the sdpa between them: (B, L, D) -> (B, L, D)."""

    def __init__(self, layers: int, hidden_size: int, num_heads: int, intermediate_size: int):
        super().__init__()
        self.num_heads = num_heads
        sizes = ((hidden_size, 3 * hidden_size), (hidden_size, hidden_size))
        sizes += ((hidden_size, intermediate_size), (intermediate_size, hidden_size))
        self.layers = nn.ModuleList(nn.ModuleList(nn.Linear(*size) for size in sizes) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for qkv, output, up, down in self.layers:
            query, key, value = qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
            x = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(-2)
            x = down(up(output(x)))
        return x
