"""The budget gate: what is over the budget is never built, is stored as such, and costs no trial."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import optuna
import pytest
import torch
from conftest import TINY_SPACE, Runner, run_python
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event

from nas_mnist import Architecture, Budget, SearchSpace
from nas_mnist.core.errors import NoResultError
from nas_mnist.models.cost import cost_of
from nas_mnist.recipes.recipe import Recipe
from nas_mnist.space.sampling import FixedParams
from nas_mnist.study import search_loop
from nas_mnist.study.candidate import CandidateSpace, check_space
from nas_mnist.study.concurrency import DEATHS, RETRY_OF, find_duplicate
from nas_mnist.study.config import StudyConfig
from nas_mnist.study.objective import ARCHITECTURE, Callbacks, Objective
from nas_mnist.study.pruner import eval_epochs
from nas_mnist.study.search_loop import search as search_candidates
from nas_mnist.study.storage import storage_guard
from nas_mnist.study.study import open_study
from nas_mnist.study.verdict import Verdict, count_candidates, verdict_of
from nas_mnist.training.loop import EpochResult, train

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
NO_CALLBACKS = Callbacks()
THREE = '[[stages]]\nblocks = 1\nchannels = [1, 2, 3]\ndownsample = "stride"\n'

Search = Callable[..., optuna.Study]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


def config_of(space: SearchSpace, recipe: Recipe, max_params: int) -> StudyConfig:
    return StudyConfig(
        space=space.digest, recipe=recipe.digest, data="tiny", max_params=max_params, epochs=recipe.epochs
    )


def objective_of(data, space: SearchSpace, budget: Budget, recipe: Recipe = RECIPE, **options) -> Objective:
    train_data, val_data = data.split()
    return Objective(CandidateSpace(space, budget, recipe), train_data, val_data, seed=0, **options)


def run(
    url: str, data, text: str | None, budget: int, trials: int, callbacks: Callbacks = NO_CALLBACKS
) -> optuna.Study:
    """Search in a database file; returns the study as a later process would load it."""
    space = SearchSpace.load() if text is None else SearchSpace.from_toml(text)
    study = open_study(url, "s", config_of(space, RECIPE, budget), {}, None)
    search_candidates(study, objective_of(data, space, Budget(budget), callbacks=callbacks), trials, seed="0")
    return load(url)


def load(url: str) -> optuna.Study:
    return optuna.load_study(study_name="s", storage=optuna.storages.RDBStorage(url))


@pytest.fixture
def search(url: str, tiny_data) -> Search:
    """`run` in a database file of this test's own."""
    return lambda *arguments: run(url, tiny_data, *arguments)


CASES = {"small": (WIDE_SPACE, 1_000), "wide": (WIDE_SPACE, 20_000), "default": (None, 20_000)}
TRIALS = 4


@pytest.fixture(scope="module", params=CASES)
def searched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_data):
    """A finished search, loaded afresh; its space and its budget."""
    text, budget = CASES[request.param]
    url = f"sqlite:///{tmp_path_factory.mktemp(request.param)}/study.db"
    study = run(url, tiny_data, text, budget, TRIALS)
    return study, SearchSpace.load() if text is None else SearchSpace.from_toml(text), budget


def of(study: optuna.Study, *verdicts: Verdict) -> list[FrozenTrial]:
    return [trial for trial in study.trials if trial.user_attrs.get("verdict") in verdicts]


def done(study: optuna.Study) -> list[FrozenTrial]:
    return of(study, *(verdict for verdict in Verdict if verdict.counts))


def test_no_trial_over_budget_ever_reported_an_epoch(searched: tuple[optuna.Study, SearchSpace, int]) -> None:
    study, space, budget = searched
    over = 0
    for trial in study.trials:
        params = cost_of(space.draw(FixedParams(trial.params), Budget(budget))).params
        over += params > budget
        if params > budget:
            assert trial.intermediate_values == {}
            assert trial.user_attrs["verdict"] == "over budget"
        else:
            assert trial.user_attrs["verdict"] != "over budget"
    assert over


