"""The console of a command, and the progress bars that the live displays share."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import Progress, TaskID
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text


def make_console(quiet: bool = False) -> Console:
    """The console of a command; without a terminal, and in a notebook, it shows no bars and wraps no line."""
    in_notebook = "JPY_PARENT_PID" in os.environ
    console = Console(quiet=quiet, force_terminal=False if in_notebook else None, highlight=False)
    console.soft_wrap = not console.is_terminal
    return console


def clock(seconds: float) -> str:
    """Seconds as ``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Pace:
    """The mean time of the steps so far, and estimates from it; times in seconds."""

    def __init__(self) -> None:
        self.started = self.last_step = time.monotonic()
        self.count = 0  # steps since the start

    def step(self) -> None:
        """Count one more step."""
        self.count += 1
        self.last_step = time.monotonic()

    @property
    def elapsed(self) -> float:
        """The time since the start."""
        return time.monotonic() - self.started

    def left(self, steps: float) -> float | None:
        """The estimated time until so many more steps are done; None before the first step."""
        waited = time.monotonic() - self.last_step
        return max(self._step_time * steps - waited, 0.0) if self.count else None

    def fraction(self) -> float:
        """The estimated share of the current step that is done, at most 0.95."""
        waited = time.monotonic() - self.last_step
        return min(waited / max(self._step_time, 1e-9), 0.95) if self.count else 0.0

    @property
    def _step_time(self) -> float:
        return (self.last_step - self.started) / self.count


class ProgressLines(Progress):
    """One line per task, within 80 columns: a bar for a task with a total, else its description.

    A task's field ``note`` is a function that returns the text behind the bar; ``fraction``, if there is one,
    returns the share of the current step that is done.
    """

    def get_renderables(self) -> Iterable[RenderableType]:
        """The lines from top to bottom."""
        for task in self.tasks:
            if task.total is None:
                yield Text(f"       {task.description}", overflow="ellipsis", no_wrap=True)
                continue
            width = 10 if self.console.width < 100 else 24
            fraction = task.fields["fraction"]() if "fraction" in task.fields else 0.0
            bar = ProgressBar(total=task.total, completed=task.completed + fraction, width=width)
            whole, note = Column(no_wrap=True), Column(no_wrap=True, overflow="ellipsis")
            line = Table.grid(whole, Column(width=width), whole.copy(), note, padding=(0, 1))
            count = f"{task.completed:.0f}/{task.total:.0f}"
            line.add_row(task.description, bar, count, task.fields["note"]())
            yield line


class LiveDisplay:
    """Progress bars as a context manager: the subclass has one for all steps, and one a running training."""

    def __init__(self, console: Console) -> None:
        self.console, self.pace = console, Pace()
        self.progress = ProgressLines(console=console, transient=True, disable=not console.is_terminal)
        self.bars: dict[int | str, tuple[TaskID, Pace]] = {}  # by training

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def add_bar(self, training: int | str, text: str, epochs: int, note: str, seconds: float = 0.0) -> None:
        """The bar of a training that began ``seconds`` ago."""
        pace = Pace()
        pace.started -= seconds
        bar = self.progress.add_task(text, total=epochs, note=lambda: note, fraction=pace.fraction)
        self.bars[training] = bar, pace

    def step_bar(self, training: int | str, note: str) -> None:
        """A training has finished an epoch."""
        bar, pace = self.bars[training]
        pace.step()
        self.progress.update(bar, completed=pace.count, note=lambda: note)

    def remove_bar(self, training: int | str) -> None:
        """A training has ended; one without a bar is ignored."""
        if training in self.bars:
            self.progress.remove_task(self.bars.pop(training)[0])

    def times(self, steps: float) -> str:
        """The time since the start, and the estimated time until so many more steps are done."""
        left = self.pace.left(steps)
        return f"{clock(self.pace.elapsed)} elapsed" + ("" if left is None else f", {clock(left)} left")
