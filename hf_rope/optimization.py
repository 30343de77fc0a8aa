"""param_groups: a model's parameters for any PyTorch optimizer, positions with a learning rate of their own."""

from typing import Any

import transformers
from torch import nn


def param_groups(
    model: nn.Module, lr: float, *, weight_decay: float = 0.0, position_lr: float | None = None
) -> list[dict[str, Any]]:
    """The trainable parameters in groups with `params`, `lr` and `weight_decay`.

    Some schemes add the numbers of a table to the scores, where they have to become as large as the scores are, and
    Adam moves a number by about the learning rate a step. So a scheme names those of its parameters that learn best at
    a multiple of the others' rate (`PositionScheme.lr_multipliers`).

    Args:
        model: an hf_rope model, with whatever stands around it.
        lr: the learning rate.
        weight_decay: of all but biases and norms, which Trainer leaves out too.
        position_lr: the learning rate of all parameters of the position scheme; None for what the scheme recommends.

    Raises:
        ValueError: the model has no position scheme of hf_rope, or a number is below 0 or not finite.
    """
    for name, value in (("lr", lr), ("weight_decay", weight_decay), ("position_lr", position_lr)):
        if value is not None and not 0 <= value < float("inf"):
            raise ValueError(f"{name} is {value}; it must be 0 or more.")
    rates: dict[nn.Parameter, float] = {}
    schemes: list[Any] = [module for module in model.modules() if hasattr(module, "lr_multipliers")]
    if not schemes:
        raise ValueError(
            f"{type(model).__name__} has no position scheme of hf_rope: give the optimizer its parameters as they are."
        )
    for scheme in schemes:
        for name, parameter in scheme.named_parameters():
            recommended = lr * scheme.lr_multipliers.get(name.split(".")[0], 1.0)
            rates[parameter] = recommended if position_lr is None else position_lr
    # Trainer's own choice, in the version that is installed; the method reads nothing of a Trainer.
    decayed = {*transformers.Trainer.get_decay_parameter_names(None, model)}  # type: ignore[arg-type]
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            settings = rates.get(parameter, lr), weight_decay if name in decayed else 0.0
            groups.setdefault(settings, []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]
