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
from nas_mnist.space.sampling import Replay
from nas_mnist.study import study as studies
from nas_mnist.study.objective import ARCHITECTURE, Objective, Verdict, Watcher, _seen_before, verdict_of
from nas_mnist.study.owner import DEATHS, RETRY_OF
from nas_mnist.study.pruner import scored
from nas_mnist.study.storage import losing
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
THREE = '[[stages]]\nblocks = 1\nchannels = [1, 2, 3]\ndownsample = "stride"\n'
NOBODY = Watcher(lambda *_: None, lambda *_: None)

Search = Callable[..., optuna.Study]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


def run(
    url: str, data, text: str | None, budget: int, trials: int, watcher: Watcher = NOBODY
) -> optuna.Study:
    """Search in a database file; returns the study as a later process would load it."""
    learn, choose = data.split()
    space = SearchSpace.load() if text is None else SearchSpace.from_toml(text)
    identity = studies.Identity(space.digest, RECIPE.digest, "tiny", "", budget, EPOCHS)
    study = studies.open_study(url, "s", identity, {}, None)
    objective = Objective(space, Budget(budget), RECIPE, learn, choose, 0, watcher)
    studies.search(study, objective, trials, seed="0")
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
        params = cost_of(space.draw(Replay(trial.params), Budget(budget))).params
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
        params = cost_of(space.draw(Replay(trial.params), Budget(budget))).params
        assert trial.state == TrialState.PRUNED
        assert trial.value is None
        assert trial.user_attrs["n_params"] == params
        assert trial.user_attrs["excess"] == params - budget > 0
        assert trial.user_attrs["reason"] == f"{params - budget:,} parameters too many"
        assert trial.constraints == {"parameters": params - budget}
        assert "epochs" not in trial.user_attrs


def test_limits_on_multiply_adds_and_memory_reject_too(url: str, tiny_data) -> None:
    learn, choose = tiny_data.split()
    space, budget = SearchSpace.from_toml(WIDE_SPACE), Budget(10**6, 300_000, 60_000)
    study = studies.open_study(url, "s", studies.Identity("", "", "", "", 1, 1), {}, None)
    studies.search(study, Objective(space, budget, RECIPE, learn, choose, 0, NOBODY), 3, seed="0")
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
    learn, choose = tiny_data.split()
    space = SearchSpace.from_toml(THREE)
    studies.open_study(url, "s", studies.Identity("", "", "", "", 1, 1), {}, None)
    study = load(url)
    first = study.ask()  # by another process, which has not begun to train
    objective = Objective(space, Budget(10**6), RECIPE, learn, choose, 0, NOBODY, total=1)
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


def test_between_looks_a_candidate_is_trained_without_being_scored(url: str, tiny_data) -> None:
    learn, choose = tiny_data.split()
    heard: list[EpochResult] = []
    watcher = Watcher(lambda *_: None, lambda _, result: heard.append(result))
    space, recipe = SearchSpace.from_toml(THREE), RECIPE.with_epochs(10)
    identity = studies.Identity(space.digest, recipe.digest, "tiny", "", 20_000, 10)
    study = studies.open_study(url, "s", identity, {}, None)
    studies.search(study, Objective(space, Budget(20_000), recipe, learn, choose, 0, watcher), 1, seed="0")
    (trial,) = load(url).trials
    assert set(trial.intermediate_values) == scored(10) != set(range(1, 11))
    assert [result.epoch for result in heard] == list(range(1, 11))
    assert trial.user_attrs["epochs"] == 10
    assert trial.user_attrs["images"] == sum(result.images for result in heard)
    assert trial.value == trial.intermediate_values[10]


def test_only_what_was_trained_counts_and_the_same_call_trains_nothing_more(search: Search) -> None:
    begun: list[int] = []
    watcher = Watcher(lambda number, *_: begun.append(number), lambda *_: None)
    study = search(WIDE_SPACE, 2_000, 2, watcher)
    assert len(begun) == len(done(study)) == 2
    assert len(study.trials) > 2
    assert begun == [trial.number for trial in done(study)]
    again = search(WIDE_SPACE, 2_000, 2, watcher)
    assert len(begun) == 2
    assert len(again.trials) == len(study.trials)
    more = search(WIDE_SPACE, 2_000, 3, watcher)
    assert len(begun) == len(done(more)) == 3


def test_a_budget_of_ten_ends_before_a_study_is_made() -> None:
    space = SearchSpace.from_toml(TINY_SPACE)
    with pytest.raises(NoResultError, match=r"no candidate of this space fits 10 parameters: the least that"):
        studies.check_space(space, Budget(10), seed=0)


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
from nas_mnist.study.objective import Objective, Watcher
from nas_mnist.recipes.recipe import Recipe

