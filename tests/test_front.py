"""A search for the best network of every cost: a multi-objective study."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from conftest import EPOCHS, NO_FINALS, SEARCH, TINY_SPACE, Runner, furnish, run_in_one, stored
from optuna.trial import TrialState
from optuna_dashboard import get_note

from nas_mnist.core.cli import run
from nas_mnist.data.dataset import DataSet
from nas_mnist.models.cost import Budget
from nas_mnist.recipes.recipe import Recipe
from nas_mnist.search.__main__ import search
from nas_mnist.search.finals import Finals
from nas_mnist.space.space import SearchSpace
from nas_mnist.study.candidate import CandidateSpace
from nas_mnist.study.curve import Point, curve_of, store_point
from nas_mnist.study.objective import Objective
from nas_mnist.study.pruner import LateMedianPruner
from nas_mnist.study.recovery import recover
from nas_mnist.study.results import pareto_front, trial_rows
from nas_mnist.study.verdict import Verdict
from nas_mnist.training.evaluate import Score
from nas_mnist.training.loop import EpochResult, TrainingError

FRONT = [*NO_FINALS, "--objective", "macs", "--max-macs", 10**7]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which the front was searched, and what was said."""
    folder, told = furnish(tmp_path_factory.mktemp("front")), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(told):
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setattr("nas_mnist.search.pipeline.run_workers", run_in_one)
        patch.setattr(sys, "argv", ["search", *map(str, FRONT), "--trials", "10", "--no-retrain"])
        with pytest.raises(SystemExit) as ended:
            run(search)
    assert ended.value.code == 0
    return folder, told.getvalue()


def test_the_front_is_told_and_no_candidate_of_it_is_beaten_in_both(searched: tuple[Path, str]) -> None:
    reports = searched[0] / "reports" / "nas_mnist"
    summary = json.loads((reports / "summary.json").read_text())
    front = summary["front"]
    assert front
    assert [row["macs"] for row in front] == sorted(row["macs"] for row in front)
    accuracies = [row["validation_accuracy"] for row in front]
    assert accuracies == sorted(set(accuracies))
    assert summary["winner"]["trial"] in {row["trial"] for row in front}
    assert "Pareto front (validation images; bytes as int8)" in searched[1]
    assert (reports / "plots" / "accuracy-cost.svg").exists()
    assert "<h2>Pareto front</h2>" in (reports / "report.html").read_text()


def test_the_sampler_learns_from_both_values_of_every_trial_that_was_scored(
    searched: tuple[Path, str],
) -> None:
    study = stored(searched[0])
    assert [way.name for way in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["validation accuracy", "multiply-adds"]
    assert "accuracy on the validation images after its last epoch and its multiply-adds" in get_note(study)
    scored = [trial for trial in study.trials if curve_of(trial)]
    assert scored
    for trial in scored:
        last = curve_of(trial)[trial.user_attrs["epochs"]]
        assert trial.state == TrialState.COMPLETE
        assert trial.values == [last.accuracy, trial.user_attrs["macs"]]
    assert all(row.epochs == EPOCHS for row in pareto_front(trial_rows(study), "macs"))


def test_another_objective_is_another_study_and_a_trial_can_be_trained_again(
    searched: tuple[Path, str], work: Path, invoke: Runner
) -> None:
    shutil.copytree(searched[0], work, dirs_exist_ok=True)
    ended = invoke("search", *SEARCH, "--max-macs", 10**7, "--trials", 9)
    assert ended.code == 2
    assert "was made with objective 'macs', not none" in ended.err
    again = invoke("search", *FRONT, "--trials", 10, "--workers", 1, "--no-retrain")
    assert (again.code, again.err) == (0, "")
    assert "The study has its 10 candidates" in again.out
    ended = invoke("export", "best", "--to", "safetensors")
    assert (ended.code, ended.err.count("\n")) == (1, 1)  # it was not trained again
    number = json.loads((work / "reports" / "nas_mnist" / "summary.json").read_text())["front"][0]["trial"]
    ended = invoke("reproduce", "best", "--trial", number, "--device", "cpu")
    assert (ended.code, ended.err) == (0, "")
    assert f"Written: reports/nas_mnist-trial-{number}" in ended.out
    ended = invoke("reproduce", "best", "--trial", 999)
    assert ended.code == 2
    assert "--trial: 999 is no trial" in ended.err


def test_a_trial_whose_process_died_at_its_end_gets_both_values(
    searched: tuple[Path, str], work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(searched[0] / "studies", work / "studies")
    monkeypatch.setattr("nas_mnist.study.recovery.is_gone", lambda _: True)
    study = stored(work)
    ends = ((None, [0.75, 77]), ("trained", [0.75, 77]), ("stopped early", [0.75, 77]), ("failed", None))
    for verdict, values in ends:
        trial = study.ask()
        trial.set_user_attr("owner", "somebody")
        trial.set_user_attr("macs", 77)
        if verdict:
            trial.set_user_attr("verdict", verdict)
        store_point(trial, EPOCHS, Point(0.75, 1.0))
        recover(study)
        assert study.trials[trial.number].values == values
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 1.0), n_trials=3)  # the sampler can go on


def test_trials_that_fail_or_are_stopped_leave_a_study_in_which_the_sampler_draws(
    tiny_data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = itertools.count(1)

    def train(*_: object, **__: object) -> Iterator[EpochResult]:
        if (number := next(told)) % 3 == 1:
            raise TrainingError("loss not finite in epoch 1")
        yield EpochResult(1, 1.0, 0.1, 1.0, 10, Score(1.0, 5, 10))
        yield EpochResult(2, 1.0, 0.1, 1.0, 10, Score(0.1 * number, 5 + number % 2, 10))
        raise TrainingError("loss not finite in epoch 3")

    monkeypatch.setattr("nas_mnist.training.loop.train", train)
    recipe = Recipe(epochs=3, batch_size=50, learning_rate=0.1)
    candidates = CandidateSpace(SearchSpace.from_toml(TINY_SPACE), Budget(10_000), recipe)
    objective = Objective(candidates, *tiny_data.split(), seed=0, cost_metric="n_params")
    study = optuna.create_study(
        directions=["maximize", "minimize"],
        sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=4),
        pruner=LateMedianPruner(3, "n_params"),
    )
    study.optimize(objective, n_trials=24)
    rows = trial_rows(study)
    ends = Counter((row.verdict, trial.state.name) for row, trial in zip(rows, study.trials, strict=True))
    assert ends[Verdict.FAILED, "PRUNED"] > 3
    assert ends[Verdict.STOPPED, "COMPLETE"] > 1
    assert {state for verdict, state in ends if verdict is Verdict.FAILED} == {"PRUNED"}  # never on the front
    for row, trial in zip(rows, study.trials, strict=True):
        stopped = row.verdict is Verdict.STOPPED
        assert trial.values == ([row.validation_accuracy, row.n_params] if stopped else None)


def test_the_smallest_candidate_that_meets_the_target_is_a_finalist_of_a_front() -> None:
    front: Any = [
        SimpleNamespace(n_params=size, validation_accuracy=accuracy)
        for size, accuracy in ((900, 0.98), (2_000, 0.994), (5_000, 0.995), (9_000, 0.997))
    ]
    cases: Any = (("macs", 0.994, [2_000]), ("macs", 0.999, []), ("macs", None, []), (None, 0.9, []))
    for metric, target, chosen in cases:
        setup: Any = SimpleNamespace(target=target, config=SimpleNamespace(cost_metric=metric))
        assert [row.n_params for row in Finals(setup, front, front)._cheapest(front)] == chosen