def test_a_trial_over_budget_says_so_in_the_storage(searched: tuple[optuna.Study, SearchSpace, int]) -> None:
    study, space, budget = searched
    for trial in of(study, Verdict.OVER_BUDGET):
        params = cost_of(space.draw(FixedParams(trial.params), Budget(budget))).params
        assert trial.state == TrialState.PRUNED
        assert trial.value is None
        assert trial.user_attrs["n_params"] == params
        assert trial.user_attrs["excess"] == params - budget > 0
        assert trial.user_attrs["reason"] == f"{params - budget:,} parameters too many"
        assert trial.constraints == {"parameters": params - budget}
        assert "epochs" not in trial.user_attrs


def test_limits_on_multiply_adds_and_memory_reject_too(url: str, tiny_data) -> None:
    space, budget = SearchSpace.from_toml(WIDE_SPACE), Budget(10**6, 300_000, 60_000)
    study = open_study(url, "s", config_of(space, RECIPE, 1), {}, None)
    search_candidates(study, objective_of(tiny_data, space, budget), 3, seed="0")
    over = of(load(url), Verdict.OVER_BUDGET)
    reasons = "; ".join(trial.user_attrs["reason"] for trial in over)
    assert "multiply-adds too many" in reasons
    assert "bytes of peak memory too many" in reasons
    assert "parameters" not in reasons
    for trial in over:
        assert trial.intermediate_values == {}
        assert trial.user_attrs["macs"] > 300_000 or trial.user_attrs["peak_memory"] > 60_000
    for trial in done(load(url)):
        assert trial.user_attrs["macs"] <= 300_000
        assert trial.user_attrs["peak_memory"] <= 60_000
        assert set(trial.constraints) == {"parameters", "multiply-adds", "bytes of peak memory"}


def test_of_two_that_begin_the_last_candidate_at_once_one_gives_way(url: str, tiny_data) -> None:
    space = SearchSpace.from_toml(THREE)
    open_study(url, "s", config_of(space, RECIPE, 1), {}, None)
    study = load(url)
    first = study.ask()  # by another process, which has not begun to train
    objective = objective_of(tiny_data, space, Budget(10**6), total=1)
    study.optimize(objective, n_trials=1)
    second = load(url).trials[1]
    assert (second.user_attrs["verdict"], second.intermediate_values) == ("not needed", {})
    study.tell(first, state=TrialState.FAIL)
    study.optimize(objective, n_trials=1)
    assert load(url).trials[2].user_attrs["verdict"] == "trained"
    study.optimize(objective, n_trials=1)
    assert load(url).trials[3].user_attrs["verdict"] in ("not needed", "duplicate")


def test_a_candidate_that_counts_is_stored_as_data(searched: tuple[optuna.Study, SearchSpace, int]) -> None:
    study, _, budget = searched
    assert len(done(study)) == TRIALS
    for trial in done(study):
        architecture = Architecture.make(trial.system_attrs[ARCHITECTURE])
        assert architecture.key == trial.user_attrs["key"]
        assert cost_of(architecture).params == trial.user_attrs["n_params"] <= budget
        assert cost_of(architecture).macs == trial.user_attrs["macs"]
        assert trial.constraints["parameters"] == trial.user_attrs["excess"] <= 0
        assert sorted(trial.intermediate_values) == list(range(1, trial.user_attrs["epochs"] + 1))
    for trial in of(study, Verdict.TRAINED):
        assert trial.state == TrialState.COMPLETE
        assert trial.user_attrs["epochs"] == EPOCHS
        assert trial.value == trial.intermediate_values[EPOCHS]
    for trial in of(study, Verdict.STOPPED):
        assert trial.state == TrialState.PRUNED
        assert trial.user_attrs["epochs"] < EPOCHS
    assert of(study, Verdict.TRAINED)


