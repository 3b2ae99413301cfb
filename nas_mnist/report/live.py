"""What a person sees while a search or a reproduction runs.

On a terminal: one line for every candidate that was trained, and below them the state of the search. In
a pipe: the same lines, without colours and without anything that moves.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from statistics import fmean
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import Progress, TaskID
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..models.cost import Cost
from ..study.objective import Verdict
from ..study.results import TrialRow, best_rows
from ..training.loop import EpochResult
from .tables import counts_line


def clock(seconds: float) -> str:
    """Seconds as ``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def screen(quiet: bool = False) -> Console:
    """The console of a command. Nothing moves in a pipe or a notebook, and a pipe's lines are not broken."""
    in_notebook = "JPY_PARENT_PID" in os.environ
    console = Console(quiet=quiet, force_terminal=False if in_notebook else None, highlight=False)
    console.soft_wrap = not console.is_terminal
    return console


Note = Callable[[], str]  # worked out whenever the screen is drawn


class Pace:
    """How long what is counted takes, and how far the next one is."""

    def __init__(self) -> None:
        self.started = self.newest = time.monotonic()
        self.count = 0  # done since the start

    def did(self) -> None:
        """One more is done."""
        self.count += 1
        self.newest = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def left(self, missing: float) -> float | None:
        """Seconds until so many more are done; None before the first one is."""
        if not self.count:
            return None
        one = (self.newest - self.started) / self.count
        return max(one * missing - (time.monotonic() - self.newest), 0.0)

    def ahead(self) -> float:
        """The share of the next one that is done by now, by the time that the others took; below 1."""
        if not self.count:
            return 0.0
        one = (self.newest - self.started) / self.count
        return min((time.monotonic() - self.newest) / max(one, 1e-9), 0.95)


class _Lines(Progress):
    """Bars for tasks that have a total, plain text for those that have none; in 80 columns a line each."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Every task's line, from the top."""
        for task in self.tasks:
            if task.total is None:
                yield Text(f"       {task.description}", overflow="ellipsis", no_wrap=True)
                continue
            width = 10 if self.console.width < 100 else 24
            ahead = task.fields["ahead"]() if "ahead" in task.fields else 0.0
            bar = ProgressBar(total=task.total, completed=task.completed + ahead, width=width)
            line = Table.grid(padding=(0, 1))
            line.add_column(no_wrap=True)
            line.add_column(width=width)
            line.add_column(no_wrap=True)
            line.add_column(no_wrap=True, overflow="ellipsis")
            count = f"{task.completed:.0f}/{task.total:.0f}"
            line.add_row(task.description, bar, count, task.fields["note"]())
            yield line


class SearchDisplay:
    """The live display of a search; a context manager."""

    def __init__(self, console: Console, trials: int, epochs: int, rows: list[TrialRow]) -> None:
        """``rows`` are the study's trials so far."""
        self.console = console
        self.trials, self.epochs = trials, epochs
        self.counts = Counter(row.verdict for row in rows)
        best = best_rows(rows, 1)
        self._best = (best[0].validation_accuracy or 0.0, best[0].n_params or 0) if best else None
        self.already = self._done()  # in earlier calls
        self.pace = Pace()
        self.progress = _Lines(console=console, transient=True, disable=not console.is_terminal)
        self._trial_bar = self.progress.add_task(
            "trials", total=trials, completed=self.already, note=self._note
        )
        self._counts = self.progress.add_task(counts_line(self.counts), total=None)
        # By the trial's number: its bar, its parameters, how fast it goes.
        self._running: dict[int, tuple[TaskID, int, Pace]] = {}
        self._newest: dict[int, str] = {}  # accuracy, by trial

    def __enter__(self) -> Self:
        if self.already:
            self.console.print(f"Continuing: {self.already} of {self.trials} candidates are done.")
        self.progress.start()
        self._refresh()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def candidate(self, number: int, cost: Cost) -> None:
        """A candidate's training begins."""
        note, pace = f"trial {number}, {cost.params:,} parameters", Pace()
        bar = self.progress.add_task("epochs", total=self.epochs, note=lambda: note, ahead=pace.ahead)
        self._running[number] = bar, cost.params, pace

    def epoch(self, number: int, result: EpochResult) -> None:
        """One more epoch of a candidate is done."""
        bar, params, pace = self._running[number]
        pace.did()
        if result.score is not None:
            self._newest[number] = f", {result.score.accuracy:.2%}"
        rate = result.images / result.seconds
        note = f"trial {number}, {params:,} parameters{self._newest.get(number, '')}, {rate:,.0f} images/s"
        self.progress.update(bar, completed=pace.count, note=lambda: note)

    def ended(self, row: TrialRow) -> None:
        """Count a trial that ended and, if it was trained, print its line."""
        if row.trial in self._running:
            self.progress.remove_task(self._running.pop(row.trial)[0])
        self.counts[row.verdict] += 1
        value = row.validation_accuracy
        if row.verdict is Verdict.TRAINED and (self._best is None or (value or 0.0) > self._best[0]):
            self._best = (value or 0.0, row.n_params or 0)
        if row.verdict.counts:
            accuracy = "     -" if value is None else f"{value:.2%}"
            ending = row.verdict if row.verdict is Verdict.TRAINED else f"{row.verdict}: {row.reason}"
            self.pace.did()
            if not self.console.is_terminal:  # on a terminal the line below says so
                ending += f"  ({self._state()})"
            self.console.print(
                f"{self._done():>4}/{self.trials}  trial {row.trial:<4} {row.n_params:>7,} parameters  "
                f"{accuracy}  {ending}",
            )
        self._refresh()

    def lost(self, left: int) -> None:
        """A worker was killed."""
        self.console.print(f"A worker ended without a word; {left} left. What it trained is trained again.")

    def _done(self) -> int:
        return sum(number for verdict, number in self.counts.items() if verdict.counts)

    def _note(self) -> str:
        seconds = self.pace.left(max(self.trials - self._done(), 0))
        return self._state("" if seconds is None else f", {clock(seconds)} left")

    def _state(self, left: str = "") -> str:
        best = f", best {self._best[0]:.2%} ({self._best[1]:,} parameters)" if self._best else ""
        return f"{clock(self.pace.elapsed)} gone{left}{best}"

    def _refresh(self) -> None:
        self.progress.update(self._trial_bar, completed=min(self._done(), self.trials))
        self.progress.update(self._counts, description=counts_line(self.counts))


