"""Networks that a search is given: tried first, and called so everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from conftest import SEARCH, Runner, furnish, stored
from optuna.trial import TrialState

from nas_mnist import Architecture, Budget, SearchSpace
from nas_mnist.core.errors import InputError
from nas_mnist.data.dataset import DataSet, load
from nas_mnist.models.cost import cost_of
from nas_mnist.recipes.recipe import load_recipe
from nas_mnist.search.start import given_networks
from nas_mnist.study.candidate import CandidateSpace
from nas_mnist.study.given import ORIGIN, enqueue_given, given_to
from nas_mnist.study.objective import Objective
from nas_mnist.study.recovery import requeue
from nas_mnist.study.results import trial_rows
from nas_mnist.study.verdict import Verdict

pytestmark = pytest.mark.usefixtures("no_figures")

SMALL = Architecture.make({"blocks": [{"kind": "conv", "channels": 3, "stride": 2}, {"kind": "pool"}]})

RECIPE = load_recipe("tiny")


@pytest.fixture
def data() -> DataSet:
    return load("mnist-5k", None)


def test_the_reference_comes_first_where_it_fits(data: DataSet) -> None:
    assert [given.name for given in given_networks((), Budget(20_000), data)] == ["reference"]
    assert given_networks((), Budget(19_000), data) == ()
    names = [given.name for given in given_networks(("mnist-1k", "reference"), Budget(20_000), data)]
    assert names == ["reference", "mnist-1k"]
    recipes = [given.recipe for given in given_networks(("mnist-1k",), Budget(20_000), data)]
    assert recipes == [load_recipe("default"), load_recipe("tiny")]  # each network's own


@pytest.mark.parametrize("params", [20_000, 1_000, 300])
def test_the_zoo_is_widened_or_narrowed_to_the_budget(data: DataSet, params: int) -> None:
    given = given_networks(("zoo",), Budget(params), data)
    sizes = [cost_of(one.architecture).params for one in given]
    assert len(given) >= 5  # some are the same at one size
    assert all(size <= params for size in sizes)
    assert len({one.architecture.key for one in given}) == len(given)
    if params == 20_000:
        assert min(sizes) > 0.9 * params


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize(
    ("name", "budget", "words"),
    [
        ("reference", Budget(5_000), ["--start: reference: 14,122 parameters too many", "5,000 parameters"]),
        ("mnist-1k", Budget(1_000, max_macs=1_000), ["multiply-adds too many"]),
        ("colour.json", Budget(20_000), ["--start: colour.json: ", "3 x 28 x 28", "1 x 28 x 28"]),
        ("mnist-0k", Budget(20_000), ["mnist-0k"]),
        ("best", Budget(20_000), ["--start: 'best'"]),
    ],
)
def test_a_network_that_does_not_fit_is_refused(
    data: DataSet, name: str, budget: Budget, words: list[str]
) -> None:
    colour = {"input_shape": [3, 28, 28], "blocks": [{"kind": "conv", "channels": 2}]}
    Path("colour.json").write_text(json.dumps(colour))
    with pytest.raises(InputError) as raised:
        given_networks((name,), budget, data)
    assert all(word in str(raised.value) for word in words)


def test_a_given_network_is_queued_once_and_again_after_an_interruption() -> None:
    study = optuna.create_study()
    for _ in range(2):
        enqueue_given(study, [("small", SMALL, RECIPE)])
    (waiting,) = study.trials
    assert waiting.state == TrialState.WAITING
    assert given_to(waiting) == (SMALL, RECIPE)
    study.ask()
    study.tell(0, state=TrialState.FAIL)
    requeue(study, study.trials[0])
    _, again = study.trials
    assert (again.state, given_to(again)) == (TrialState.WAITING, (SMALL, RECIPE))
    assert again.user_attrs[ORIGIN] == "given: small"


def test_a_given_network_may_have_the_whole_budget_of_a_search_that_narrows_it(data: DataSet) -> None:
    study, cost = optuna.create_study(), cost_of(SMALL)
    candidates = CandidateSpace(SearchSpace.load("tiny"), Budget(cost.params - 1), RECIPE)
    for budget in (None, Budget(cost.params)):
        objective = Objective(candidates, *data.split(), seed=0, given_budget=budget)
        enqueue_given(study, [("small", SMALL, RECIPE.with_epochs(3 if budget else 2))])
        trial = study.ask()
        if budget is None:
            with pytest.raises(optuna.TrialPruned, match="1 parameters too many"):
                objective._check_budget(trial, cost)
        else:
            objective._check_budget(trial, cost)
            assert trial.user_attrs["excess"] == 0


@pytest.mark.usefixtures("one_process")
def test_a_search_trains_what_it_was_given_first(work: Path, invoke: Runner) -> None:
    furnish(work)
    (work / "mine.json").write_text(SMALL.to_json())
    options = [*SEARCH, "--start", "mine.json", "--max-params", 2_000, "--trials", 2, "--workers", 1]
    ended = invoke("search", *options, "--no-retrain", "--finalists", 2, "--finalist-seeds", 1)
    assert (ended.code, ended.err) == (0, "")
    assert "Given, and tried first: mine" in ended.out
    # The estimate is made from what was drawn: a given network may be far from it.
    assert ended.out.index("1/2") < ended.out.index("2/2") < ended.out.index("Estimated minutes")
    rows = [row for row in trial_rows(stored(work)) if row.verdict.counts]
    assert [row.origin for row in rows] == ["given: mine", "found"]
    assert rows[0].key == SMALL.key
    assert rows[0].verdict is Verdict.TRAINED
    summary = json.loads((work / "reports/nas_mnist/summary.json").read_text())
    assert set(summary["answers"]) >= {"most_accurate", "smaller"}
    assert {summary["answers"][name]["origin"] for name in summary["answers"]} <= {"given: mine", "found"}
    assert "given: mine" in (work / "reports/nas_mnist/trials.csv").read_text()
    for name in ("best", "smaller"):
        described = invoke("describe", name, "--json")
        assert json.loads(described.out)["key"] in {one["key"] for one in summary["answers"].values()}
    again = invoke("search", *options, "--no-retrain", "--finalists", 2, "--finalist-seeds", 1)
    assert again.code == 0
    assert len(trial_rows(stored(work))) == len(trial_rows(stored(work)))
