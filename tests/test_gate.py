"""The budget gate: what is over the budget is never built, is stored as such, and costs no trial."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from conftest import TINY_SPACE, Runner, run_python
from optuna.trial import FrozenTrial, TrialState

from nas_mnist import Architecture, Budget, SearchSpace
from nas_mnist.core.errors import NoResultError
from nas_mnist.data.dataset import DataSet
from nas_mnist.models.cost import cost_of
from nas_mnist.recipes.recipe import Recipe
from nas_mnist.space.sampling import FixedParams
from nas_mnist.study import search_loop
from nas_mnist.study.candidate import CandidateSpace
from nas_mnist.study.config import StudyConfig
from nas_mnist.study.objective import ARCHITECTURE, WORST_EXCESS, Callbacks, Objective
from nas_mnist.study.pruner import eval_epochs
from nas_mnist.study.search_loop import search as search_candidates
from nas_mnist.study.study import open_study
from nas_mnist.study.verdict import Verdict
from nas_mnist.training.loop import EpochResult, TrainingError, train

pytestmark = pytest.mark.usefixtures("no_figures")

EPOCHS = 2
RECIPE = Recipe(epochs=EPOCHS, batch_size=60, learning_rate=0.1)
WIDE_SPACE = """
[[stages]]
blocks = 1
channels = { min = 4, max = 40, step = 4 }
downsample = "max"

[[stages]]
blocks = [1, 2]
block = ["conv", "separable"]
channels = { min = 4, max = 64, step = 4 }
downsample = ["max", "stride"]
"""
THREE = '[[stages]]\nblocks = 1\nchannels = [1, 2, 3]\ndownsample = "stride"\n'


class Study:
    """A study in a database file, searched with a little data."""

    def __init__(self, folder: Path, data: DataSet, text, budget, recipe=RECIPE, **more: Any) -> None:
        self.url = f"sqlite:///{folder}/study.db"
        self.space = SearchSpace.load("classic") if text is None else SearchSpace.from_toml(text)
        self.budget = budget if isinstance(budget, Budget) else Budget(budget)
        self.recipe = recipe
        candidates = CandidateSpace(self.space, self.budget, recipe)
        self.objective = Objective(candidates, *data.split(), seed=0, **more)

    def open(self) -> optuna.Study:
        facts = {"max_params": self.budget.max_params, "epochs": self.recipe.epochs, "data": "tiny"}
        config = StudyConfig(space=self.space.digest, recipe=self.recipe.digest, **facts)
        return open_study(self.url, "s", config, {})

    def search(self, trials: int) -> optuna.Study:
        """Search; returns the study as a later process would load it."""
        search_candidates(self.open(), self.objective, trials, seed="0")
        return self.load()

    def load(self) -> optuna.Study:
        return optuna.load_study(study_name="s", storage=optuna.storages.RDBStorage(self.url))


MakeStudy = Callable[..., Study]


@pytest.fixture
def make(tmp_path: Path, tiny_data: DataSet) -> MakeStudy:
    """Makes a `Study` in a database file of this test's own."""
    return functools.partial(Study, tmp_path, tiny_data)


CASES = {"small": (WIDE_SPACE, 1_000), "wide": (WIDE_SPACE, 20_000), "classic": (None, 20_000)}
TRIALS = 4


@pytest.fixture(scope="module", params=CASES)
def searched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_data):
    """A finished search, loaded afresh; its space and its budget."""
    study = Study(tmp_path_factory.mktemp(request.param), tiny_data, *CASES[request.param])
    return study.search(TRIALS), study.space, study.budget.max_params


def of(study: optuna.Study, *verdicts: Verdict) -> list[FrozenTrial]:
    return [trial for trial in study.trials if trial.user_attrs.get("verdict") in verdicts]


def done(study: optuna.Study) -> list[FrozenTrial]:
    return of(study, *(verdict for verdict in Verdict if verdict.counts))


def test_no_trial_over_budget_ever_reported_an_epoch(searched: tuple[optuna.Study, SearchSpace, int]) -> None:
    study, space, budget = searched
    over = []
    for trial in study.trials:
        params = cost_of(space.draw(FixedParams(trial.params), Budget(budget))).params
        assert (trial.user_attrs["verdict"] == "over budget") == (params > budget)
        if params > budget:
            over.append(trial)
            assert trial.user_attrs["n_params"] == params
    assert over
    for trial in over:
        excess = trial.user_attrs["n_params"] - budget
        assert trial.intermediate_values == {}
        assert trial.state == TrialState.PRUNED
        assert trial.value is None
        assert trial.user_attrs["excess"] == excess
        assert trial.user_attrs["reason"] == f"{excess:,} parameters too many"
        assert trial.constraints == {"parameters": pytest.approx(min(excess / budget, WORST_EXCESS))}
        assert "epochs" not in trial.user_attrs


