"""Early stopping: asynchronous successive halving (ASHA) at fixed shares of the schedule.

At every rung the better half goes on, by validation accuracy (Li et al. 2020, arxiv.org/abs/1810.05934).
Rungs lie at shares of all epochs, because the share of the schedule that is over decides how well an early
accuracy ranks the last one (reports/curves). No trial waits: it is compared with the trials that have reached
the rung so far, and with those that were better after fewer epochs. Interrupted trials do not count: their
candidates begin again.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping

import optuna
from optuna.trial import FrozenTrial, TrialState

RUNGS = (1 / 20, 1 / 10, 1 / 5, 2 / 5)  # shares of the epochs
Accuracies = Mapping[int, float]  # validation accuracy (0 to 1) by epoch, as far as a candidate was trained


def rungs(epochs: int) -> list[int]:
    """The epochs after which the better half goes on, of a training of ``epochs``."""
    return sorted({max(round(share * epochs), 1) for share in RUNGS})


def eval_epochs(epochs: int) -> set[int]:
    """The epochs after which a candidate is evaluated: the rungs, and each fifth of the schedule.

    Not every epoch, because an evaluation takes as long as training on a third of as many images.
    """
    return {*rungs(epochs), *(max(round(share / 5 * epochs), 1) for share in range(1, 6))}


class AsyncSuccessiveHalvingPruner(optuna.pruners.BasePruner):
    """Stops a trial at a rung unless it is in the better half.

    Optuna's own `SuccessiveHalvingPruner` has no rungs at shares of a schedule, and needs one objective.

    Args:
        epochs: of a whole training.
        cost_metric: user attribute of a trial. With it a trial is compared only with trials that cost no
            more, so that a stopped trial is behind the Pareto front of its epoch.
    """

    def __init__(self, epochs: int, cost_metric: str | None = None) -> None:
        self.rungs = rungs(epochs)
        self.cost_metric = cost_metric

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether to stop the trial now."""
        cost = self._cost(trial)
        others = (
            other.intermediate_values
            for other in study.get_trials(deepcopy=False)
            if other.state != TrialState.FAIL and other.number != trial.number and self._cost(other) <= cost
        )
        return should_prune(trial.intermediate_values, others, self.rungs)

    def _cost(self, trial: FrozenTrial) -> float:
        return 0.0 if self.cost_metric is None else trial.user_attrs.get(self.cost_metric, math.inf)


def should_prune(
    own: Accuracies, others: Iterable[Accuracies], rungs: Container[int], keep: float = 1 / 2
) -> bool:
    """Whether a candidate is at a rung and outside the best ``keep`` (0 to 1) of the candidates there."""
    epoch = max(own, default=0)
    if epoch not in rungs:
        return False
    known = [value for other in others if (value := _value_at(other, epoch, own[epoch])) is not None]
    ahead = sum(value > own[epoch] for value in known)
    return ahead >= max(int(keep * (len(known) + 1)), 1)


def _value_at(other: Accuracies, epoch: int, own: float) -> float | None:
    """The accuracy at an epoch; where it is missing, the best one before, if that is above ``own``."""
    if epoch in other:
        return other[epoch]
    before = max((value for earlier, value in other.items() if earlier < epoch), default=own)
    return before if before > own else None
