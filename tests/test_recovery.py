"""Trials whose process died: recognised, marked, tried again once; living processes keep theirs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from nas_mnist.objective import OWNER
from nas_mnist.owner import is_gone, myself
from nas_mnist.study import open_storage, recover

pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage")


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    return optuna.create_study(study_name="s", storage=open_storage(f"sqlite:///{tmp_path}/study.db"))


@pytest.fixture
def dead() -> dict[str, Any]:
    """A process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    owner = myself() | {"pid": child.pid, "started": "0"}
    child.wait()
    return owner


def begin(study: optuna.Study, owner: dict[str, Any] | None, width: int = 3) -> int:
    trial = study.ask()
    if owner is not None:
        trial.set_user_attr(OWNER, owner)
    trial.suggest_int("width", 1, width)
    return trial.number


def waiting(study: optuna.Study) -> list[dict[str, Any]]:
    queue = study.get_trials(states=(TrialState.WAITING,))
    return [trial.system_attrs["fixed_params"] for trial in queue]


def test_a_process_is_known_to_be_gone_only_when_it_is() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
    owner = myself() | {"pid": child.pid, "started": started}
    assert not is_gone(owner)
    assert is_gone(owner | {"started": "1"})  # the number belongs to another process by now
    child.kill()
    time.sleep(0.1)
    assert is_gone(owner)  # a zombie works no more
    child.communicate()
    assert is_gone(owner)
    assert not is_gone(owner | {"place": "another machine"})
    assert not is_gone(myself())
    assert myself()["pid"] == os.getpid()


def test_a_dead_process_loses_its_trial_and_the_candidate_is_tried_again_once(
    study: optuna.Study, dead: dict[str, Any]
) -> None:
    number = begin(study, dead)
    params = study.trials[number].params
    recover(study)
    assert study.trials[number].state == TrialState.FAIL
    assert waiting(study) == [params]
    recover(study)
    assert waiting(study) == [params]
    assert begin(study, dead) == number + 1  # takes it from the queue, and dies as well
    recover(study)
    assert study.trials[number + 1].state == TrialState.FAIL
    assert waiting(study) == []


def test_a_living_process_and_one_elsewhere_keep_their_trials(
    study: optuna.Study, dead: dict[str, Any]
) -> None:
    begin(study, myself())
    begin(study, dead | {"place": "another machine"})
    recover(study)
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING] * 2
    assert waiting(study) == []


def test_a_process_that_died_before_it_said_its_name_is_found_out_later(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.enqueue_trial({"width": 2})
    study.ask()
    recover(study)
    assert study.trials[0].state == TrialState.RUNNING
    monkeypatch.setattr("nas_mnist.study.UNSIGNED", -1)
    recover(study)
    assert study.trials[0].state == TrialState.FAIL
    assert waiting(study) == [{"width": 2}]
