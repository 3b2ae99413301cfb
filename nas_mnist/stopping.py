"""Who is stopped early: asynchronous successive halving, from half an epoch on.

Rungs are half an epoch (by training loss), 1, 2, 4 and 8 epochs (by validation accuracy); at every one a
share goes on (Li et al. 2020, arxiv.org/abs/1810.05934): half after 1 epoch, a third after 2 and 4, where
most of the effort is still ahead, and two thirds after 8, where candidates differ by no more than a score's
sampling error. Nobody waits for others: a candidate is compared with all that
have come as far until now, and with those that were better after fewer epochs. Those whose process was
interrupted do not count: they begin again.
"""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial, TrialState

FIRST_LOSS = "first_loss"  # user attribute: mean training loss of the first half of the first epoch
GO_ON = {1: 1 / 2, 2: 1 / 3, 4: 1 / 3, 8: 2 / 3}  # by epochs, the share that goes on; else all


class Halving(optuna.pruners.BasePruner):
    """Stops a trial that is not among the better of those that have come as far.

    Within the first epoch nothing is reported yet, and the training loss decides; afterwards, what is
    reported, of which more is better.
    """

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether to stop."""
        others = [
            other
            for other in study.get_trials(deepcopy=False)
            if other.state != TrialState.FAIL and other.number != trial.number
        ]
        if trial.last_step is None:
            return _is_worse(_first(trial), [_first(other) for other in others], 1 / 2)
        if trial.last_step not in GO_ON:
            return False
        own = trial.intermediate_values[trial.last_step]
        results = [_at(other, trial.last_step, own) for other in others]
        return _is_worse(own, results, GO_ON[trial.last_step])


def _is_worse(own: float | None, others: list[float | None], share: float) -> bool:
    """Whether a result is not within the best ``share`` of all; None: there is none yet."""
    if own is None:
        return False
    known = [result for result in others if result is not None]
    return sum(result > own for result in known) >= max(int(share * (len(known) + 1)), 1)


def _first(trial: FrozenTrial) -> float | None:
    """What a trial had after half an epoch; more is better."""
    loss = trial.user_attrs.get(FIRST_LOSS)
    return None if loss is None else -float(loss)


def _at(trial: FrozenTrial, rung: int, own: float) -> float | None:
    """What a trial had at a rung; else the best that it had before, if that is more than ``own``."""
    reported = trial.intermediate_values
    if rung in reported:
        return reported[rung]
    before = max((value for epoch, value in reported.items() if epoch < rung), default=own)
    return before if before > own else None
