"""One meaning of a budget, and warnings before a training."""

from __future__ import annotations

import pytest

from nas_mnist.lookup import resolve
from nas_mnist.models import zoo
from nas_mnist.models.architecture import Architecture
from nas_mnist.models.cost import Budget, cost_of
from nas_mnist.recipes.recipe import RECIPES, Recipe, load_recipe
from nas_mnist.study.config import StudyConfig
from nas_mnist.training.requirements import exact_budget, requirements
from nas_mnist.training.stability import stability_warning

NETWORK = Architecture.make({"blocks": [{"kind": "conv", "channels": 8}]})
PARAMS = cost_of(NETWORK).params


def verdicts(accuracy: float | None, dataset: str, budget: Budget | None) -> dict[str, bool]:
    return {one.what: one.met for one in requirements(NETWORK, 20, accuracy, dataset, budget)}


def test_fewer_than_20000_is_asked_only_where_the_exercise_is() -> None:
    always = {"epochs <= 20": True, "no fully connected layer": True}
    exercise = {"accuracy >= 99.4%": False, "parameters < 20,000": True}
    assert verdicts(0.99, "mnist", Budget(20_000)) == exercise | always
    own, tight = "parameters <= 20,000, the budget", f"parameters <= {PARAMS:,}, the budget"
    assert verdicts(0.99, "fashion-mnist", Budget(20_000)) == {own: True}
    assert verdicts(0.99, "folder:own", None) == {}
    (asked, *_) = requirements(
        NETWORK, 20, 0.9567, "mnist-5k", None, target=0.957
    )  # instead of the exercise's
    assert (asked.what, asked.got, asked.met) == ("accuracy >= 95.7%", "95.67%", False)
    (asked,) = requirements(NETWORK, 20, 0.9, "folder:own", None, target=0.9)
    assert asked.met
    assert verdicts(None, "mnist-5k", Budget(PARAMS)) == {tight: True} | always
    assert verdicts(None, "mnist", Budget(PARAMS - 1))[f"parameters <= {PARAMS - 1:,}, the budget"] is False
    assert verdicts(None, "mnist", None) == always  # of a network without a search


@pytest.mark.parametrize("dataset", ["mnist", "mnist-5k", "fashion-mnist"])
@pytest.mark.parametrize("limit", [PARAMS - 1, PARAMS, PARAMS + 1, 19_999, 20_000])
def test_a_search_hands_over_nothing_that_its_own_verdict_refuses(
    dataset: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas_mnist.training.requirements.MAX_PARAMS", PARAMS)  # so that it lies on the budget
    budget = exact_budget(Budget(limit), dataset)
    assert budget.fits(cost_of(NETWORK)) == all(verdicts(None, dataset, budget).values())
    assert budget.fits(cost_of(NETWORK)) == all(verdicts(None, dataset, Budget(limit)).values())


def test_the_budget_of_a_study_is_at_most_what_the_exercise_allows() -> None:
    def limit(data: str, params: int) -> int:
        fields = {"space": "", "recipe": "", "split": "", "epochs": 1}
        return StudyConfig(data=data, max_params=params, **fields).budget.max_params

    assert [limit("mnist 0123", params) for params in (20_000, 20_001, 5_000)] == [19_999, 20_001, 5_000]
    assert limit("fashion-mnist 0123", 20_000) == 20_000


def test_the_reference_is_trained_by_the_recipe_that_reaches_the_accuracy() -> None:
    found = resolve("reference")
    assert (found.recipe_name, found.recipe) == ("default", load_recipe("default"))
    assert min(found.test_accuracies) > 0.994
    assert (found.on("mnist").budget, found.on("fashion-mnist").budget) == (20_000, None)


def test_a_recipe_that_is_too_fast_for_a_packaged_network_has_a_warning() -> None:
    warned = {
        (name, recipe)
        for name in zoo.names()
        for recipe in RECIPES
        if stability_warning(zoo.load(name).architecture, load_recipe(recipe))
    }
    assert warned == {("reference", "small"), ("reference", "tiny")}  # measured: these learn nothing


def test_the_warning_names_the_block_and_what_to_do() -> None:
    plain = {"kind": "conv", "channels": 2, "norm": "none"}
    fast = Recipe(learning_rate=0.1, batch_size=32)
    warning = stability_warning(Architecture.make({"blocks": [plain, plain]}), fast)
    assert warning.startswith("blocks[0] has no normalisation: with learning_rate 0.1 in batches of 32")
    linear = Architecture.make({"blocks": [plain | {"activation": "none"}, {"kind": "conv", "channels": 2}]})
    conv = {"kind": "conv", "channels": 4, "activation": "none"}
    shortcut = {
        "kind": "residual",
        "body": [conv],
        "activation": "relu",
    }  # of normalised body, and a convolution
    for network, recipe in (
        (NETWORK, fast),
        (linear, fast),
        (Architecture.make({"blocks": [shortcut, {"kind": "conv", "channels": 2}]}), fast),
        (Architecture.make({"blocks": [plain, plain]}), Recipe(learning_rate=0.06, batch_size=32)),
        (Architecture.make({"blocks": [plain, plain]}), Recipe(optimizer="adamw", batch_size=32)),
    ):
        assert stability_warning(network, recipe) == ""
