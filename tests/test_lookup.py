"""Names of networks: the zoo, results of earlier versions, and the public names of the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import stored

from nas_mnist.core.errors import InputError
from nas_mnist.lookup import resolve
from nas_mnist.recipes.recipe import Recipe, stored_recipe

pytestmark = pytest.mark.usefixtures("no_figures")

REPORTS = Path(__file__).parents[1] / "reports"
RESULTS = sorted(REPORTS.rglob("result.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: str(path.parent.relative_to(REPORTS)))
def test_committed_results_are_read(path: Path) -> None:
    found = resolve(str(path.parent))
    stored = json.loads(path.read_text())
    assert found.architecture.key == stored["key"]
    assert found.recipe.epochs == stored["recipe"]["epochs"]
    assert found.weights is None


def test_stored_recipes_of_earlier_versions_are_read() -> None:
    off = {"teacher": "", "share": 0.7, "temperature": 3.0}
    assert stored_recipe({"epochs": 3, "distillation": off}, "result") == Recipe(epochs=3)
    with pytest.raises(InputError, match="distillation: unknown field"):
        stored_recipe({"distillation": off | {"teacher": "mnist-19k"}}, "result")


def test_the_smaller_answer_says_so_where_it_is_the_best_one(copied: Path) -> None:
    study = stored(copied)
    answers = study.user_attrs["answers"]
    for other, says in ((True, False), (False, True)):
        smaller = answers["most_accurate"] | ({"key": "0" * 16} if other else {})
        study.set_user_attr("answers", answers | {"smaller": smaller})
        assert ("which is the best one itself" in resolve("smaller").about) == says
        assert "which is the best one itself" not in resolve("best").about