def test_between_rungs_a_candidate_is_trained_without_being_scored(url: str, tiny_data) -> None:
    heard: list[EpochResult] = []
    callbacks = Callbacks(on_epoch=lambda _, result: heard.append(result))
    space, recipe = SearchSpace.from_toml(THREE), RECIPE.with_epochs(10)
    config = config_of(space, recipe, 20_000)
    study = open_study(url, "s", config, {}, None)
    search_candidates(
        study, objective_of(tiny_data, space, Budget(20_000), recipe, callbacks=callbacks), 1, seed="0"
    )
    (trial,) = load(url).trials
    assert set(trial.intermediate_values) == eval_epochs(10) != set(range(1, 11))
    assert [result.epoch for result in heard] == list(range(1, 11))
    assert trial.user_attrs["epochs"] == 10
    assert trial.user_attrs["images"] == sum(result.images for result in heard)
    assert trial.value == trial.intermediate_values[10]


def test_only_what_was_trained_counts_and_the_same_call_trains_nothing_more(search: Search) -> None:
    begun: list[int] = []
    callbacks = Callbacks(lambda number, _: begun.append(number))
    study = search(WIDE_SPACE, 2_000, 2, callbacks)
    assert len(begun) == len(done(study)) == 2
    assert len(study.trials) > 2
    assert begun == [trial.number for trial in done(study)]
    again = search(WIDE_SPACE, 2_000, 2, callbacks)
    assert len(begun) == 2
    assert len(again.trials) == len(study.trials)
    more = search(WIDE_SPACE, 2_000, 3, callbacks)
    assert len(begun) == len(done(more)) == 3


def test_a_budget_of_ten_ends_before_a_study_is_made() -> None:
    space = SearchSpace.from_toml(TINY_SPACE)
    with pytest.raises(NoResultError, match=r"no candidate of this space fits 10 parameters: the least that"):
        check_space(space, Budget(10), seed=0)


def test_a_budget_of_ten_ends_the_search_with_a_message_and_trains_nothing(search: Search, url: str) -> None:
    with pytest.raises(NoResultError, match="new candidate within 10 parameters"):
        search(TINY_SPACE, 10, 2)
    study = load(url)
    assert study.trials
    assert {trial.user_attrs["verdict"] for trial in study.trials} == {"over budget"}
    assert all(trial.intermediate_values == {} for trial in study.trials)


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


def test_a_candidate_drawn_again_is_not_trained_again(search: Search) -> None:
    begun: list[int] = []
    callbacks = Callbacks(lambda number, _: begun.append(number))
    study = search(THREE, 20_000, 3, callbacks)
    assert len({study.trials[number].user_attrs["key"] for number in begun}) == len(begun) == 3
    duplicates = of(study, Verdict.DUPLICATE)
    for trial in duplicates:
        first = study.trials[int(trial.user_attrs["reason"].removeprefix("of trial "))]
        assert first.user_attrs["key"] == trial.user_attrs["key"]
        assert first.number < trial.number
        assert trial.state == TrialState.PRUNED
        assert trial.intermediate_values == {}


def test_a_space_with_no_further_candidate_ends_as_exhausted(search: Search, url: str) -> None:
    with pytest.raises(NoResultError, match="the space is exhausted"):
        search(THREE, 20_000, 4)
    study = load(url)
    assert len(done(study)) == 3
    assert len({trial.user_attrs["key"] for trial in study.trials}) == 3
    assert 0 < len(of(study, Verdict.DUPLICATE)) < 2 * search_loop.MAX_REJECTED


def test_draws_that_make_no_network_are_stored_as_impossible_and_cost_no_trial(search: Search) -> None:
    text = '[[stages]]\nblocks = [1, 5]\nchannels = [1, 2]\nkernel = 7\npadding = "valid"\n'
    study = search(text, 20_000, 2)
    impossible = of(study, Verdict.IMPOSSIBLE)
    assert impossible
    assert len(done(study)) == 2
    for trial in impossible:
        assert trial.state == TrialState.PRUNED
        assert "does not fit a map of" in trial.user_attrs["reason"]
        assert trial.intermediate_values == {}
        assert "n_params" not in trial.user_attrs


