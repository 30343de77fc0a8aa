"""A training in stages: from which step on texts are cut at which length and positions turn by which `rope_theta`."""

import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from datasets import Dataset, concatenate_datasets
from transformers import TrainerCallback


@dataclass(frozen=True)
class Stage:
    """One part of a training.

    Args:
        steps: optimizer steps.
        length: tokens of the longest piece of text.
        rope_theta: of `rope_parameters`; None leaves the model's.
    """

    steps: int
    length: int
    rope_theta: float | None = None


def plan_stages(lengths: list[int], rope_thetas: list[float], steps: list[int], max_steps: int) -> list[Stage]:
    """One stage a value of the longest list; a list of one value, or an empty one, holds for all of them.

    Args:
        lengths: tokens of the longest piece; one value or more.
        rope_thetas: of the stages; empty for the model's own.
        steps: of the stages; empty for `max_steps` in equal parts.
        max_steps: of the whole training; -1 where it is counted in epochs, which one stage alone can be.
    """
    given = {"lengths": lengths, "rope_thetas": rope_thetas, "stage_steps": steps}
    count = max(map(len, given.values()))
    for name, values in given.items():
        if len(values) not in (0, 1, count):
            raise SystemExit(f"--{name} has {len(values)} values, and there are {count} stages: give one, or one each.")
        for value in values:
            if not 0 < value < math.inf:
                raise SystemExit(f"--{name} has {value}; it must be above 0 and finite.")
    if steps:
        steps = steps * (count // len(steps))
        if max_steps not in (-1, sum(steps)):
            raise SystemExit(f"--stage_steps add up to {sum(steps)}, and --max_steps is {max_steps}: leave one out.")
    elif count > 1:
        if max_steps < count:
            raise SystemExit(
                f"--max_steps is {max_steps}, too few for {count} stages: raise it, or give --stage_steps."
            )
        ends = [max_steps * number // count for number in range(count + 1)]
        steps = [end - start for start, end in pairwise(ends)]
    else:
        steps = [max_steps]
    every_length, every_theta = lengths * (count // len(lengths)), rope_thetas or [None]
    return [Stage(*stage) for stage in zip(steps, every_length, every_theta * (count // len(every_theta)), strict=True)]


def rows_in_order(rows: list[Dataset], stages: list[Stage], rows_a_step: int, seed: int) -> Dataset:
    """The rows of every step, to be read one after the other: each stage's own, shuffled anew in each epoch."""
    generator, parts = torch.Generator().manual_seed(seed), []
    for own, stage in zip(rows, stages, strict=True):
        number = stage.steps * rows_a_step
        epochs = [torch.randperm(len(own), generator=generator) for _ in range(-(-number // len(own)))]
        parts.append(own.select(torch.cat(epochs)[:number].tolist()))
    return concatenate_datasets(parts)


class StageTheta(TrainerCallback):
    """Gives the model the `rope_theta` of the stage that a step is in; after a resume too."""

    def __init__(self, stages: list[Stage]):
        self.stages, self.ends = stages, [*accumulate(stage.steps for stage in stages)]

    def on_train_begin(self, args, state, control, model, **kwargs) -> None:
        stage = self.stages[min(bisect_right(self.ends, state.global_step), len(self.stages) - 1)]
        if stage.rope_theta is not None:
            model.config.rope_parameters["rope_theta"] = stage.rope_theta

    on_step_begin = on_train_begin
