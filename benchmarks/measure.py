"""Paired timing, and peak memory in a process of its own."""

import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


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


def peak_memory(work: Callable[..., None], *arguments) -> float:
    """Megabytes that `work(*arguments)` needs at its peak beyond what it held after `work(*arguments, warm=True)`.

    Runs in a fresh process: `work` builds its model and, unless `warm`, also runs it.
    """
    context = multiprocessing.get_context("spawn")
    figures = []
    for warm in (True, False):
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=_measure, args=(send, work, arguments, warm))
        process.start()
        figures.append(json.loads(receive.recv()))
        process.join()
    return figures[1] - figures[0]


def _measure(send, work, arguments, warm: bool) -> None:
    work(*arguments, warm=warm)
    send.send(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
