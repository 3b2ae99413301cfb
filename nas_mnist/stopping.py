"""Who is stopped early: asynchronous successive halving, from half an epoch on.

At every rung the better half goes on, and every rung is twice as far as the one before: after half an epoch,
1, 2, 4, 8 and 16 epochs (Li et al. 2020, arxiv.org/abs/1810.05934, with a reduction factor of two). Nobody
waits for others: a candidate is compared with all that have come as far until now, but for those whose
process was interrupted, which begin again.
"""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial, TrialState

FIRST_LOSS = "first_loss"  # user attribute: mean training loss of the first half of the first epoch
RUNGS = frozenset({1, 2, 4, 8, 16})  # epochs


class Halving(optuna.pruners.BasePruner):
    """Stops a trial that is not in the better half of those that have come as far.

    Within the first epoch nothing is reported yet, and the training loss decides; afterwards, what is
    reported, of which more is better.
    """

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether to stop."""
        rung = trial.last_step
        if rung is not None and rung not in RUNGS:
            return False
        own = _result(trial, rung)
        if own is None:
            return False
        everyone = study.get_trials(deepcopy=False)
        others = (_result(other, rung) for other in everyone if other.state != TrialState.FAIL)
        results = [result for result in others if result is not None]
        return sum(result > own for result in results) >= max(len(results) // 2, 1)


def _result(trial: FrozenTrial, rung: int | None) -> float | None:
    """What a trial had at a rung, None standing for half an epoch; more is better."""
    if rung is not None:
        return trial.intermediate_values.get(rung)
    loss = trial.user_attrs.get(FIRST_LOSS)
    return None if loss is None else -float(loss)
