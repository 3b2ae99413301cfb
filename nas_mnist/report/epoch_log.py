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
        self.epochs, self.seeds, self.lines = epochs, seeds, lines
        self.newest: dict[int | str, EpochResult] = {}  # by seed or name
        super().__init__(console, "epochs", epochs * seeds)

    def __call__(self, seed: int | str, result: EpochResult) -> None:
        """Print the line of one epoch; ``seed`` is a seed or the name of a training."""
        name = f"seed {seed}" if isinstance(seed, int) else seed
        line = f"{name}  epoch {result.epoch:>2}/{self.epochs}  loss {result.train_loss:.4f}"
        if score := result.score:
            line += f"  test loss {score.loss:.4f}  {score.correct}/{score.count} ({score.accuracy:.2%})"
        if self.lines:
            self.console.print(f"{line}  {result.seconds:.1f} s")
        self.newest[seed] = result
        self.step()
        if self.seeds > 1:
            if seed not in self.bars:
                self.add_bar(seed, self.epochs, name)
            self.step_bar(seed, f"{name}, {result.images / result.seconds:,.0f} images/s")
        if result.epoch == self.epochs:
            self.remove_bar(seed)

    def note(self) -> str:
        """Times, and the mean test accuracy of the seeds that are done."""
        done = [one.score.accuracy for one in self.newest.values() if one.epoch == self.epochs and one.score]
        return super().note() + (f", mean {fmean(done):.3%}" if done else "")
