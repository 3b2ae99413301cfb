"""Recipes: packaged, read from TOML, refused with the field, changed, and drawn around."""

from __future__ import annotations

import random
from typing import Any

import pytest

from nas_mnist.core.errors import InputError
from nas_mnist.recipes.recipe import RECIPES, Augmentation, Recipe, current_name, load_recipe, make_recipe
from nas_mnist.space.recipe_space import FACTORS, VALUES, draw_recipe, encode_recipe
from nas_mnist.space.sampling import FixedParams, RandomSampler

NESTEROV = "nesterov: true needs optimizer 'sgd' and a momentum above 0"
BAD_RECIPES = [
    ({"epochs": 0}, "epochs: 0 ("),
    ({"epochs": 21}, "epochs: 21 ("),
    ({"epochs": "20"}, "epochs: '20' ("),
    ({"batch_size": 0}, "batch_size: 0 ("),
    ({"optimizer": "adam"}, "optimizer: 'adam' (use sgd or adamw)"),
    ({"learning_rate": 0}, "learning_rate: 0 ("),
    ({"learning_rate": float("nan")}, "learning_rate: nan ("),
    ({"momentum": 1.0}, "momentum: 1.0 ("),
    ({"weight_decay": -1e-3}, "weight_decay: -0.001 ("),
    ({"schedule": "step"}, "schedule: 'step' (use constant, cosine or linear)"),
    ({"warmup": 1.0}, "warmup: 1.0 ("),
    ({"label_smoothing": 1.0}, "label_smoothing: 1.0 ("),
    ({"average": 1.0}, "average: 1.0 ("),
    ({"dropout": 0.1}, "dropout: unknown field"),
    ({"augmentation": {"flip": True}}, "augmentation.flip: unknown field"),
    ({"augmentation": {"rotate": 181}}, "augmentation.rotate: 181 ("),
    ({"nesterov": True, "optimizer": "adamw"}, NESTEROV),
    ({"nesterov": True, "momentum": 0.0}, NESTEROV),
]


@pytest.mark.parametrize(("fields", "said"), BAD_RECIPES, ids=str)
def test_a_bad_recipe_is_refused_with_field_and_value(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        make_recipe(fields, "my.toml")
    assert str(refused.value).startswith(f"my.toml: {said}")


def test_packaged_recipes() -> None:
    published = load_recipe("published")
    assert (published.epochs, published.batch_size) == (20, 64)
    assert (published.learning_rate, published.momentum) == (0.01, 0.9)
    assert (published.optimizer, published.average, published.weight_decay) == ("sgd", 0, 0)
    assert published.augmentation.off
    assert max(load_recipe(name).epochs for name in RECIPES) == 20
    with pytest.raises(
        InputError, match=r"recipe: 'fast' is not known \(use default, small, tiny, published"
    ):
        load_recipe("fast")


def test_fields_behind_a_colon_change_a_recipe() -> None:
    tiny = load_recipe("tiny")
    changed = load_recipe("tiny:learning_rate=0.5, augmentation.rotate = 3,schedule=linear,nesterov=false")
    said = {
        "learning_rate": 0.5,
        "augmentation": tiny.augmentation.model_dump() | {"rotate": 3.0},
        "schedule": "linear",
        "nesterov": False,
    }
    assert changed.model_dump() == tiny.model_dump() | said


def test_another_number_of_epochs_is_another_recipe() -> None:
    short = Recipe(epochs=2)
    assert short.with_epochs(3).digest == Recipe(epochs=3).digest != short.digest
    assert short.with_epochs(2).digest == short.digest


# Digests that studies store; a change would make them refuse to continue.
DIGESTS = {
    "default": "7c57add8451ebdf7",
    "published": "a89399e992620617",
    "small": "56b6f14218155ab4",
    "tiny": "715a3222e3a29861",
}


def test_digests_of_packaged_recipes_never_change() -> None:
    assert {name: load_recipe(name).digest for name in DIGESTS} == DIGESTS


def test_the_older_name_of_a_recipe_is_accepted_and_shown_as_the_current_one() -> None:
    assert load_recipe("seed") == load_recipe("published")
    assert load_recipe("seed:epochs=3") == load_recipe("published").with_epochs(3)
    assert current_name("seed") == "published"
    assert [current_name(name) for name in RECIPES] == list(RECIPES)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ("speed=1", "tiny: 'speed' is not known (use epochs, batch_size, "),
        ("augmentation.flip=1", "tiny: 'augmentation.flip' is not known (use rotate, "),
        ("epochs=2,momentum", "tiny: 'momentum' changes nothing (use field=value,field=value)"),
        ("epochs=0", "tiny:epochs=0: epochs: 0 (use at least 1)"),
    ],
)
def test_a_bad_change_is_refused_in_one_line(changes: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        load_recipe(f"tiny:{changes}")
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)


def test_batches_and_learning_rate_shrink_together_where_the_images_are_few() -> None:
    recipe = Recipe(batch_size=256, learning_rate=0.2, min_steps=40)
    assert recipe.scaled_to(50_000) is recipe
    assert recipe.scaled_to(10_240) is recipe
    small = recipe.scaled_to(4_000)
    assert (small.batch_size, small.learning_rate) == (100, pytest.approx(0.2 * 100 / 256))
    assert small.scaled_to(4_000) is small
    assert recipe.scaled_to(79).batch_size == recipe.scaled_to(3).batch_size == 2
    assert Recipe(batch_size=256).scaled_to(100).batch_size == 256


LIMITS = Recipe(learning_rate=100.0, augmentation=Augmentation(rotate=180, translate=1, scale=0.9, shear=60))


@pytest.mark.parametrize("recipe", [load_recipe("default"), load_recipe("published"), LIMITS])
def test_recipes_are_drawn_around_a_recipe(recipe: Recipe) -> None:
    assert draw_recipe(recipe, FixedParams(encode_recipe(recipe))) == recipe
    seen = set()
    for seed in range(200):
        sampler = RandomSampler(random.Random(seed))
        varied = draw_recipe(recipe, sampler)
        assert set(sampler.params) == {*FACTORS, *VALUES} == set(encode_recipe(recipe))
        fixed = {"learning_rate", "augmentation", "label_smoothing", "average"}
        assert varied.model_dump(exclude=fixed) == recipe.model_dump(exclude=fixed)
        seen.add(varied.digest)
    assert len(seen) > 50
