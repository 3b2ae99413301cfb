"""The live display of final trainings: one line per epoch and seed, and progress bars below."""

from __future__ import annotations

from statistics import fmean
from typing import Self

from rich.console import Console
from rich.progress import TaskID

from ..training.loop import EpochResult
from .progress import Pace, ProgressLines, clock


class EpochLog:
    """Called after every epoch of every training; a context manager.

    ``lines=False``: only the bars. One bar counts all epochs; several trainings have a bar each.
    """

    def __init__(self, console: Console, epochs: int, seeds: int, lines: bool = True) -> None:
        self.console, self.epochs, self.seeds, self.lines = console, epochs, seeds, lines
        self.pace = Pace()
        self.progress = ProgressLines(console=console, transient=True, disable=not console.is_terminal)
        self._speed = ""
        self._total_bar = self.progress.add_task(
            "epochs", total=epochs * seeds, note=self._note, fraction=self.pace.fraction
        )
        self._running: dict[int | str, tuple[TaskID, Pace]] = {}  # by seed or name
        self._accuracies: list[float] = []  # of the trainings that are done

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, seed: int | str, result: EpochResult) -> None:
        """Print the line of one epoch; ``seed`` is a seed or the name of a training."""
        name = f"seed {seed}" if isinstance(seed, int) else seed
        line = f"{name}  epoch {result.epoch:>2}/{self.epochs}  loss {result.train_loss:.4f}"
        if result.score is not None:
            score = result.score
            line += f"  test loss {score.loss:.4f}  {score.correct}/{score.count} ({score.accuracy:.2%})"
        if self.lines:
            self.console.print(f"{line}  {result.seconds:.1f} s")
        self.pace.step()
        self.progress.update(self._total_bar, completed=self.pace.count)
        self._speed = f"{result.images / result.seconds:,.0f} images/s"
        if self.seeds > 1:
            self._update_bar(seed, f"{name}, {self._speed}", result)
        if result.epoch == self.epochs and result.score:
            self._accuracies.append(result.score.accuracy)

    def _update_bar(self, seed: int | str, note: str, result: EpochResult) -> None:
        """Update the bar of one training of several."""
        if seed not in self._running:
            pace = Pace()
            pace.started -= result.seconds  # its first epoch is over
            bar = self.progress.add_task(
                "      ", total=self.epochs, note=lambda: note, fraction=pace.fraction
            )
            self._running[seed] = bar, pace
        bar, pace = self._running[seed]
        pace.step()
        self.progress.update(bar, completed=result.epoch, note=lambda: note)
        if result.epoch == self.epochs:
            self.progress.remove_task(self._running.pop(seed)[0])

    def _note(self) -> str:
        seconds = self.pace.left(self.epochs * self.seeds - self.pace.count)
        left = "" if seconds is None else f", {clock(seconds)} left"
        speed = f", {self._speed}" if self._speed and self.seeds == 1 else ""
        mean = f", mean {fmean(self._accuracies):.3%}" if self._accuracies else ""
        return f"{clock(self.pace.elapsed)} elapsed{left}{speed}{mean}"
