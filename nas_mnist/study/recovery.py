"""Trials whose process is gone: how they end, and how their candidates are tried again."""

from __future__ import annotations

import contextlib
import warnings
from datetime import datetime
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from ..core.compat import storage_of, trial_id
from .concurrency import DEATHS, RETRY_OF
from .config import StudyConfig
from .curve import curve_of
from .given import GIVEN, ORIGIN, add_waiting
from .objective import objective_values
from .owner import OWNER, is_gone
from .verdict import Verdict, verdict_of

UNOWNED_AFTER = 70  # seconds, longer than any lock; a running trial without an owner is then taken over


def recover(study: optuna.Study) -> None:
    """End the trials whose process is gone, and queue their candidates again, each one once.

    `is_gone` decides for processes of this machine, Optuna's heartbeat and `is_gone` for others. A trial
    that has no owner after `UNOWNED_AFTER` seconds lost its process before it drew anything. A trial that had
    come to its end keeps its value. Trials that failed before and were not queued again are queued, too: the
    process that recovered them may have died.
    """
    for trial in filter(_is_abandoned, running_trials(study)):
        config = StudyConfig.from_metadata(study.user_attrs)
        with contextlib.suppress(ValueError, RuntimeError):  # another process was faster
            study.tell(trial.number, **_outcome(study, trial, config))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)
    trials = study.get_trials(deepcopy=False)
    retried = {trial.user_attrs.get(RETRY_OF) for trial in trials}
    for trial in trials:
        if trial.state == TrialState.FAIL and trial.number not in retried:
            requeue_once(study, trial)


def requeue(study: optuna.Study, trial: FrozenTrial, died: bool = False) -> None:
    """Queue the draws of an interrupted trial again, if it had any; ``died``: its process is gone."""
    retry = {RETRY_OF: trial.number, DEATHS: trial.user_attrs.get(DEATHS, 0) + died}
    if architecture := trial.system_attrs.get(GIVEN):
        add_waiting(study, architecture, {ORIGIN: trial.user_attrs.get(ORIGIN), **retry})
    elif draws := trial.system_attrs.get("fixed_params", {}) | trial.params:
        study.enqueue_trial(draws, user_attrs=retry)


def requeue_once(study: optuna.Study, trial: FrozenTrial) -> None:
    """`requeue` for a trial whose process died, unless a process died on the same candidate before."""
    if not trial.user_attrs.get(DEATHS):
        requeue(study, trial, died=True)


def running_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that a process runs, or ran when it died."""
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def _is_abandoned(trial: FrozenTrial) -> bool:
    if owner := trial.user_attrs.get(OWNER):
        return is_gone(owner)
    started = trial.datetime_start or datetime.now()
    return (datetime.now() - started).total_seconds() > UNOWNED_AFTER


def _outcome(study: optuna.Study, trial: FrozenTrial, config: StudyConfig) -> dict[str, Any]:
    """The arguments of `Study.tell` for a dead process's trial, as `Objective` would have ended it."""
    verdict, curve = verdict_of(trial), curve_of(trial)
    last = max(curve, default=0)
    if last == config.candidate_epochs and verdict is None:
        verdict = Verdict.TRAINED
        storage_of(study).set_trial_user_attr(trial_id(trial), "verdict", verdict)
    if verdict is None or (verdict is Verdict.TRAINED and not last):
        return {"state": TrialState.FAIL}
    if last and (verdict is Verdict.TRAINED or (verdict is Verdict.STOPPED and config.cost_metric)):
        return {"values": objective_values(trial, curve[last].accuracy, config.cost_metric)}
    return {"state": TrialState.PRUNED}
