"""What a person sees while a search or a reproduction runs.

On a terminal: one line for every candidate that was trained, and below them the state of the search. In
a pipe: the same lines, without colours and without anything that moves.
"""

from __future__ import annotations

import time
from collections import Counter
from types import TracebackType
from typing import Self

from optuna.trial import FrozenTrial
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ..architecture import Architecture
from ..cost import Cost
from ..objective import Verdict, Watcher
from ..study import verdict_of
from ..training import EpochResult
from .tables import counts_line


def clock(seconds: float) -> str:
    """Seconds as ``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class SearchDisplay:
    """The live display of a search; a context manager."""

    def __init__(self, console: Console, trials: int, epochs: int, counts: Counter[Verdict], best: str) -> None:
        self.console = console
        self.trials, self.epochs = trials, epochs
        self.counts, self.best = Counter(counts), best
        self._best_value = float(best.split("%")[0]) / 100 if best else 0.0
        self.already = self._done()  # in earlier calls
        self.started = time.monotonic()
        self._params: dict[int, int] = {}
        self._accuracy: dict[int, float] = {}
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._trial_bar = self.progress.add_task("trials", total=trials, completed=self.already, note="")
        self._epoch_bar = self.progress.add_task("epochs", total=epochs, note="")
        self._count_line = self.progress.add_task("", total=None, note="", visible=False)

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    @property
    def watcher(self) -> Watcher:
        """The functions that an objective calls."""
        return Watcher(self._candidate, self._epoch)

    def after_trial(self, trial: FrozenTrial) -> None:
        """Count a trial that ended and, if it was trained, print its line."""
        verdict = verdict_of(trial)
        if verdict is None:
            return
        self.counts[verdict] += 1
        if verdict is Verdict.TRAINED and trial.value is not None and trial.value > self._best_value:
            self._best_value = trial.value
            self.best = f"{trial.value:.2%} with {trial.user_attrs['n_params']:,} parameters"
        if verdict.counts:
            last = trial.last_step
            accuracy = "     -" if last is None else f"{trial.intermediate_values[last]:.2%}"
            ending = verdict if verdict is Verdict.TRAINED else f"{verdict}: {trial.user_attrs['reason']}"
            self.console.print(
                f"{self._done():>4}/{self.trials}  trial {trial.number:<4} "
                f"{trial.user_attrs['n_params']:>7,} parameters  {accuracy}  {ending}",
                highlight=False,
            )
        self._refresh()

    def _done(self) -> int:
        return sum(number for verdict, number in self.counts.items() if verdict.counts)

    def _candidate(self, number: int, _: Architecture, cost: Cost) -> None:
        note = f"trial {number}, {cost.params:,} parameters"
        self._params[number] = cost.params
        self.progress.reset(self._epoch_bar, total=self.epochs, note=note)
        self._refresh()

    def _epoch(self, number: int, result: EpochResult) -> None:
        assert result.score is not None
        rate = result.images / result.seconds
        note = f"trial {number}, {self._params[number]:,} parameters, {result.score.accuracy:.2%}, {rate:,.0f} images/s"
        self.progress.update(self._epoch_bar, completed=result.epoch, note=note)

    def _refresh(self) -> None:
        done = self._done()
        elapsed = time.monotonic() - self.started
        new = done - self.already
        left = clock(elapsed / new * max(self.trials - done, 0)) if new else "?"
        note = f"{clock(elapsed)} gone, about {left} left, best {self.best or '-'}"
        self.progress.update(self._trial_bar, completed=min(done, self.trials), note=note)
        self.progress.update(self._trial_bar, description="trials")
        self.progress.update(self._count_line, note=counts_line(self.counts))


class EpochLog:
    """One line for every epoch of a retraining, in the form of published logs."""

    def __init__(self, console: Console, epochs: int) -> None:
        self.console, self.epochs = console, epochs

    def __call__(self, result: EpochResult) -> None:
        """Print one epoch's line."""
        line = f"epoch {result.epoch:>2}/{self.epochs}  train loss {result.train_loss:.4f}"
        if result.score is not None:
            score = result.score
            line += (
                f"  test loss {score.loss:.4f}  accuracy {score.correct}/{score.count} ({score.accuracy:.2%})"
            )
        line += f"  {result.seconds:.1f} s  {result.images / result.seconds:,.0f} images/s"
        self.console.print(line, highlight=False)