watcher = Watcher(lambda *_: None, lambda *_: None)
objective = Objective(SearchSpace.load(), Budget(10), Recipe(), None, None, 0, watcher)
study = optuna.create_study(storage="sqlite:///s.db", study_name="s")
study.optimize(objective, n_trials=2)
print("torch" in sys.modules, [trial.state.name for trial in study.trials])
"""
    ended = run_python(["-c", script], tmp_path)
    assert ended.code == 0, ended.err
    assert ended.out.strip() == "False " + str(["PRUNED"] * 2)


def test_a_candidate_drawn_again_is_not_trained_again(search: Search) -> None:
    begun: list[int] = []
    watcher = Watcher(lambda number, _: begun.append(number), lambda *_: None)
    study = search(THREE, 20_000, 3, watcher)
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
    assert 0 < len(of(study, Verdict.DUPLICATE)) < 2 * studies.MISSED_IN_A_ROW


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
    learn, choose = tiny_data.split()
    deep = '[[stages]]\nblocks = 8\nchannels = 8\nnorm = "none"\nactivation = "none"\n'
    recipe = Recipe(epochs=2, batch_size=30, learning_rate=100.0, momentum=0.99, schedule="constant")
    study = optuna.create_study(study_name="s", storage=url)
    objective = Objective(SearchSpace.from_toml(deep), Budget(20_000), recipe, learn, choose, 0, NOBODY)
    study.optimize(objective, n_trials=1)
    (trial,) = load(url).trials
    assert trial.state == TrialState.PRUNED
    assert trial.user_attrs["verdict"] == "failed"
    assert trial.user_attrs["reason"].startswith("loss not finite in epoch ")


def test_five_failures_in_a_row_end_the_search_with_advice(url: str, tiny_data) -> None:
    learn, choose = tiny_data.split()
    deep = '[[stages]]\nblocks = 8\nchannels = { min = 4, max = 9 }\nnorm = "none"\nactivation = "none"\n'
    space = SearchSpace.from_toml(deep)
    recipe = Recipe(epochs=2, batch_size=30, learning_rate=100.0, momentum=0.99, schedule="constant")
    identity = studies.Identity(space.digest, recipe.digest, "tiny", "", 20_000, 2)
    study = studies.open_study(url, "s", identity, {}, None)
    objective = Objective(space, Budget(20_000), recipe, learn, choose, 0, NOBODY)
    with pytest.raises(
        NoResultError, match=r"5 candidates in a row failed: loss not finite \(lower .*learning_rate"
    ):
        studies.search(study, objective, 99, seed="0")
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
    learn, choose = tiny_data.split()
    faults = iter([error])

    def faulty(*arguments: object, **options: object) -> object:
        for fault in faults:
            raise fault
        return train(*arguments, **options)

    monkeypatch.setattr("nas_mnist.training.loop.train", faulty)
    space = SearchSpace.from_toml("[[stages]]\nblocks = 1\nchannels = { min = 4, max = 9 }\n")
    recipe = Recipe(epochs=1, batch_size=30, learning_rate=0.1)
    study = optuna.create_study(study_name="s", storage=url)
    objective = Objective(space, Budget(20_000), recipe, learn, choose, 0, NOBODY)
    studies.search(study, objective, 2, seed="0")
    assert [trial.user_attrs["verdict"] for trial in load(url).trials] == ["failed", "trained"]
    assert load(url).trials[0].user_attrs["reason"] == reason


def test_a_full_disk_ends_the_search_in_one_line_and_room_lets_it_go_on(url: str, tiny_data) -> None:
    learn, choose = tiny_data.split()
    space = SearchSpace.from_toml("[[stages]]\nblocks = 1\nchannels = { min = 1, max = 99 }\n")
    identity = studies.Identity(space.digest, RECIPE.digest, "tiny", "", 20_000, EPOCHS)
    objective = Objective(space, Budget(20_000), RECIPE, learn, choose, 0, NOBODY)
    study = studies.open_study(url, "s", identity, {}, None)
    studies.search(study, objective, 1, seed="0")
    first = study.trials[0]

    engine = study._storage._backend.engine
    with engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    event.listen(engine, "connect", lambda one, _: one.execute(f"PRAGMA max_page_count = {pages + 1}"))
    engine.dispose()
    with pytest.raises(NoResultError, match=r"full.*the same command goes on"), losing(url):
        studies.search(study, objective, 50, seed="0")

    study = studies.open_study(url, "s", identity, {}, None)
    done = studies.counted(study)
    assert 1 <= done < 50
    studies.search(study, objective, done + 2, seed="0")
    assert studies.counted(study) == done + 2
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
    learn, choose = tiny_data.split()
    watcher = {
        "the last epoch": Watcher(
            lambda *_: None, lambda _, result: interrupt() if result.epoch == EPOCHS else None
        ),
        "the end": Watcher(lambda *_: None, lambda *_: None, interrupt),
        "a picture": Watcher(lambda *_: None, lambda *_: None, picture_fails),
    }[what]
    space = SearchSpace.from_toml(THREE)
    identity = studies.Identity(space.digest, RECIPE.digest, "tiny", "", 20_000, EPOCHS)
    study = studies.open_study(url, "s", identity, {}, None)
    objective = Objective(space, Budget(20_000), RECIPE, learn, choose, 0, watcher)
    with contextlib.nullcontext() if what == "a picture" else pytest.raises(KeyboardInterrupt):
        studies.search(study, objective, 1, seed="0")
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
    assert _seen_before(third, "k") == second.number  # it runs
    second.set_user_attr(RETRY_OF, first.number)
    second.set_user_attr(DEATHS, 1)
    study.tell(second, state=TrialState.FAIL)
    assert _seen_before(third, "k") == second.number
    assert _seen_before(third, "another") is None
    third.set_user_attr(RETRY_OF, second.number)  # the second one was interrupted, and is tried again
    assert _seen_before(third, "k") is None


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
        studies._check_failures(study)


def test_failures_of_all_processes_count_in_the_order_in_which_they_ended() -> None:
    study = optuna.create_study()
    for minute in (9, 3, 8, 7, 6, 5):  # the third minute's trial was trained
        verdict = Verdict.TRAINED if minute == 3 else Verdict.FAILED
        studies._check_failures(study)
        study.add_trial(ended(verdict, "out of memory", minute))
    with pytest.raises(
        NoResultError, match=r"5 candidates in a row failed: out of memory \(use fewer workers"
    ):
        studies._check_failures(study)