class EpochLog:
    """One line for every epoch of every seed's training, in the form of published logs; below them bars.

    A context manager. Without ``lines`` there are only the bars: one of all epochs, and one for every
    training where there are several.
    """

    def __init__(self, console: Console, epochs: int, seeds: int, lines: bool = True) -> None:
        self.console, self.epochs, self.seeds, self.lines = console, epochs, seeds, lines
        self.pace = Pace()
        self.progress = _Lines(console=console, transient=True, disable=not console.is_terminal)
        self._speed = ""
        self._all = self.progress.add_task(
            "epochs", total=epochs * seeds, note=self._note, ahead=self.pace.ahead
        )
        self._running: dict[int | str, tuple[TaskID, Pace]] = {}  # by seed, or by another name
        self._results: list[float] = []  # accuracies of the trainings that are done

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, seed: int | str, result: EpochResult) -> None:
        """Print one epoch's line."""
        name = f"seed {seed}" if isinstance(seed, int) else seed
        line = f"{name}  epoch {result.epoch:>2}/{self.epochs}  loss {result.train_loss:.4f}"
        if result.score is not None:
            score = result.score
            line += f"  test loss {score.loss:.4f}  {score.correct}/{score.count} ({score.accuracy:.2%})"
        if self.lines:
            self.console.print(f"{line}  {result.seconds:.1f} s")
        self.pace.did()
        self.progress.update(self._all, completed=self.pace.count)
        self._speed = f"{result.images / result.seconds:,.0f} images/s"
        if self.seeds > 1:
            self._show(seed, f"{name}, {self._speed}", result)
        if result.epoch == self.epochs:
            self._results += [result.score.accuracy] if result.score else []

    def _show(self, seed: int | str, note: str, result: EpochResult) -> None:
        """Move the bar of one training of several."""
        if seed not in self._running:
            pace = Pace()
            pace.started -= result.seconds  # of the epoch that was its first
            bar = self.progress.add_task("      ", total=self.epochs, note=lambda: note, ahead=pace.ahead)
            self._running[seed] = bar, pace
        bar, pace = self._running[seed]
        pace.did()
        self.progress.update(bar, completed=result.epoch, note=lambda: note)
        if result.epoch == self.epochs:
            self.progress.remove_task(self._running.pop(seed)[0])

    def _note(self) -> str:
        seconds = self.pace.left(self.epochs * self.seeds - self.pace.count)
        left = "" if seconds is None else f", {clock(seconds)} left"
        speed = f", {self._speed}" if self._speed and self.seeds == 1 else ""
        mean = f", mean {fmean(self._results):.3%}" if self._results else ""
        return f"{clock(self.pace.elapsed)} gone{left}{speed}{mean}"
