"""The live display of final trainings: one line per epoch and seed, and progress bars below."""

from __future__ import annotations

from statistics import fmean

from rich.console import Console

from ..training.loop import EpochResult
from .progress import LiveDisplay


class EpochLog(LiveDisplay):
    """Called after every epoch of every training; a context manager.

    ``lines=False``: only the bars. One bar counts all epochs; several trainings have a bar each.
    """

    def __init__(self, console: Console, epochs: int, seeds: int, lines: bool = True) -> None:
        super().__init__(console)
        self.epochs, self.seeds, self.lines = epochs, seeds, lines
        self._speed = ""
        self._total_bar = self.progress.add_task(
            "epochs", total=epochs * seeds, note=self._note, fraction=self.pace.fraction
        )
        self.newest: dict[int | str, EpochResult] = {}  # by seed or name

    def __call__(self, seed: int | str, result: EpochResult) -> None:
        """Print the line of one epoch; ``seed`` is a seed or the name of a training."""
        name = f"seed {seed}" if isinstance(seed, int) else seed
        line = f"{name}  epoch {result.epoch:>2}/{self.epochs}  loss {result.train_loss:.4f}"
        if score := result.score:
            line += f"  test loss {score.loss:.4f}  {score.correct}/{score.count} ({score.accuracy:.2%})"
        if self.lines:
            self.console.print(f"{line}  {result.seconds:.1f} s")
        self.pace.step()
        self.progress.update(self._total_bar, completed=self.pace.count)
        self._speed = f", {result.images / result.seconds:,.0f} images/s"
        if self.seeds > 1:
            if seed not in self.bars:
                self.add_bar(seed, "      ", self.epochs, name, result.seconds)
            self.step_bar(seed, name + self._speed)
        if result.epoch == self.epochs:
            self.remove_bar(seed)
        self.newest[seed] = result

    def _note(self) -> str:
        speed = self._speed if self.seeds == 1 else ""
        done = [one.score.accuracy for one in self.newest.values() if one.epoch == self.epochs and one.score]
        mean = f", mean {fmean(done):.3%}" if done else ""
        return f"{self.times(self.epochs * self.seeds - self.pace.count)}{speed}{mean}"
