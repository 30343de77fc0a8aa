"""The learning rate of a scheme: chosen by validation, on one seed."""

from collections.abc import Mapping
from typing import Any


def validation_loss(result: Mapping[str, Any]) -> float:
    """What rates are chosen by; infinite where training diverged."""
    loss = result["evaluations"]["validation"]["loss"]
    return float("inf") if loss is None else loss


def choose_rate(results: Mapping[float, Mapping[str, Any] | None]) -> float | None:
    """The rate of the least validation loss; None until all are finished, but where there is one only.

    Args:
        results: what the first seed's cell of each rate found; None where it is not finished.
    """
    if len(results) == 1:
        return next(iter(results))
    losses = {rate: validation_loss(result) for rate, result in results.items() if result is not None}
    return min(losses, key=losses.__getitem__) if len(losses) == len(results) else None
