"""Paired timing, and peak memory in a process of its own."""

import multiprocessing
import re
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "17179869184", "MALLOC_TRIM_THRESHOLD_": "17179869184"}
"""Of glibc, read when a process starts: it keeps what is freed. By default it gives back each tensor of more than 32 MB
and gets it anew, page by page, so that long inputs pay more a token than short ones for what is no computation."""


@dataclass
class Ratio:
    """How many times as fast ours is as the other: the median of the paired ratios, and their quartiles."""

    median: float
    low: float
    high: float
    seconds: float
    rounds: int


def compare(ours: Callable[[], object], others: dict[str, Callable[[], object]], rounds: int) -> dict[str, Ratio]:
    """Runs all in turn, so that each finds the caches as another left them, after one round that is not counted."""
    runs = {"ours": ours, **others}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name in runs:
            start = time.perf_counter()
            runs[name]()
            if number:
                seconds[name].append(time.perf_counter() - start)
    results = {}
    for name in others:
        ratios = [other / mine for other, mine in zip(seconds[name], seconds["ours"], strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4) if rounds > 1 else ratios * 3
        results[name] = Ratio(median, low, high, statistics.median(seconds["ours"]), rounds)
    return results


def in_fresh_process(work: Callable[..., T], *arguments: Any) -> T:
    """The result of `work(*arguments)` in a new process: what ran before leaves neither heap nor caches behind."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def peak_memory(work: Callable[..., None], *arguments: Any) -> float:
    """Megabytes that `work(*arguments)` needs at its peak beyond what it held after `work(*arguments, warm=True)`.

    Each runs in a fresh process: `work` builds its model and, unless `warm`, also runs it.
    """
    warm, peak = (in_fresh_process(peak_after, work, arguments, warm) for warm in (True, False))
    return peak - warm


def peak_after(work: Callable[..., None], arguments: tuple, warm: bool) -> float:
    """Megabytes that this process has held at most, once `work` is done."""
    work(*arguments, warm=warm)
    return peak()


def peak() -> float:
    """The most megabytes that this process has held; `ru_maxrss` would begin with those of the one that started it."""
    return int(re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1]) / 1024