def test_limits_on_multiply_adds_and_memory_reject_too(make: MakeStudy) -> None:
    study = make(WIDE_SPACE, Budget(10**6, 300_000, max_ram=12_000)).search(3)
    over = of(study, Verdict.OVER_BUDGET)
    reasons = "; ".join(trial.user_attrs["reason"] for trial in over)
    assert "multiply-adds too many" in reasons
    assert "bytes of RAM too many" in reasons
    assert "parameters" not in reasons
    for trial in over:
        assert trial.intermediate_values == {}
        assert trial.user_attrs["macs"] > 300_000 or trial.user_attrs["ram"] > 12_000
    for trial in done(study):
        assert trial.user_attrs["macs"] <= 300_000
        assert trial.user_attrs["ram"] <= 12_000
        assert set(trial.constraints) == {"parameters", "multiply-adds", "bytes of RAM"}


def test_of_two_that_begin_the_last_candidate_at_once_one_gives_way(make: MakeStudy) -> None:
    made = make(THREE, 10**6, total=1)
    made.open()
    study = made.load()
    first = study.ask()  # by another process, which has not begun to train
    study.optimize(made.objective, n_trials=1)
    assert (study.trials[1].user_attrs["verdict"], study.trials[1].intermediate_values) == ("not needed", {})
    study.tell(first, state=TrialState.FAIL)
    study.optimize(made.objective, n_trials=2)
    assert study.trials[2].user_attrs["verdict"] == "trained"
    assert study.trials[3].user_attrs["verdict"] in ("not needed", "duplicate")


def test_a_candidate_that_counts_is_stored_as_data(searched: tuple[optuna.Study, SearchSpace, int]) -> None:
    study, _, budget = searched
    assert len(done(study)) == TRIALS
    for trial in done(study):
        architecture = Architecture.make(trial.system_attrs[ARCHITECTURE])
        assert architecture.key == trial.user_attrs["key"]
        assert cost_of(architecture).params == trial.user_attrs["n_params"] <= budget
        assert cost_of(architecture).macs == trial.user_attrs["macs"]
        assert trial.constraints["parameters"] == trial.user_attrs["excess"] / budget <= 0
        assert sorted(trial.intermediate_values) == list(range(1, trial.user_attrs["epochs"] + 1))
    for trial in of(study, Verdict.TRAINED):
        assert trial.state == TrialState.COMPLETE
        assert trial.user_attrs["epochs"] == EPOCHS
        assert trial.value == trial.intermediate_values[EPOCHS]
    for trial in of(study, Verdict.STOPPED):
        assert trial.state == TrialState.PRUNED
        assert trial.user_attrs["epochs"] < EPOCHS
    assert of(study, Verdict.TRAINED)


def test_between_rungs_a_candidate_is_trained_without_being_scored(make: MakeStudy) -> None:
    heard: list[EpochResult] = []
    callbacks = Callbacks(on_epoch=lambda _, result: heard.append(result))
    (trial,) = make(THREE, 20_000, RECIPE.with_epochs(10), callbacks=callbacks).search(1).trials
    assert set(trial.intermediate_values) == eval_epochs(10) != set(range(1, 11))
    assert [result.epoch for result in heard] == list(range(1, 11))
    assert trial.user_attrs["epochs"] == 10
    assert trial.user_attrs["images"] == sum(result.images for result in heard)
    assert trial.value == trial.intermediate_values[10]


def test_only_what_was_trained_counts_and_the_same_call_trains_nothing_more(make: MakeStudy) -> None:
    begun: list[int] = []
    made = make(WIDE_SPACE, 2_000, callbacks=Callbacks(lambda number, _: begun.append(number)))
    study = made.search(2)
    assert begun == [trial.number for trial in done(study)]
    assert len(study.trials) == len(made.search(2).trials) > len(begun) == 2


def test_a_budget_of_ten_ends_the_search_with_a_message_and_trains_nothing(make: MakeStudy) -> None:
    made = make(TINY_SPACE, 10)
    with pytest.raises(NoResultError, match="new candidate within 10 parameters"):
        made.search(2)
    trials = made.load().trials
    assert {trial.user_attrs["verdict"] for trial in trials} == {"over budget"}
    assert all(trial.intermediate_values == {} for trial in trials)


def test_command_with_a_budget_of_ten_writes_nothing(invoke: Runner, work: Path) -> None:
    ended = invoke("search", "--dataset", "mnist-5k", "--max-params", 10, "--device", "cpu")
    assert ended.code == 1
    assert ended.err.startswith("error: no candidate of this space fits 10 parameters: the least that ")
    assert ended.err.count("\n") == 1
    assert list(work.iterdir()) == []


def test_an_over_budget_trial_never_imports_torch(tmp_path: Path) -> None:
    script = """
import sys
import optuna
from nas_mnist import Budget, SearchSpace
from nas_mnist.study.candidate import CandidateSpace
from nas_mnist.study.objective import Objective
from nas_mnist.recipes.recipe import Recipe

objective = Objective(CandidateSpace(SearchSpace.load(), Budget(10), Recipe()), None, None, seed=0)
study = optuna.create_study(storage="sqlite:///s.db", study_name="s")
study.optimize(objective, n_trials=2)
print("torch" in sys.modules, [trial.state.name for trial in study.trials])
"""
    ended = run_python(["-c", script], tmp_path)
    assert ended.code == 0, ended.err
    assert ended.out.strip() == "False " + str(["PRUNED"] * 2)


