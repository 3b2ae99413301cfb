"""The learning-rate schedule and the moving average of weights, as one value a step."""

from __future__ import annotations

import math

from ..recipes.recipe import Recipe


def lr_factor(recipe: Recipe, progress: float) -> float:
    """The learning rate as a share of its peak at ``progress`` (0 to 1) through all steps."""
    if progress < recipe.warmup:
        return progress / recipe.warmup
    after_warmup = (progress - recipe.warmup) / (1 - recipe.warmup)  # 0 to 1
    if recipe.schedule == "cosine":
        return (1 + math.cos(math.pi * after_warmup)) / 2
    return 1 - after_warmup if recipe.schedule == "linear" else 1.0


def lr_table(recipe: Recipe, steps: int) -> list[float]:
    """The learning rate of every step of a training with ``steps`` steps an epoch."""
    total = recipe.epochs * steps
    return [recipe.learning_rate * lr_factor(recipe, (step + 1) / total) for step in range(total)]


def ema_alphas(recipe: Recipe, steps: int) -> list[float]:
    """The weight of the newest parameters in their moving average, by step.

    The decay rises to the recipe's, so that the first weights, which are random, are soon forgotten.
    """
    return [1 - min(recipe.average, (2 + step) / (11 + step)) for step in range(recipe.epochs * steps)]
