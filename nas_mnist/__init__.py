"""Find, train, prove and hand over the best all-convolutional network that fits a parameter budget."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .models.architecture import Architecture
from .models.cost import Budget
from .recipes.recipe import Recipe
from .space.space import SearchSpace

if TYPE_CHECKING:
    from .search.config import SearchConfig
    from .search.pipeline import run_search
    from .training.loop import train

__all__ = ["Architecture", "Budget", "Recipe", "SearchConfig", "SearchSpace", "run_search", "train"]

_LAZY = {"SearchConfig": "search.config", "run_search": "search.pipeline", "train": "training.loop"}


def __getattr__(name: str) -> Any:
    """Import the other public names, and with some of them torch, on their first use."""
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