def test_no_candidate_is_trained_twice_and_a_space_without_a_new_one_is_exhausted(make: MakeStudy) -> None:
    made = make(THREE, 20_000)
    with pytest.raises(NoResultError, match="the space is exhausted"):
        made.search(4)
    study = made.load()
    keys = [trial.user_attrs["key"] for trial in done(study)]
    assert len(set(keys)) == len(keys) == 3
    duplicates = of(study, Verdict.DUPLICATE)
    assert 0 < len(duplicates) < 2 * search_loop.MAX_REJECTED
    for trial in duplicates:
        first = study.trials[int(trial.user_attrs["reason"].removeprefix("of trial "))]
        assert first.user_attrs["key"] == trial.user_attrs["key"]
        assert first.number < trial.number
        assert (trial.state, trial.intermediate_values) == (TrialState.PRUNED, {})


def test_draws_that_make_no_network_are_stored_as_impossible_and_cost_no_trial(make: MakeStudy) -> None:
    text = '[[stages]]\nblocks = [1, 5]\nchannels = [1, 2]\nkernel = 7\npadding = "valid"\n'
    study = make(text, 20_000).search(2)
    impossible = of(study, Verdict.IMPOSSIBLE)
    assert impossible
    assert len(done(study)) == 2
    for trial in impossible:
        assert (trial.state, trial.intermediate_values) == (TrialState.PRUNED, {})
        assert "does not fit a map of" in trial.user_attrs["reason"]
        assert trial.constraints == {"parameters": WORST_EXCESS}
        assert "n_params" not in trial.user_attrs


def test_a_space_that_seldom_fits_is_helped_to_a_candidate(make: MakeStudy) -> None:
    """After a row of rejections a candidate that fits is found by counting and tried next."""
    text = '[[stages]]\nblocks = 1\nchannels = { min = 1, max = 900 }\ndownsample = "stride"\n'
    study = make(text, 60).search(2)  # 9 + 2 + 20 or 18 + 4 + 30 parameters: one or two channels
    assert {trial.user_attrs["n_params"] for trial in done(study)} == {31, 52}
    assert 0 < max(trial.constraints["parameters"] for trial in study.trials) <= WORST_EXCESS


def test_five_failures_in_a_row_end_the_search_with_advice(make: MakeStudy) -> None:
    deep = '[[stages]]\nblocks = 8\nchannels = { min = 4, max = 9 }\nnorm = "none"\nactivation = "none"\n'
    recipe = Recipe(epochs=2, batch_size=30, learning_rate=100.0, momentum=0.99, schedule="constant")
    made = make(deep, 20_000, recipe)
    with pytest.raises(
        NoResultError, match=r"5 candidates in a row failed: loss not finite \(lower .*learning_rate"
    ):
        made.search(99)
    trials = made.load().trials
    assert [trial.user_attrs["verdict"] for trial in trials] == ["failed"] * 5
    assert {trial.state for trial in trials} == {TrialState.PRUNED}
    assert all(trial.user_attrs["reason"].startswith("loss not finite in epoch ") for trial in trials)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def picture_fails(*_: object) -> None:
    raise OSError("no space left for a picture")


@pytest.mark.parametrize(
    "callbacks",
    [
        Callbacks(on_epoch=lambda _, result: interrupt() if result.epoch == EPOCHS else None),
        Callbacks(on_end=interrupt),
        Callbacks(on_end=picture_fails),
    ],
    ids=["the last epoch", "the end", "a picture"],
)
def test_nothing_comes_between_a_trial_and_its_end(make: MakeStudy, callbacks: Callbacks) -> None:
    made = make(THREE, 20_000, callbacks=callbacks)
    is_picture = callbacks.on_end is picture_fails
    with contextlib.nullcontext() if is_picture else pytest.raises(KeyboardInterrupt):
        made.search(1)
    (trial,) = made.load().trials
    assert trial.state == TrialState.COMPLETE
    assert trial.value == trial.intermediate_values[EPOCHS]
    assert trial.user_attrs["verdict"] == "trained"


def test_failures_of_several_kinds_or_with_a_candidate_between_them_end_nothing(
    make: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan, memory = TrainingError("loss not finite"), torch.OutOfMemoryError("no memory")
    faults = iter([*[nan, memory] * 3, *[nan] * 3, None, *[nan] * 4])

    def failing(*arguments: object, **options: object) -> object:
        if fault := next(faults, None):
            raise fault
        return train(*arguments, **options)

    monkeypatch.setattr("nas_mnist.training.loop.train", failing)
    space = "[[stages]]\nblocks = 1\nchannels = { min = 1, max = 99 }\n"
    failed = of(make(space, 20_000).search(15), Verdict.FAILED)
    reasons = [trial.user_attrs["reason"] for trial in failed]
    assert reasons == [*["loss not finite", "out of memory"] * 3, *["loss not finite"] * 7]
