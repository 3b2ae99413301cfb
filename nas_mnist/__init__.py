"""Find, train, prove and hand over the best all-convolutional network that fits a parameter budget.

``import nas_mnist as nm``; then for example ``nm.run_search(max_params=5_000, trials=20)``,
``nm.find_classifier("mnist-4k")`` or ``nm.cost_of(architecture)``. Every name is imported on its first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.errors import InputError, NoResultError
    from .data.dataset import DataSet, Images
    from .data.dataset import load as load_data
    from .lookup import find_classifier, resolve
    from .models.architecture import Architecture
    from .models.cost import Budget, Cost, cost_of
    from .models.network import build
    from .predict import classify
    from .recipes.recipe import Recipe, load_recipe
    from .report.layer_table import layer_table
    from .search.config import SearchConfig
    from .search.found import Found, FoundNetwork, run_search
    from .space.space import SearchSpace
    from .training.classifier import Classifier
    from .training.evaluate import evaluate
    from .training.final import Run, retrain
    from .training.loop import train

_PLACES = {  # MODULE or MODULE:NAME, by public name
    # searching
    "run_search": "search.found",
    "Found": "search.found",
    "FoundNetwork": "search.found",
    "SearchConfig": "search.config",
    "SearchSpace": "space.space",
    # describing and counting
    "Architecture": "models.architecture",
    "Budget": "models.cost",
    "Cost": "models.cost",
    "cost_of": "models.cost",
    "layer_table": "report.layer_table",
    "resolve": "lookup",
    # training
    "Recipe": "recipes.recipe",
    "load_recipe": "recipes.recipe",
    "DataSet": "data.dataset",
    "Images": "data.dataset",
    "load_data": "data.dataset:load",
    "build": "models.network",
    "train": "training.loop",
    "retrain": "training.final",
    "Run": "training.final",
    "evaluate": "training.evaluate",
    # using
    "Classifier": "training.classifier",
    "find_classifier": "lookup",
    "classify": "predict",
    # errors
    "InputError": "core.errors",
    "NoResultError": "core.errors",
}
__all__ = [*_PLACES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """Import a public name, and with some of them torch, on its first use."""
    if name == "__version__":
        from importlib.metadata import version

        return version("nas-mnist")
    if name in _PLACES:
        module, _, attribute = _PLACES[name].partition(":")
        found = getattr(import_module(f".{module}", __name__), attribute or name)
        return globals().setdefault(name, found)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
