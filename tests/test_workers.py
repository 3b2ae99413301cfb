"""Processes that share jobs and the machine's cores."""

from __future__ import annotations

import time

import optuna
from optuna.trial import TrialState

from nas_mnist import study as studies
from nas_mnist.owner import OWNER, myself
from nas_mnist.workers import Desk, cores, run_workers

PATIENCE = 60.0  # seconds


def one_waits(desk: Desk) -> None:
    """The first worker waits until the second one has seen it wait."""
    while (job := desk.claim()) is not None:
        desk.send("share", job, desk.share())
    desk.idle(desk.number == 0)
    deadline = time.monotonic() + PATIENCE
    while desk.number == 1 and desk.share() < cores() and time.monotonic() < deadline:
        time.sleep(0.01)
    desk.send("share", -1 - desk.number, desk.share())


def test_a_worker_gets_the_cores_of_those_that_wait() -> None:
    shares: dict[int, int] = {}
    run_workers(one_waits, 2, 2, {"share": shares.__setitem__})
    assert shares[-2] == cores()
    assert set(shares) == {0, 1, -1, -2}


def one_ends(desk: Desk) -> None:
    """The first worker to come takes a job and ends; the other one goes on until it has every core."""
    job = desk.claim()
    deadline = time.monotonic() + PATIENCE
    while job and desk.share() < cores() and time.monotonic() < deadline:
        time.sleep(0.01)
    desk.send("share", job, desk.share())


def test_a_worker_gets_the_cores_of_those_that_have_ended() -> None:
    shares: dict[int, int] = {}
    run_workers(one_ends, 2, 2, {"share": shares.__setitem__})
    assert shares[1] == cores()


def test_a_search_says_when_it_only_waits_for_others(monkeypatch) -> None:
    study = optuna.create_study()
    for _ in range(2):
        study.ask().set_user_attr(OWNER, myself())
    told: list[bool] = []

    def others_end(_: float) -> None:
        study.tell(len(told) - 1, state=TrialState.PRUNED)

    monkeypatch.setattr(
        "nas_mnist.study.counted", lambda study: len(study.get_trials(states=[TrialState.PRUNED]))
    )
    monkeypatch.setattr("nas_mnist.study.time.sleep", others_end)
    studies.search(study, None, 2, seed="0", waiting=told.append)
    assert told == [True, True]