def test_a_space_that_seldom_fits_is_helped_to_a_candidate(search: Search) -> None:
    """After a row of rejections a candidate that fits is found by counting and tried next."""
    text = "[[stages]]\nblocks = 1\n" + "channels = { min = 1, max = 900 }\n" + 'downsample = "stride"\n'
    study = search(text, 60, 2)  # 9 + 2 + 20 or 18 + 4 + 30 parameters: one or two channels
    assert len(done(study)) == 2
    assert {trial.user_attrs["n_params"] for trial in done(study)} == {31, 52}


def test_a_loss_that_is_not_finite_ends_one_trial_with_a_reason(url: str, tiny_data) -> None:
    deep = '[[stages]]\nblocks = 8\nchannels = 8\nnorm = "none"\nactivation = "none"\n'
    recipe = Recipe(epochs=2, batch_size=30, learning_rate=100.0, momentum=0.99, schedule="constant")
    study = optuna.create_study(study_name="s", storage=url)
    space = SearchSpace.from_toml(deep)
    study.optimize(objective_of(tiny_data, space, Budget(20_000), recipe), n_trials=1)
    (trial,) = load(url).trials
    assert trial.state == TrialState.PRUNED
    assert trial.user_attrs["verdict"] == "failed"
    assert trial.user_attrs["reason"].startswith("loss not finite in epoch ")


def test_five_failures_in_a_row_end_the_search_with_advice(url: str, tiny_data) -> None:
    deep = '[[stages]]\nblocks = 8\nchannels = { min = 4, max = 9 }\nnorm = "none"\nactivation = "none"\n'
    space = SearchSpace.from_toml(deep)
    recipe = Recipe(epochs=2, batch_size=30, learning_rate=100.0, momentum=0.99, schedule="constant")
    config = config_of(space, recipe, 20_000)
    study = open_study(url, "s", config, {}, None)
    objective = objective_of(tiny_data, space, Budget(20_000), recipe)
    with pytest.raises(
        NoResultError, match=r"5 candidates in a row failed: loss not finite \(lower .*learning_rate"
    ):
        search_candidates(study, objective, 99, seed="0")
    assert [trial.user_attrs["verdict"] for trial in load(url).trials] == ["failed"] * 5


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("no memory"), "out of memory"),
        (torch.AcceleratorError("gone"), "device failed"),
    ],
)
def test_what_the_device_does_ends_one_trial_with_a_reason(
    url: str, tiny_data, monkeypatch: pytest.MonkeyPatch, error: RuntimeError, reason: str
) -> None:
    faults = iter([error])

    def faulty(*arguments: object, **options: object) -> object:
        for fault in faults:
            raise fault
        return train(*arguments, **options)

    monkeypatch.setattr("nas_mnist.training.loop.train", faulty)
    space = SearchSpace.from_toml("[[stages]]\nblocks = 1\nchannels = { min = 4, max = 9 }\n")
    recipe = Recipe(epochs=1, batch_size=30, learning_rate=0.1)
    study = optuna.create_study(study_name="s", storage=url)
    objective = objective_of(tiny_data, space, Budget(20_000), recipe)
    search_candidates(study, objective, 2, seed="0")
    assert [trial.user_attrs["verdict"] for trial in load(url).trials] == ["failed", "trained"]
    assert load(url).trials[0].user_attrs["reason"] == reason


def test_a_full_disk_ends_the_search_in_one_line_and_room_lets_it_go_on(url: str, tiny_data) -> None:
    space = SearchSpace.from_toml("[[stages]]\nblocks = 1\nchannels = { min = 1, max = 99 }\n")
    config = config_of(space, RECIPE, 20_000)
    objective = objective_of(tiny_data, space, Budget(20_000))
    study = open_study(url, "s", config, {}, None)
    search_candidates(study, objective, 1, seed="0")
    first = study.trials[0]

    engine = study._storage._backend.engine
    with engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    event.listen(engine, "connect", lambda one, _: one.execute(f"PRAGMA max_page_count = {pages + 1}"))
    engine.dispose()
    with pytest.raises(NoResultError, match=r"full.*the same command goes on"), storage_guard(url):
        search_candidates(study, objective, 50, seed="0")

    study = open_study(url, "s", config, {}, None)
    done = count_candidates(study)
    assert 1 <= done < 50
    search_candidates(study, objective, done + 2, seed="0")
    assert count_candidates(study) == done + 2
    assert study.trials[0] == first
    assert not study.get_trials(states=(TrialState.RUNNING,))
    keys = [trial.user_attrs["key"] for trial in study.trials if (kind := verdict_of(trial)) and kind.counts]
    assert len(keys) == len(set(keys))


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def picture_fails(*_: object) -> None:
    raise OSError("no space left for a picture")


