"""Rotary's two pairings hold the same model: one is the other with the components of each head in another order."""

import torch

from ..model.position_rotary import rotary_size


def change_pairing(tensors: dict[str, torch.Tensor], config, pairing: str) -> None:
    """Reorders the projections, named as by `named_tensors`, from `config`'s pairing to another; in place, exact.

    Rows of query and key; with `rotary_value` also those of value, and with them the columns of the output projection.
    """
    heads, head_dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    size = rotary_size(config)
    to_halves = [*range(0, size, 2), *range(1, size, 2), *range(size, head_dim)]
    within = torch.tensor(to_halves) if pairing == "halves" else torch.tensor(to_halves).argsort()
    order = (torch.arange(heads)[:, None] * head_dim + within).flatten()
    rows = ("query", "key", "value") if config.position_options["rotary_value"] else ("query", "key")
    for layer in range(config.num_hidden_layers):
        attention = f"layers.{layer}.attention"
        for name in rows:
            for leaf in ("weight", "bias"):
                key = f"{attention}.{name}.{leaf}"
                tensors[key] = tensors[key][order.to(tensors[key].device)]
        if "value" in rows:
            key = f"{attention}.output.weight"
            tensors[key] = tensors[key][:, order.to(tensors[key].device)]
