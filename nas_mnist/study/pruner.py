"""Who is stopped early: asynchronous successive halving at shares of the schedule.

At every rung the better half goes on (Li et al. 2020, arxiv.org/abs/1810.05934), by validation accuracy.
Rungs lie at shares of all epochs, not at epochs: how well early accuracies rank the last ones is decided by
how much of the schedule is over (reports/curves). Nobody waits for others: a candidate is compared with all
that have come as far until now, and with those that were better after fewer epochs. Those whose process was
interrupted do not count: they begin again.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping

import optuna
from optuna.trial import FrozenTrial, TrialState

RUNGS = (1 / 20, 1 / 10, 1 / 5, 2 / 5)  # shares of the epochs
Accuracies = Mapping[int, float]  # on the validation images, by epoch, as far as a candidate has come


def rungs(epochs: int) -> list[int]:
    """The epochs, of so many, after which the better half goes on."""
    return sorted({max(round(share * epochs), 1) for share in RUNGS})


def scored(epochs: int) -> set[int]:
    """The epochs, of so many, after which a candidate is scored: rungs, and every fifth for its curve.

    Scoring takes time: as much as training on a third of as many images.
    """
    return {*rungs(epochs), *(max(round(share / 5 * epochs), 1) for share in range(1, 6))}


class Halving(optuna.pruners.BasePruner):
    """Stops a trial that is not among the better of those that have come as far.

    What is reported is compared, of which more is better. Where accuracy is weighed ``against`` a cost, it is
    compared with those that cost no more: what is stopped is behind the front as it was after as many epochs.
    """

    def __init__(self, epochs: int, against: str | None = None) -> None:
        self.rungs = rungs(epochs)
        self.against = against  # user attribute of a trial

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether to stop."""
        cost = self._cost(trial)
        others = (
            other.intermediate_values
            for other in study.get_trials(deepcopy=False)
            if other.state != TrialState.FAIL and other.number != trial.number and self._cost(other) <= cost
        )
        return falls_behind(trial.intermediate_values, others, self.rungs)

    def _cost(self, trial: FrozenTrial) -> float:
        return 0.0 if self.against is None else trial.user_attrs.get(self.against, math.inf)


def falls_behind(
    own: Accuracies, others: Iterable[Accuracies], looks: Container[int], share: float = 1 / 2
) -> bool:
    """Whether a candidate, after one of the epochs ``looks``, is not within the best share of its equals."""
    rung = max(own, default=0)
    if rung not in looks:
        return False
    known = [result for other in others if (result := _at(other, rung, own[rung])) is not None]
    ahead = sum(result > own[rung] for result in known)
    return ahead >= max(int(share * (len(known) + 1)), 1)


def _at(other: Accuracies, rung: int, own: float) -> float | None:
    """What a candidate had at a rung; else the best that it had before, if that is more than ``own``."""
    if rung in other:
        return other[rung]
    before = max((value for epoch, value in other.items() if epoch < rung), default=own)
    return before if before > own else None