@pytest.mark.parametrize("what", ["the last epoch", "the end", "a picture"])
def test_nothing_comes_between_a_trial_and_its_end(url: str, tiny_data, what: str) -> None:
    callbacks = {
        "the last epoch": Callbacks(
            on_epoch=lambda _, result: interrupt() if result.epoch == EPOCHS else None
        ),
        "the end": Callbacks(on_end=interrupt),
        "a picture": Callbacks(on_end=picture_fails),
    }[what]
    space = SearchSpace.from_toml(THREE)
    config = config_of(space, RECIPE, 20_000)
    study = open_study(url, "s", config, {}, None)
    objective = objective_of(tiny_data, space, Budget(20_000), callbacks=callbacks)
    with contextlib.nullcontext() if what == "a picture" else pytest.raises(KeyboardInterrupt):
        search_candidates(study, objective, 1, seed="0")
    (trial,) = load(url).trials
    assert trial.state == TrialState.COMPLETE
    assert trial.value == trial.intermediate_values[EPOCHS]
    assert trial.user_attrs["verdict"] == "trained"


def test_a_candidate_whose_process_died_twice_is_given_up(url: str) -> None:
    study = optuna.create_study(study_name="s", storage=url)
    first, second, third = (study.ask() for _ in range(3))
    for trial in (first, second, third):
        trial.set_user_attr("key", "k")
    study.tell(first, state=TrialState.FAIL)
    assert find_duplicate(third, "k") == second.number  # it runs
    second.set_user_attr(RETRY_OF, first.number)
    second.set_user_attr(DEATHS, 1)
    study.tell(second, state=TrialState.FAIL)
    assert find_duplicate(third, "k") == second.number
    assert find_duplicate(third, "another") is None
    third.set_user_attr(RETRY_OF, second.number)  # the second one was interrupted, and is tried again
    assert find_duplicate(third, "k") is None


def ended(verdict: Verdict, reason: str, minute: int) -> FrozenTrial:
    moment = datetime(2000, 1, 1, 0, minute)
    trial = optuna.trial.create_trial(
        state=TrialState.PRUNED, user_attrs={"verdict": verdict, "reason": reason}
    )
    trial.datetime_start = trial.datetime_complete = moment
    return trial


def test_failures_that_are_not_in_a_row_end_nothing() -> None:
    study = optuna.create_study()
    reasons = ["loss not finite in epoch 1", "loss not finite in epoch 2", "out of memory"] * 3
    reasons += ["after epoch 1"] + ["out of memory"] * 4
    for minute, reason in enumerate(reasons):
        verdict = Verdict.STOPPED if reason.startswith("after") else Verdict.FAILED
        study.add_trial(ended(verdict, reason, minute))
        study.add_trial(ended(Verdict.OVER_BUDGET, "3 parameters too many", minute))
        search_loop._check_failures(study)


def test_failures_of_all_processes_count_in_the_order_in_which_they_ended() -> None:
    study = optuna.create_study()
    for minute in (9, 3, 8, 7, 6, 5):  # the third minute's trial was trained
        verdict = Verdict.TRAINED if minute == 3 else Verdict.FAILED
        search_loop._check_failures(study)
        study.add_trial(ended(verdict, "out of memory", minute))
    with pytest.raises(
        NoResultError, match=r"5 candidates in a row failed: out of memory \(use fewer workers"
    ):
        search_loop._check_failures(study)
