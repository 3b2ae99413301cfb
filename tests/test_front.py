"""A search for the best network of every cost: a study of two aims."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from conftest import EPOCHS, SEARCH, Runner, furnish, run_module
from optuna.trial import TrialState

from nas_mnist.recovery import recover
from nas_mnist.results import pareto_front, trial_rows
from nas_mnist.study import load_study

FRONT = [*SEARCH, "--objective", "macs", "--max-macs", 10**7]
URL = "sqlite:///studies/nas_mnist.db"


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which the front was searched, and what was said."""
    folder = furnish(tmp_path_factory.mktemp("front"))
    ended = run_module("search", *FRONT, "--trials", 8, "--workers", 1, "--no-retrain", cwd=folder)
    assert (ended.code, ended.err) == (0, "")
    return folder, ended.out


def test_the_front_is_told_and_no_candidate_of_it_is_beaten_in_both(searched: tuple[Path, str]) -> None:
    folder, out = searched
    summary = json.loads((folder / "reports" / "nas_mnist" / "summary.json").read_text())
    front = summary["front"]
    assert front
    assert [row["macs"] for row in front] == sorted(row["macs"] for row in front)
    accuracies = [row["validation_accuracy"] for row in front]
    assert accuracies == sorted(set(accuracies))
    assert summary["winner"]["trial"] == front[-1]["trial"]
    assert "The front (chosen on the validation images)" in out
    assert (folder / "reports" / "nas_mnist" / "plots" / "accuracy-cost.svg").exists()
    assert "<h2>The front</h2>" in (folder / "reports" / "nas_mnist" / "report.html").read_text()


def test_the_sampler_learns_from_both_values_of_every_trial_that_was_scored(
    searched: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(searched[0])
    study = load_study(URL, "nas_mnist")
    assert [way.name for way in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["validation accuracy", "multiply-adds"]
    scored = [trial for trial in study.trials if trial.intermediate_values]
    assert scored
    for trial in scored:
        last = trial.user_attrs["epochs"]
        assert trial.state == TrialState.COMPLETE
        assert trial.values == [trial.intermediate_values[last], trial.user_attrs["macs"]]
    rows = trial_rows(study)
    assert {row.trial for row in pareto_front(rows, "macs")} <= {
        row.trial for row in rows if row.epochs == EPOCHS
    }


def test_another_aim_is_another_study_and_a_trial_can_be_trained_again(
    searched: tuple[Path, str], work: Path, invoke: Runner
) -> None:
    import shutil

    shutil.copytree(searched[0], work, dirs_exist_ok=True)
    ended = invoke("search", *SEARCH, "--max-macs", 10**7, "--trials", 9)
    assert ended.code == 2
    assert "was made with against 'macs', not None" in ended.err
    number = json.loads((work / "reports" / "nas_mnist" / "summary.json").read_text())["front"][0]["trial"]
    ended = invoke("reproduce", "best", "--trial", number, "--device", "cpu")
    assert (ended.code, ended.err) == (0, "")
    assert f"Written: reports/nas_mnist-trial-{number}" in ended.out
    ended = invoke("reproduce", "best", "--trial", 999)
    assert ended.code == 2
    assert "--trial: 999 is no trial" in ended.err


def test_a_trial_whose_process_died_at_its_end_gets_both_values(
    searched: tuple[Path, str], work: Path
) -> None:
    import shutil

    shutil.copytree(searched[0] / "studies", work / "studies")
    study = load_study(URL, "nas_mnist")
    trial = study.ask()
    trial.set_user_attr("owner", {"host": "", "pid": 0})
    trial.set_user_attr("macs", 77)
    study._storage.set_trial_intermediate_value(trial._trial_id, EPOCHS, 0.75)
    dead = optuna.load_study(study_name="nas_mnist", storage=URL)
    from nas_mnist import recovery

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recovery, "is_gone", lambda _: True)
        recover(dead)
    assert dead.trials[trial.number].values == [0.75, 77]
