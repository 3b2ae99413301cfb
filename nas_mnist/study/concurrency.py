"""Decisions between processes that work on one study: which of them trains a candidate, and the finalists."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from ..core.errors import NoResultError
from .owner import is_gone, same_process, this_process
from .verdict import counts

FINALS_OWNER = "finals_owner"  # user attribute of a study: the process that trains its finalists
RELEASE_PATIENCE = 2  # seconds; the time that a process gives its storage to release its claim
CLAIM_REFRESH, CLAIM_LIFE = 60, 300  # seconds; a process elsewhere has died if it was not seen for so long
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
    ended = threading.Event()
    keeper = threading.Thread(target=_keep_claim, args=(study, ended), daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join(RELEASE_PATIENCE)


def _keep_claim(study: optuna.Study, ended: threading.Event) -> None:
    """Say from time to time that this process lives, and at the end that it needs the claim no more."""
    with suppress(Exception):  # a storage that is lost, which is said elsewhere
        while not ended.wait(CLAIM_REFRESH):
            _write_claim(study, this_process())
        _write_claim(study, None)


def _write_claim(study: optuna.Study, claim: dict[str, Any] | None) -> None:
    if same_process(study.user_attrs.get(FINALS_OWNER) or {}, this_process()):
        study.set_user_attr(FINALS_OWNER, claim)


def _check_unclaimed(study: optuna.Study) -> None:
    owner = study.user_attrs.get(FINALS_OWNER)
    if not owner or same_process(owner, this_process()) or is_gone(owner, CLAIM_LIFE):
        return
    host, ago = str(owner["place"]).partition(" ")[0], max(0, round(time.time() - owner["seen"]))
    raise NoResultError(
        f"process {owner['pid']} on {host}, seen {ago} seconds ago, trains the finalists of this study and "
        f"gives the answers (should it have died, this command continues after {CLAIM_LIFE // 60} minutes)"
    )
