"""Runs the cells of a study through joblib: on processes of this machine, or on a cluster of Ray's or Dask's."""

import contextlib
import os
import traceback
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky.process_executor import TerminatedWorkerError
from transformers.utils import logging

from ..precision import computes_bfloat16
from ..text_files import write_json
from .cell import CELLS, ERROR, PROGRESS, Cell, read_result, require_device, run_cell
from .choice import choose_rate
from .progress import show_progress
from .study import START, Study, make_study, read_study

STUDY = "study.json"
BACKENDS = ("loky", "ray", "dask")
logger = logging.get_logger(__name__)


def compare(
    study: str | Path | dict[str, Any],
    output: str | Path,
    workers: int = 1,
    resume: bool = False,
    backend: str = "loky",
    start: str | Path | None = None,
) -> dict[str, str]:
    """Runs all cells of a study that are not finished, each in a folder of its own under `output`.

    Args:
        study: a file, or what it holds as a dictionary, whose files are then relative to the working directory.
        output: a folder that is new or empty; with `resume`, one that an earlier run left, from which it goes on.
        workers: how many cells run at a time, with one thread each.
        backend: "loky", processes of this machine; "ray" or "dask", a cluster that sees `output` under the same name:
            the one that RAY_ADDRESS or DASK_SCHEDULER_ADDRESS names, or else one of `workers` on this machine.
        start: the folder of the study that this one starts from; None for `start` in `output`. That study is run there
            first, as far as it is not finished, so that several studies can start from it.

    Returns:
        The errors of the cells that failed, by the cells' names. A failed cell is tried again by the next `resume`.

    Raises:
        ValueError: the study does not fit, a folder holds something else, the backend is not installed, or its device
            is not here; a worker of a cluster looks for its own.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be 1 or more.")
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; it must be one of: {', '.join(BACKENDS)}.")
    folder = Path(output).resolve()
    begin = Path(start or folder / START).resolve()
    checked = make_study(study, start_folder=begin) if isinstance(study, dict) else read_study(study, begin)
    require_place(folder, output, resume)
    if checked.built_start is not None:
        require_place(begin, start or begin, resume=True)
    if start is not None and (checked.built_start is None or begin == folder):
        raise ValueError(
            f"start is {str(start)!r}; it is for a study that starts from another one, whose folder is not output's."
        )
    if backend == "loky":
        require_device(checked.device)
        if checked.precision == "bfloat16" and not computes_bfloat16(checked.device):
            logger.warning(
                "The study's precision is bfloat16, which this machine emulates: a step can take many times as long as "
                "in float32. Run it where there is bfloat16, or write precision: float32, which is another study."
            )
    with pool(backend, workers):
        return run_study(checked, folder, workers)


def require_place(folder: Path, given: str | Path, resume: bool) -> None:
    """Raises ValueError where a folder holds something that is not to be gone on with."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not resume:
            raise ValueError(f"{given} is not empty: go on with it by resume (--resume), or name another folder.")
        if not (folder / STUDY).is_file():
            raise ValueError(f"{given} holds no {STUDY}, so no study was run there: name another folder.")


def run_study(study: Study, folder: Path, workers: int) -> dict[str, str]:
    """As `compare`; first the study that it starts from, where something is left to do."""
    write_study(study, folder)
    failed: dict[str, str] = {}
    start, cells = study.built_start, folder / CELLS
    if start is not None and any(not finished(cell, cells) for cell in wanted(study, cells)):
        failed = run_study(start.study, start.folder, workers)
    return failed | run_cells(study, cells, workers)


