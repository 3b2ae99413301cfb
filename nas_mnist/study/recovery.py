"""Trials whose process is gone: how they end, and how their candidates are tried again."""

from __future__ import annotations

import contextlib
import warnings
from datetime import datetime
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from ..models.cost import weighed_against
from .objective import Verdict, values_of, verdict_of
from .owner import DEATHS, OWNER, RETRY_OF, is_gone

UNSIGNED = 70  # seconds; a trial that nobody owns for so long, longer than any lock, died before it had drawn


def recover(study: optuna.Study) -> None:
    """End the trials whose process is gone, and put their candidates back into the queue, each one once.

    A process of this machine is gone when the system says so. Of others Optuna's heartbeat decides, where
    the storage has one, and when it was last seen (`is_gone`). A trial that nobody has owned for `UNSIGNED`
    seconds died before it had drawn. One that had come to its end, and died before that was stored, gets
    the end that it had. Whatever failed without an end and was not put back yet (its process died while it
    recovered) is put back, too.
    """
    for trial in running(study):
        owner = trial.user_attrs.get(OWNER)
        started = trial.datetime_start or datetime.now()
        waited = (datetime.now() - started).total_seconds()
        if is_gone(owner) if owner else waited > UNSIGNED:
            with contextlib.suppress(ValueError, RuntimeError):  # another process was faster
                study.tell(trial.number, **_end_of(study, trial))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)
    trials = study.get_trials(deepcopy=False)
    retried = {trial.user_attrs.get(RETRY_OF) for trial in trials}
    for trial in trials:
        if trial.state == TrialState.FAIL and trial.number not in retried:
            requeue_once(study, trial)


def requeue(study: optuna.Study, trial: FrozenTrial, died: bool = False) -> None:
    """Put the draws of a trial that did not come to an end into the queue, if it had or was given any."""
    draws = trial.system_attrs.get("fixed_params", {}) | trial.params
    if draws:
        deaths = trial.user_attrs.get(DEATHS, 0) + died
        study.enqueue_trial(draws, user_attrs={RETRY_OF: trial.number, DEATHS: deaths})


def requeue_once(study: optuna.Study, trial: FrozenTrial) -> None:
    """`requeue` for a trial whose process died, unless that happened to the same candidate before."""
    if not trial.user_attrs.get(DEATHS):
        requeue(study, trial, died=True)


def running(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that some process runs, or ran when it died."""
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def _end_of(study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
    """How the trial of a dead process is told: as it would have been, where it had come to its end."""
    verdict, last = verdict_of(trial), trial.last_step
    identity = study.user_attrs.get("identity", {})
    if last and last == (identity.get("search_epochs") or identity.get("epochs")) and verdict is None:
        verdict = Verdict.TRAINED
        study._storage.set_trial_user_attr(trial._trial_id, "verdict", verdict)
    against = weighed_against(identity.get("objective"))
    if verdict is Verdict.TRAINED and last:
        return {"values": values_of(trial, trial.intermediate_values[last], against)}
    if against and verdict and last:  # as `Objective` would have ended it
        accuracy = 0.0 if verdict is Verdict.FAILED else trial.intermediate_values[last]
        return {"values": values_of(trial, accuracy, against)}
    return {"state": TrialState.FAIL if verdict in (None, Verdict.TRAINED) else TrialState.PRUNED}
