"""The console of a command, and the progress bars that the live displays share."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text


def make_console(quiet: bool = False) -> Console:
    """The console of a command; without a terminal it shows no bars and wraps no line."""
    in_kernel = "JPY_PARENT_PID" in os.environ  # also of a command that a notebook starts
    console = Console(
        quiet=quiet, force_terminal=False if in_kernel else None, force_jupyter=False, highlight=False
    )
    console.soft_wrap = not console.is_terminal
    return console


def notebook_cell(progress: Progress, console: Console) -> Any:
    """The output of the running notebook cell that shows the bars, updated in place; None elsewhere.

    Rich's own display in notebooks needs the package ipywidgets.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if console.quiet or shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import display

    return display(progress, display_id=True)


@contextlib.contextmanager
def loading(text: str, quiet: bool = False) -> Iterator[None]:
    """Show a text on a terminal, from the first moment of a command until it has something to print.

    Elsewhere it prints nothing: bad input ends with one line.
    """
    with make_console(quiet).status(text):
        yield


def print_warning(console: Console, text: str) -> None:
    """Print a warning; nothing for an empty text."""
    if text:
        console.print(text, style="bold yellow", markup=False)


def clock(seconds: float) -> str:
    """Seconds as ``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def counted(number: int, noun: str) -> str:
    """A number with its noun: ``1 epoch``, ``20,000 images``."""
    return f"{number:,} {noun}" + "s" * (number != 1)


class NoteColumn(ProgressColumn):
    """The text behind a bar: a task's field ``note``, a function, is called whenever the bar is drawn."""

    def render(self, task: Task) -> Text:
        """The text, cut to the rest of the line."""
        return Text(task.fields["note"](), no_wrap=True, overflow="ellipsis")


class LiveDisplay:
    """Progress bars as a context manager: one for all steps, and one for every running training."""

    def __init__(self, console: Console, unit: str, total: int, done: int = 0) -> None:
        """``total`` steps of a ``unit``, of which an earlier command has ``done`` some."""
        self.console, self.total, self.done = console, total, done
        self.started = self.last_step = time.monotonic()  # seconds
        self.steps = 0  # since the start
        self.bars: dict[int | str, TaskID] = {}  # by training
        whole = Column(no_wrap=True)
        bar = BarColumn(10 if console.width < 100 else 24, table_column=whole)
        columns = TextColumn("{task.description}"), bar, MofNCompleteColumn(table_column=whole), NoteColumn()
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.cell: Any = None  # of a notebook
        self.total_bar = self.progress.add_task(unit, total=total, completed=done, note=self.note)

    def __enter__(self) -> Self:
        self.cell = notebook_cell(self.progress, self.console)
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        self._refresh_cell()

    def _refresh_cell(self) -> None:
        if self.cell is not None:
            self.cell.update(self.progress)

    def step(self) -> None:
        """Count one more step."""
        self.steps += 1
        self.last_step = time.monotonic()
        self.progress.update(self.total_bar, completed=min(self.done + self.steps, self.total))
        self._refresh_cell()

    def add_bar(self, training: int | str, epochs: int, note: str) -> None:
        """A training begins."""
        self.bars[training] = self.progress.add_task("epochs", total=epochs, note=lambda: note)

    def step_bar(self, training: int | str, note: str) -> None:
        """A training has finished an epoch."""
        self.progress.update(self.bars[training], advance=1, note=lambda: note)
        self._refresh_cell()

    def remove_bar(self, training: int | str) -> None:
        """A training has ended; one without a bar is ignored."""
        if training in self.bars:
            self.progress.remove_task(self.bars.pop(training))

    def note(self) -> str:
        """The text behind the bar of all steps: the time since the start, and the estimated time left."""
        now = time.monotonic()
        elapsed = f"{clock(now - self.started)} elapsed"
        if not self.steps:
            return elapsed
        of_a_step = (self.last_step - self.started) / self.steps
        left = of_a_step * max(self.total - self.done - self.steps, 0) - (now - self.last_step)
        return f"{elapsed}, {clock(max(left, 0.0))} left"
