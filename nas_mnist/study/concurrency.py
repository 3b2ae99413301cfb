"""Decisions between processes that work on one study: which of them trains a candidate, and the finalists."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from ..core.errors import NoResultError
from .owner import is_gone, same_process, this_process
from .verdict import counts

FINALS_OWNER = "finals_owner"  # user attribute of a study: the process that trains its finalists
STORAGE_PATIENCE = 2  # seconds; the time that an interrupted process gives its storage
CLAIM_SECONDS = 0.1  # longer than a process takes from reading `FINALS_OWNER` to writing it

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


@contextmanager
def finals_claimed(study: optuna.Study) -> Iterator[None]:
    """Within it no other process trains the finalists and reads the test images.

    Raises `NoResultError` where another one does.
    """
    start = time.monotonic()
    _check_unclaimed(study)
    study.set_user_attr(FINALS_OWNER, this_process())
    time.sleep(max(CLAIM_SECONDS, 2 * (time.monotonic() - start)))
    _check_unclaimed(study)  # of two that claim at once the last one has it
    try:
        yield
    finally:
        release = threading.Thread(target=_release, args=(study,), daemon=True)
        release.start()
        release.join(STORAGE_PATIENCE)


def keep_claim(study: optuna.Study) -> None:
    """Say that this process still trains the finalists."""
    study.set_user_attr(FINALS_OWNER, this_process())


def _release(study: optuna.Study) -> None:
    with suppress(Exception):  # a storage that is lost, which is said elsewhere
        study.set_user_attr(FINALS_OWNER, None)


def _check_unclaimed(study: optuna.Study) -> None:
    owner = study.user_attrs.get(FINALS_OWNER)
    if owner is not None and not same_process(owner, this_process()) and not is_gone(owner):
        host = str(owner["place"]).partition(" ")[0]
        raise NoResultError(
            f"process {owner['pid']} on {host} trains the finalists of this study: it gives the answers"
        )
