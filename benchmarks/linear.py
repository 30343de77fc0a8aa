"""Linear attention by length beside softmax attention, and how near FAVOR+ comes to it."""

import statistics
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

import hf_rope
from hf_rope.model.linear_attention import FavorFeatures, attend_to_all

from . import native
from .cases import SMALL, forward, full, scheme_model
from .measure import peak

SIZES = {**SMALL, "num_hidden_layers": 2}
LENGTHS = (4096, 8192, 16384, 32768, 65536)
MODELS: dict[str, dict[str, Any] | None] = {
    "linear, elu": {"attention_type": "linear"},
    "linear, FAVOR+": {"attention_type": "linear", "feature_map": "favor"},
    "softmax, sdpa": {"attn_implementation": "sdpa"},
    "native RoFormer": None,
}
SECONDS, MEGABYTES = 40, 8192
"""No longer input is tried where it is expected to take more: four times what the one of half the length took."""

FEATURES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
SCALES = (0.25, 0.5, 0.75)


def build(name: str) -> PreTrainedModel:
    settings = MODELS[name]
    if settings is None:
        return native.build("RoFormer", "Model", **SIZES, max_position_embeddings=LENGTHS[-1])
    return scheme_model("rotary", **SIZES, **settings)


def peaks(name: str) -> dict[int, float]:
    """Megabytes above the weights at the peak of a forward of one sequence, by length; in a process of its own.

    From the shortest length to the longest: after each, the most that the process has held so far is read.
    """
    torch.set_num_threads(1)
    model = build(name)
    forward(model, **full(1, 16))()
    held, memory = peak(), {}
    for length in LENGTHS:
        start = time.process_time()
        forward(model, **full(1, length))()
        memory[length] = peak() - held
        if 4 * (time.process_time() - start) > SECONDS or 4 * memory[length] > MEGABYTES:
            break
    return memory


def times(name: str, lengths: Iterable[int], rounds: int) -> dict[int, float]:
    """Seconds of a forward of one sequence, by length; in a process of its own, started with ALLOCATOR.

    All lengths in turn, after one round that is not counted, and the median of each. One thread, and the seconds are
    the processor's: what else runs then delays a thread more than it adds to its work.
    """
    torch.set_num_threads(1)
    model = build(name)
    runs = {length: forward(model, **full(1, length)) for length in lengths}
    seconds: dict[int, list[float]] = {length: [] for length in runs}
    for number in range(rounds + 1):
        for length, run in runs.items():
            start = time.process_time()
            run()
            if number:
                seconds[length].append(time.process_time() - start)
    return {length: statistics.median(found) for length, found in seconds.items()}


def favor_errors(seeds: int = 20) -> dict[str, dict[str, float]]:
    """FAVOR+ against softmax attention: the root of the mean squared error over that of the output, by features.

    128 tokens, one head of 64, Gaussian values, and queries and keys of a deviation of each of SCALES; the mean of the
    squares is over `seeds`. For deviations of s, q . k / sqrt(E) has one of s^2.
    """
    query, key, value = torch.randn(3, 1, 1, 128, 64, generator=torch.Generator().manual_seed(0))
    errors: dict[str, dict[str, float]] = {}
    for scale in SCALES:
        inputs = (scale * query, scale * key, value)
        expected = F.scaled_dot_product_attention(*inputs)
        errors[str(scale)] = {}
        for count in FEATURES:
            found = [(favor(*inputs, count, seed) - expected).square().mean() for seed in range(seeds)]
            errors[str(scale)][str(count)] = float((torch.stack(found).mean() / expected.square().mean()).sqrt())
    return errors


def favor(query, key, value, count: int, seed: int) -> torch.Tensor:
    """Linear attention of one head without positions, (1, 1, L, E), with `count` features."""
    settings = {"attention_type": "linear", "feature_map": "favor", "num_features": count, "feature_seed": seed}
    config = hf_rope.HfRopeConfig(hidden_size=query.shape[-1], num_attention_heads=1, **settings)
    module = FavorFeatures(config, 0)
    module.init_weights(config.initializer_range)
    query, key, scale = module(query, key)
    return attend_to_all(query, key, (query, key, value), scale)
