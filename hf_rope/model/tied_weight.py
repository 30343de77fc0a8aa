"""One gradient for a weight that both looks words up and projects to the vocabulary: shapes V vocabulary, D width."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .bare import is_bare


class TiedWeight(torch.autograd.Function):
    """The rows of a weight for some ids, and the weight for a projection.

    In the backward pass the rows' gradients are added into the projection's: autograd would make a (V, D) gradient of
    each and a third of their sum.
    """

    @staticmethod
    def forward(ctx: Any, weight, rows, ids, padding_idx: int | None):
        """(V, D), its rows (..., D) and their ids (...) -> the rows, and the weight."""
        ctx.save_for_backward(ids)
        ctx.padding_idx = padding_idx
        return rows.view_as(rows), weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, rows, weight):
        (ids,) = ctx.saved_tensors
        if ctx.padding_idx is not None:
            rows = rows.masked_fill((ids == ctx.padding_idx)[..., None], 0)
        return weight.index_add_(0, ids.flatten(), rows.flatten(0, -2).to(weight.dtype)), None, None, None


@contextmanager
def tied_weight(words: nn.Module, decoder: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Inside it `words` looks up with `TiedWeight`; the list gets the weight for `decoder`, one for each look-up.

    It stays empty where the two do not share a weight, or are not a plain embedding and a plain linear layer.
    """
    shared: list[torch.Tensor] = []
    plain = is_bare(words, nn.Embedding) and is_bare(decoder, nn.Linear)
    if not (plain and words.weight is decoder.weight and words.weight.requires_grad and torch.is_grad_enabled()):
        yield shared
        return

    def share(module, arguments, rows):
        rows, weight = TiedWeight.apply(module.weight, rows.detach(), arguments[0], module.padding_idx)
        shared.append(weight)
        return rows

    hook = words.register_forward_hook(share)
    try:
        yield shared
    finally:
        hook.remove()
