"""The console of a command, and the progress bars that the live displays share."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.progress import Progress
from rich.progress_bar import ProgressBar
from rich.table import Table
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
        if not self.count:
            return None
        return max(self._step_time * steps - (time.monotonic() - self.last_step), 0.0)

    def fraction(self) -> float:
        """The estimated share of the current step that is done, at most 0.95."""
        if not self.count:
            return 0.0
        return min((time.monotonic() - self.last_step) / max(self._step_time, 1e-9), 0.95)

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
            line = Table.grid(padding=(0, 1))
            line.add_column(no_wrap=True)
            line.add_column(width=width)
            line.add_column(no_wrap=True)
            line.add_column(no_wrap=True, overflow="ellipsis")
            count = f"{task.completed:.0f}/{task.total:.0f}"
            line.add_row(task.description, bar, count, task.fields["note"]())
            yield line
