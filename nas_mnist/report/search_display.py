"""The live display of a search.

On a terminal: one line per candidate that counts, and progress bars below. Without a terminal: the same lines
with the elapsed time and the best candidate.
"""

from __future__ import annotations

from typing import Self

from rich.console import Console

from ..models.cost import Cost
from ..study.results import TrialRow, best_rows
from ..study.verdict import Verdict
from ..training.loop import EpochResult
from .progress import LiveDisplay, clock


class SearchDisplay(LiveDisplay):
    """The live display of a search; a context manager."""

    def __init__(self, console: Console, trials: int, epochs: int, rows: list[TrialRow]) -> None:
        """``rows`` are the trials that the study has already."""
        self.epochs = epochs
        self._best = best_rows(rows, 1)  # of the trained candidates; empty without one
        self._names: dict[int, str] = {}  # of the running candidates, by trial
        self._accuracies: dict[int, str] = {}  # the latest, by trial
        super().__init__(console, "trials", trials, sum(row.verdict.counts for row in rows))

    def __enter__(self) -> Self:
        if self.done:
            self.console.print(f"Continuing: {self.done} of {self.total} candidates are done.")
        return super().__enter__()

    def candidate(self, trial: int, cost: Cost) -> None:
        """The training of a candidate begins."""
        self._names[trial] = f"trial {trial}, {cost.params:,} parameters"
        self.add_bar(trial, self.epochs, self._names[trial])

    def epoch(self, trial: int, result: EpochResult) -> None:
        """A candidate has finished an epoch."""
        if result.score:
            self._accuracies[trial] = f", {result.score.accuracy:.2%}"
        speed = f", {result.images / result.seconds:,.0f} images/s"
        self.step_bar(trial, self._names[trial] + self._accuracies.get(trial, "") + speed)

    def ended(self, row: TrialRow) -> None:
        """Count a trial that has ended; print its line if it counts."""
        self.remove_bar(row.trial)
        self._best = best_rows([*self._best, row], 1)
        if not row.verdict.counts:
            return
        self.step()
        value = row.validation_accuracy
        accuracy = "     -" if value is None else f"{value:.2%}"
        ending = row.verdict if row.verdict is Verdict.TRAINED else f"{row.verdict}: {row.reason}"
        if not self.console.is_terminal:  # a terminal shows it below, beside the bar
            ending += f"  ({clock(self.last_step - self.started)} elapsed{self._best_text()})"
        self.console.print(
            f"{self.done + self.steps:>4}/{self.total}  trial {row.trial:<4} {row.n_params:>7,} parameters  "
            f"{accuracy}  {ending}",
        )

    def lost(self, left: int) -> None:
        """A worker process was killed."""
        self.console.print(f"A worker process was killed; {left} left. Its candidate is trained again.")

    def note(self) -> str:
        """Times, and the best candidate."""
        return super().note() + self._best_text()

    def _best_text(self) -> str:
        return "".join(
            f", lowest loss: trial {row.trial}, {row.validation_accuracy or 0:.2%}" for row in self._best
        )
