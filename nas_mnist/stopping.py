"""Who is stopped early: asynchronous successive halving, from half an epoch on.

Rungs are half an epoch (by training loss), 1, 2, 4 and 8 epochs (by validation accuracy); at every one a
share goes on (Li et al. 2020, arxiv.org/abs/1810.05934): half after 1 epoch, a third after 2 and 4, where
most of the effort is still ahead, and two thirds after 8, where candidates differ by no more than a score's
sampling error. Nobody waits for others: a candidate is compared with all that
have come as far until now, and with those that were better after fewer epochs. Those whose process was
interrupted do not count: they begin again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

FIRST_LOSS = "first_loss"  # user attribute: mean training loss of the first half of the first epoch
HALFWAY = 0  # the rung within the first epoch
GO_ON = {
    HALFWAY: 1 / 2,
    1: 1 / 2,
    2: 1 / 3,
    4: 1 / 3,
    8: 2 / 3,
}  # by epochs, the share that goes on; else all


class Progress(NamedTuple):
    """What is known of a candidate's training."""

    first_loss: float | None  # half-way through the first epoch
    accuracies: Mapping[int, float]  # by epochs, as far as it has come

    @property
    def rung(self) -> int:
        """The epochs that are done."""
        return max(self.accuracies, default=HALFWAY)


class Halving(optuna.pruners.BasePruner):
    """Stops a trial that is not among the better of those that have come as far.

    Within the first epoch nothing is reported yet, and the training loss decides; afterwards, what is
    reported, of which more is better. Where accuracy is weighed ``against`` a cost, it is compared with those
    that cost no more: what is stopped is behind the front as it was after as many epochs.
    """

    def __init__(self, against: str | None = None) -> None:
        self.against = against  # user attribute of a trial

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether to stop."""
        cost = self._cost(trial)
        others = (
            _progress(other)
            for other in study.get_trials(deepcopy=False)
            if other.state != TrialState.FAIL and other.number != trial.number and self._cost(other) <= cost
        )
        return falls_behind(_progress(trial), others, GO_ON)

    def _cost(self, trial: FrozenTrial) -> float:
        return 0.0 if self.against is None else trial.user_attrs.get(self.against, math.inf)


def _progress(trial: FrozenTrial) -> Progress:
    return Progress(trial.user_attrs.get(FIRST_LOSS), trial.intermediate_values)


def falls_behind(own: Progress, others: Iterable[Progress], shares: Mapping[int, float]) -> bool:
    """Whether a candidate is not within the best share of those that have come as far as it has now."""
    rung = own.rung
    if rung not in shares:
        return False
    if rung == HALFWAY:
        if own.first_loss is None:
            return False
        losses = [other.first_loss for other in others if other.first_loss is not None]
        ahead, count = sum(loss < own.first_loss for loss in losses), len(losses)
    else:
        mine = own.accuracies[rung]
        known = [result for other in others if (result := _at(other, rung, mine)) is not None]
        ahead, count = sum(result > mine for result in known), len(known)
    return ahead >= max(int(shares[rung] * (count + 1)), 1)


def _at(other: Progress, rung: int, own: float) -> float | None:
    """What a candidate had at a rung; else the best that it had before, if that is more than ``own``."""
    if rung in other.accuracies:
        return other.accuracies[rung]
    before = max((value for epoch, value in other.accuracies.items() if epoch < rung), default=own)
    return before if before > own else None
