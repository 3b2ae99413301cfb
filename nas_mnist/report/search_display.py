"""The live display of a search.

On a terminal: one line per candidate that counts, and progress bars below. Without a terminal: the same lines
with the elapsed time and the best candidate.
"""

from __future__ import annotations

from collections import Counter
from types import TracebackType
from typing import NamedTuple, Self

from rich.console import Console
from rich.progress import TaskID

from ..models.cost import Cost
from ..study.results import TrialRow, best_rows
from ..study.verdict import Verdict
from ..training.loop import EpochResult
from .progress import Pace, ProgressLines, clock
from .tables import counts_line


class _Candidate(NamedTuple):
    """A candidate in training."""

    bar: TaskID
    params: int
    pace: Pace


class SearchDisplay:
    """The live display of a search; a context manager."""

    def __init__(self, console: Console, trials: int, epochs: int, rows: list[TrialRow]) -> None:
        """``rows`` are the trials that the study has already."""
        self.console = console
        self.trials, self.epochs = trials, epochs
        self.counts = Counter(row.verdict for row in rows)
        best = best_rows(rows, 1)
        self._best = (best[0].validation_accuracy or 0.0, best[0].n_params or 0) if best else None
        self._earlier = self._done()
        self.pace = Pace()
        self.progress = ProgressLines(console=console, transient=True, disable=not console.is_terminal)
        self._trial_bar = self.progress.add_task(
            "trials", total=trials, completed=self._earlier, note=self._note
        )
        self._counts_line = self.progress.add_task(counts_line(self.counts), total=None)
        self._running: dict[int, _Candidate] = {}  # by trial
        self._accuracies: dict[int, str] = {}  # the latest, by trial

    def __enter__(self) -> Self:
        if self._earlier:
            self.console.print(f"Continuing: {self._earlier} of {self.trials} candidates are done.")
        self.progress.start()
        self._refresh()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def candidate(self, trial: int, cost: Cost) -> None:
        """The training of a candidate begins."""
        note, pace = f"trial {trial}, {cost.params:,} parameters", Pace()
        bar = self.progress.add_task("epochs", total=self.epochs, note=lambda: note, fraction=pace.fraction)
        self._running[trial] = _Candidate(bar, cost.params, pace)

    def epoch(self, trial: int, result: EpochResult) -> None:
        """A candidate has finished an epoch."""
        bar, params, pace = self._running[trial]
        pace.step()
        if result.score is not None:
            self._accuracies[trial] = f", {result.score.accuracy:.2%}"
        speed = result.images / result.seconds
        note = f"trial {trial}, {params:,} parameters{self._accuracies.get(trial, '')}, {speed:,.0f} images/s"
        self.progress.update(bar, completed=pace.count, note=lambda: note)

    def ended(self, row: TrialRow) -> None:
        """Count a trial that has ended; print its line if it counts."""
        if row.trial in self._running:
            self.progress.remove_task(self._running.pop(row.trial).bar)
        self.counts[row.verdict] += 1
        value = row.validation_accuracy
        if row.verdict is Verdict.TRAINED and (self._best is None or (value or 0.0) > self._best[0]):
            self._best = (value or 0.0, row.n_params or 0)
        if row.verdict.counts:
            self.pace.step()
            accuracy = "     -" if value is None else f"{value:.2%}"
            ending = row.verdict if row.verdict is Verdict.TRAINED else f"{row.verdict}: {row.reason}"
            if not self.console.is_terminal:  # a terminal shows it below, beside the bar
                ending += f"  ({self._state()})"
            self.console.print(
                f"{self._done():>4}/{self.trials}  trial {row.trial:<4} {row.n_params:>7,} parameters  "
                f"{accuracy}  {ending}",
            )
        self._refresh()

    def lost(self, left: int) -> None:
        """A worker process was killed."""
        self.console.print(f"A worker process was killed; {left} left. Its candidate is trained again.")

    def _done(self) -> int:
        return sum(number for verdict, number in self.counts.items() if verdict.counts)

    def _note(self) -> str:
        seconds = self.pace.left(max(self.trials - self._done(), 0))
        return self._state("" if seconds is None else f", {clock(seconds)} left")

    def _state(self, left: str = "") -> str:
        best = f", best {self._best[0]:.2%} ({self._best[1]:,} parameters)" if self._best else ""
        return f"{clock(self.pace.elapsed)} elapsed{left}{best}"

    def _refresh(self) -> None:
        self.progress.update(self._trial_bar, completed=min(self._done(), self.trials))
        self.progress.update(self._counts_line, description=counts_line(self.counts))