def write_study(study: Study, folder: Path) -> None:
    """What the report needs to know: the settings, and which cells belong to them."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = [
        {"task": task, "scheme": scheme, "learning_rate": rate, "seed": seed, "name": cell.name}
        for (task, scheme, rate, seed), cell in study.cells.items()
    ]
    settings = {field.name: getattr(study, field.name) for field in fields(study) if field.init}
    write_json(folder / STUDY, {"study": settings, "cells": cells})


def run_cells(study: Study, folder: Path, workers: int) -> dict[str, str]:
    """As `compare`: in one pass, or where learning rates are to be chosen in two."""
    for name in (PROGRESS, ERROR):  # of an earlier run, whose failed cells are tried again
        for left_over in folder.glob(f"*/{name}"):
            left_over.unlink()
    failed: dict[str, str] = {}
    with show_progress(study, folder):
        while todo := [
            cell for cell in wanted(study, folder) if cell.name not in failed and not finished(cell, folder)
        ]:
            try:
                run_in_parallel(todo, folder, workers)
            except TerminatedWorkerError:
                running = [cell for cell in todo if (folder / cell.name / PROGRESS).is_file()]
                run_each_alone(running or [cell for cell in todo if not ended(cell, folder)], folder)
            failed |= {cell.name: text for cell in todo if (text := read_error(folder / cell.name))}
    return failed


def run_in_parallel(cells: list[Cell], folder: Path, workers: int) -> None:
    Parallel(n_jobs=workers, batch_size=1)(delayed(attempt)(cell, folder / cell.name) for cell in cells)


def run_each_alone(cells: list[Cell], folder: Path) -> None:
    """Goes on with the cells that ran when a worker was killed, as a system without memory does, one after the other.

    joblib stops all workers where one is killed, and does not say which cell that one had; where it had not begun with
    it, all that are left are given. Alone a cell has the memory to itself, and what kills its worker again is its own.
    """
    for cell in cells:
        (folder / cell.name / PROGRESS).unlink(missing_ok=True)
    for cell in cells:
        try:
            run_in_parallel([cell], folder, workers=2)  # one worker would be this process
        except TerminatedWorkerError as error:
            write_error(folder / cell.name, f"its worker was killed: {error}")
            (folder / cell.name / PROGRESS).unlink(missing_ok=True)


def finished(cell: Cell, folder: Path) -> bool:
    return read_result(folder / cell.name) is not None


def ended(cell: Cell, folder: Path) -> bool:
    return finished(cell, folder) or read_error(folder / cell.name) is not None


def wanted(study: Study, folder: Path) -> Iterator[Cell]:
    """The cells of the first seed, and then, seed by seed, those of the others at a learning rate that is known."""
    first, others = study.seeds[0], study.seeds[1:]
    rates = {}
    for task, scheme in study.pairs:
        at_first = {rate: study.cells[task, scheme, rate, first] for rate in study.learning_rates}
        yield from at_first.values()
        rates[task, scheme] = choose_rate({rate: read_result(folder / cell.name) for rate, cell in at_first.items()})
    for seed in others:
        for (task, scheme), rate in rates.items():
            if rate is not None:
                yield study.cells[task, scheme, rate, seed]


def attempt(cell: Cell, folder: Path) -> None:
    """Runs a cell in a worker; an error goes into its folder, and the other cells go on."""
    try:
        run_cell(cell, folder)
    except Exception:
        write_error(folder, traceback.format_exc())


def write_error(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ERROR).write_text(text, encoding="utf-8")


def read_error(folder: Path) -> str | None:
    path = folder / ERROR
    return path.read_text(encoding="utf-8") if path.is_file() else None


@contextlib.contextmanager
def pool(backend: str, workers: int) -> Iterator[None]:
    """Where `Parallel` runs its jobs within. Ray and Dask read the addresses of their clusters from the environment."""
    if backend == "ray":
        with ray_cluster(workers), parallel_config(backend="ray"):
            yield
    elif backend == "dask":
        with dask_cluster(workers), parallel_config(backend="dask"):
            yield
    else:
        with parallel_config(backend="loky"):
            yield


@contextlib.contextmanager
def ray_cluster(workers: int) -> Iterator[None]:
    try:
        import ray
        from ray.util.joblib import register_ray
    except ModuleNotFoundError as error:
        raise ValueError(f"The backend 'ray' is not installed ({error}): pip install 'hf-rope[ray]'.") from None
    register_ray()
    ray.init(num_cpus=None if "RAY_ADDRESS" in os.environ else workers, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def dask_cluster(workers: int) -> Iterator[None]:
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise ValueError(f"The backend 'dask' is not installed ({error}): pip install 'hf-rope[dask]'.") from None
    local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
    with Client(**({} if "DASK_SCHEDULER_ADDRESS" in os.environ else local)):
        yield
