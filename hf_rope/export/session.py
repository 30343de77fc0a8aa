"""Session: an ONNX file as a function of a batch, and how near and how fast it is beside the model."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import onnxruntime
import torch
from transformers import PreTrainedModel

from ..convert.check import difference

Batch = Mapping[str, torch.Tensor]


class Session:
    """A graph in ONNX Runtime on the CPU, with as many threads as PyTorch has.

    Args:
        path: the ONNX file.
    """

    def __init__(self, path: Path):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = [x.name for x in self.session.get_inputs()]
        self.outputs = [x.name for x in self.session.get_outputs()]

    def __call__(self, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """The outputs by name; a model given the same batch has them first, and others behind."""
        found = self.session.run(self.outputs, {name: batch[name].numpy() for name in self.inputs})
        return {name: torch.from_numpy(x) for name, x in zip(self.outputs, found, strict=True)}


def greatest_difference(model: PreTrainedModel, session: Session, batches: Iterable[Batch]) -> tuple[float, float]:
    """Of the batch with the greatest difference for the size of its outputs: that difference, and that size."""
    found = [difference(model, session, dict(batch)) for batch in batches]
    return max(found, key=lambda pair: pair[0] / max(1.0, pair[1]))


@torch.no_grad()
def least_cosine(model: PreTrainedModel, session: Session, batches: Iterable[Batch], first: bool = False) -> float:
    """The least cosine between what model and graph give for a text.

    Of an encoder that is its embedding, the mean of the hidden states at real tokens; of a head all its numbers at real
    tokens. Where a text has one number only, as of a reranker, it is the correlation of those of all texts: a cosine
    would see little more than their sign. What is not a number counts as -1.

    Args:
        first: whether the embedding is the hidden state of the first real token.
    """
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    numbers: defaultdict[str, list[torch.Tensor]] = defaultdict(list)
    for batch in batches:
        expected, found = model(**batch), session(**batch)
        for name, output in found.items():
            both = [vectors(name, y, batch["attention_mask"], first) for y in (expected[name], output)]
            if output[0].numel() == 1:
                numbers[name].append(torch.stack([torch.stack(x).flatten() for x in both]))
            else:
                pairs += zip(*both, strict=True)
    for of_batches in numbers.values():
        x, y = torch.cat(of_batches, dim=-1)
        pairs.append((x - x.mean(), y - y.mean()))
    cosines = torch.stack([torch.cosine_similarity(x, y, dim=0) for x, y in pairs])
    return float(cosines.nan_to_num(nan=-1.0).min())


def vectors(name: str, x: torch.Tensor, mask: torch.Tensor, first: bool) -> list[torch.Tensor]:
    """What `least_cosine` compares of an output: a vector a text."""
    if x.shape[: mask.ndim] == mask.shape:
        rows = [row[real] for row, real in zip(x, mask.bool(), strict=True)]
        if name == "last_hidden_state":
            return [row[0] if first else row.mean(0) for row in rows]
        return [row.flatten() for row in rows]
    return [*x]


@torch.no_grad()
def texts_per_second(forwards: Mapping[str, Callable], batch: Batch, seconds: float = 1.0) -> dict[str, float]:
    """How many of a batch's texts each forward computes in a second: the median of rounds, in which they take turns.

    Args:
        seconds: how long each is run, after one round that does not count; three rounds at least.
    """
    times: dict[str, list[float]] = {name: [] for name in forwards}
    for forward in forwards.values():
        forward(**batch)
    while len(next(iter(times.values()))) < 3 or min(sum(spent) for spent in times.values()) < seconds:
        for name, forward in forwards.items():
            start = time.perf_counter()
            forward(**batch)
            times[name].append(time.perf_counter() - start)
    return {name: len(batch["input_ids"]) / statistics.median(spent) for name, spent in times.items()}
