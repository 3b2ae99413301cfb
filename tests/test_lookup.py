"""Names of networks: the zoo, results of earlier versions, and the public names of the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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
