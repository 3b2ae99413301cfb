"""Who is stopped early: asynchronous successive halving, from half an epoch on.

Every rung is twice as far as the one before (Li et al. 2020, arxiv.org/abs/1810.05934): after half an epoch,
1 and 2 epochs the better half goes on; after 4, 8 and 16, where epochs cost most and tell most, the best
third. Nobody waits for others: a candidate is compared with all that have come as far until now, but for
those whose process was interrupted, which begin again.
"""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial, TrialState

FIRST_LOSS = "first_loss"  # user attribute: mean training loss of the first half of the first epoch
RUNGS = {None: 2, 1: 2, 2: 2, 4: 3, 8: 3, 16: 3}  # epochs (None: half of one): one in so many goes on


class Halving(optuna.pruners.BasePruner):
    """Stops a trial that is not among the best of those that have come as far.

    Within the first epoch nothing is reported yet, and the training loss decides; afterwards, what is
    reported, of which more is better.
    """

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether to stop."""
        rung = trial.last_step
        if rung not in RUNGS:
            return False
        own = _result(trial, rung)
        if own is None:
            return False
        everyone = study.get_trials(deepcopy=False)
        others = (_result(other, rung) for other in everyone if other.state != TrialState.FAIL)
        results = [result for result in others if result is not None]
        return sum(result > own for result in results) >= max(len(results) // RUNGS[rung], 1)


def _result(trial: FrozenTrial, rung: int | None) -> float | None:
    """What a trial had at a rung, None standing for half an epoch; more is better."""
    if rung is not None:
        return trial.intermediate_values.get(rung)
    loss = trial.user_attrs.get(FIRST_LOSS)
    return None if loss is None else -float(loss)
