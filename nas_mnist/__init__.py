"""Find, train, prove and hand over the best all-convolutional network that fits a parameter budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .models.architecture import Architecture
from .models.cost import Budget
from .recipes.recipe import Recipe
from .space.space import SearchSpace

if TYPE_CHECKING:
    from .training.loop import train

__all__ = ["Architecture", "Budget", "Recipe", "SearchSpace", "train"]


def __getattr__(name: str) -> Any:
    """Import `train`, and with it torch, on its first use."""
    if name == "train":
        from .training.loop import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
