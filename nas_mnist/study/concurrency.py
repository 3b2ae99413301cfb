"""Decisions between processes that work on one study: which of them trains a candidate."""

from __future__ import annotations

from optuna.trial import FrozenTrial, Trial, TrialState

from .verdict import counts

# User attributes of a trial that tries a candidate again: the earlier trial, and how many processes died.
RETRY_OF, DEATHS = "retry_of", "deaths"


def find_duplicate(trial: Trial, key: str) -> int | None:
    """The number of another trial that trains, or has trained, the candidate ``key``; None: there is none.

    Of two trials that have just drawn it the lower number trains it, unless the other one has begun. A
    candidate whose process died twice counts as trained: it was given up.
    """
    others = trial.study.get_trials(deepcopy=False)
    retried = {other.user_attrs.get(RETRY_OF) for other in others}
    for other in others:
        if other.number == trial.number or other.user_attrs.get("key") != key:
            continue
        given_up = other.state == TrialState.FAIL and other.user_attrs.get(DEATHS, 0) > 0
        if _is_ahead(other, trial) or counts(other) or (given_up and other.number not in retried):
            return other.number
    return None


def is_surplus(trial: Trial, total: int) -> bool:
    """Whether the study reaches its total without this trial: two processes may begin the last one."""
    others = [one for one in trial.study.get_trials(deepcopy=False) if one.number != trial.number]
    return sum(_is_ahead(other, trial) or counts(other) for other in others) >= total


def _is_ahead(other: FrozenTrial, trial: Trial) -> bool:
    """Whether another trial runs and comes before this one, which has not begun to train."""
    begun = "epochs" in other.user_attrs
    return other.state == TrialState.RUNNING and (other.number < trial.number or begun)
