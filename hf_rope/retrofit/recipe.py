"""Recipe: how a model is distilled from itself, and for how long."""

import math
from dataclasses import dataclass, fields

LONGEST = 512
"""The tokens of a long text where the recipe leaves them open and the source reads as many."""


@dataclass(frozen=True)
class Recipe:
    """How a model is distilled from itself, and for how long.

    Args:
        steps: at most so many; the learning rate falls to 0 over them.
        minutes: at most so many, for steps, evaluations and checkpoints; None for no limit.
        learning_rate: of AdamW; positions have the multiple of it that their scheme recommends.
        warmup_share: the share of the steps over which the rate rises.
        batch_size: short texts of a step.
        short_length: tokens of a short text, at most.
        length: tokens of a long text; None for 512, or as many as the source reads.
        long_share: the share of steps that have long texts, as many as have the tokens of the short ones together.
        evaluate_every: after so many steps held-out text is measured and a checkpoint is kept.
        patience: the training ends after so many evaluations in turn without a better one.
        seed: of new weights, of what is held out, and of what is drawn.

    Raises:
        TypeError: a value is no number, or not a whole one where it has to be.
        ValueError: a number is out of its range.
    """

    steps: int = 400
    minutes: float | None = None
    learning_rate: float = 5e-4
    warmup_share: float = 0.25
    batch_size: int = 64
    short_length: int = 64
    length: int | None = None
    long_share: float = 0.25
    evaluate_every: int = 50
    patience: int = 3
    seed: int = 0

    def __post_init__(self):
        for field in fields(self):
            value, whole = getattr(self, field.name), field.type in (int, int | None)
            if value is None and field.default is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                raise TypeError(f"{field.name} is {value!r}; it must be a {'whole ' * whole}number.")
            if not math.isfinite(value):
                raise ValueError(f"{field.name} is {value}; it must be finite.")
        for name in ("steps", "batch_size", "evaluate_every", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; it must be from 0 to {2**32 - 1}.")
        if not 0 <= self.warmup_share < 1:
            raise ValueError(f"warmup_share is {self.warmup_share:g}; it must be 0 or more, and less than 1.")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate is {self.learning_rate:g}; it must be more than 0.")
        if self.minutes is not None and self.minutes <= 0:
            raise ValueError(f"minutes is {self.minutes:g}; it must be more than 0, or left out for no limit.")
        if not 0 <= self.long_share <= 1:
            raise ValueError(f"long_share is {self.long_share:g}; it must be from 0, no long texts, to 1.")
        if self.short_length < 8:
            raise ValueError(f"short_length is {self.short_length}; it must be 8 tokens or more.")
        if self.length is not None and self.length < self.short_length:
            raise ValueError(
                f"length is {self.length}, below the {self.short_length} tokens of a short text: raise it, or lower "
                "short_length."
            )
