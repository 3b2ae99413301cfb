"""A small search space around a recipe: learning rate, augmentation, label smoothing, weight averaging."""

from __future__ import annotations

from ..recipes.recipe import Augmentation, Recipe
from .sampling import Params, TrialLike

FACTORS = {  # by parameter: factors of the recipe's own value
    "recipe.learning_rate": (0.5, 1.0, 2.0),
    "recipe.augmentation": (0.0, 0.5, 1.0, 1.5),  # of each part; of `_MILD` where the recipe has none
}
VALUES = {  # by parameter: alternatives to the recipe's own value
    "recipe.label_smoothing": (0.0, 0.05, 0.1),
    "recipe.average": (0.0, 0.99, 0.997),
}
_MILD = Augmentation(rotate=10.0, translate=0.1, scale=0.1)
_MAX_LEARNING_RATE = 100.0
_MAX_AUGMENTATION = {"rotate": 180.0, "translate": 1.0, "scale": 0.99, "shear": 60.0}


def draw_recipe(recipe: Recipe, trial: TrialLike) -> Recipe:
    """Draw a recipe around ``recipe``; values stay within the bounds of `Recipe`'s fields."""
    unchanged = encode_recipe(recipe)
    factor = {name: trial.suggest_categorical(name, factors) for name, factors in FACTORS.items()}
    value = {
        name: trial.suggest_categorical(name, sorted({float(unchanged[name]), *values}))
        for name, values in VALUES.items()
    }
    augmentation = (_MILD if recipe.augmentation.off else recipe.augmentation).model_dump()
    drawn = {
        "learning_rate": min(recipe.learning_rate * factor["recipe.learning_rate"], _MAX_LEARNING_RATE),
        "augmentation": {
            name: min(part * factor["recipe.augmentation"], _MAX_AUGMENTATION[name])
            for name, part in augmentation.items()
        },
        "label_smoothing": value["recipe.label_smoothing"],
        "average": value["recipe.average"],
    }
    return Recipe.model_validate(recipe.model_dump() | drawn)


def encode_recipe(recipe: Recipe) -> Params:
    """The parameters with which `draw_recipe` returns ``recipe`` itself."""
    return {
        "recipe.learning_rate": 1.0,
        "recipe.augmentation": 0.0 if recipe.augmentation.off else 1.0,
        "recipe.label_smoothing": recipe.label_smoothing,
        "recipe.average": recipe.average,
    }
