"""One bar for a study, and a line for each cell that runs."""

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from .cell import ERROR, PROGRESS, RESULT
from .study import Study

SECONDS = 1.0
"""The bar is drawn anew after so long; cells tell how far they are as often."""
PERIOD = 1800
"""The estimate of the end is made from so many seconds."""


@contextlib.contextmanager
def show_progress(study: Study, folder: Path) -> Iterator[None]:
    """Shows on stderr how far the cells in a folder are, from what they write there, wherever they run."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps, {task.fields[speed]:,.0f} tokens/s"),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=Console(stderr=True), speed_estimate_period=PERIOD)
    bars, stop = Bars(study, folder, progress), threading.Event()

    def watch() -> None:
        while not stop.wait(SECONDS):
            bars.update()

    thread = threading.Thread(target=watch, daemon=True)
    with progress:
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            bars.update()


class Bars:
    """The study's bar and the cells' lines."""

    def __init__(self, study: Study, folder: Path, progress: Progress):
        self.steps, self.folder, self.progress = max(1, study.steps), folder, progress
        self.names = {cell.name for cell in study.cells.values()}
        cells = len(study.pairs) * (len(study.learning_rates) + len(study.seeds) - 1)
        self.finished = self.ended(RESULT)
        self.failed: set[str] = set()
        self.lines: dict[str, TaskID] = {}
        total, done = cells * self.steps, len(self.finished) * self.steps
        self.bar = progress.add_task(f"{cells} cells", total=total, completed=done, speed=0)

    def ended(self, file: str) -> set[str]:
        """The cells that have a file."""
        return {path.parent.name for path in self.folder.glob(f"*/{file}")} & self.names

    def update(self) -> None:
        """Reads the folder, and says of a cell that it has ended."""
        running = {path.parent.name: content for path in self.folder.glob(f"*/{PROGRESS}") if (content := read(path))}
        finished, failed = self.ended(RESULT), self.ended(ERROR)
        for name in sorted(finished - self.finished):
            self.progress.console.print(f"{name}: finished", highlight=False)
        for name in sorted(failed - self.failed):
            self.progress.console.print(f"{name}: failed, see {ERROR} in its folder", highlight=False)
        self.finished, self.failed = finished, failed
        for name in [*self.lines]:
            if name not in running:
                self.progress.remove_task(self.lines.pop(name))
        for name, content in running.items():
            if name not in self.lines:
                self.lines[name] = self.progress.add_task(f"  {name}", total=self.steps, speed=0)
            self.progress.update(self.lines[name], completed=content["step"], speed=content["tokens_per_second"] or 0)
        done = len(finished) * self.steps + sum(content["step"] for content in running.values())
        speed = sum(content["tokens_per_second"] or 0 for content in running.values())
        self.progress.update(self.bar, completed=done, speed=speed)


def read(path: Path) -> dict[str, Any] | None:
    """A file that a cell may be removing."""
    with contextlib.suppress(OSError):
        return json.loads(path.read_text(encoding="utf-8"))
    return None
