"""Learning rates by step, and flat parameters. The steps themselves: `test_plain_step`."""

from __future__ import annotations

import math

import pytest
import torch

from nas_mnist.engine.flat_parameters import ALIGNMENT, FlatParameters
from nas_mnist.models.network import build, stack_models
from nas_mnist.models.zoo import load
from nas_mnist.recipes.recipe import Recipe, make_recipe
from nas_mnist.training.schedule import ema_alphas, lr_factor, lr_table


def test_the_learning_rate_by_hand() -> None:
    linear, cosine, constant = (
        make_recipe({"schedule": kind, "warmup": 0.2}, "test") for kind in ("linear", "cosine", "constant")
    )
    assert [lr_factor(linear, p) for p in (0, 0.1, 0.2, 0.6, 1)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert [lr_factor(cosine, p) for p in (0, 0.1, 0.2, 0.6, 1)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert lr_factor(cosine, 0.4) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert [lr_factor(constant, p) for p in (0, 0.1, 0.2, 0.6, 1)] == pytest.approx([0, 0.5, 1, 1, 1])
    assert lr_factor(Recipe(schedule="cosine", warmup=0), 0) == 1


def test_the_tables_have_an_entry_for_every_step() -> None:
    recipe = Recipe(epochs=3, learning_rate=0.5, schedule="linear", average=0.75)
    assert lr_table(recipe, 2) == pytest.approx([0.5 * left / 6 for left in (5, 4, 3, 2, 1, 0)])
    alphas = ema_alphas(recipe, 20)
    assert len(alphas) == 60
    assert alphas[0] == pytest.approx(1 - 2 / 11)  # the first weights are soon forgotten
    assert alphas[-1] == 0.25
    assert alphas == sorted(alphas, reverse=True)


@pytest.mark.parametrize("name", ["reference", "mnist-500"])
def test_every_tensor_is_aligned_and_keeps_its_values(name: str) -> None:
    model = stack_models([build(load(name).architecture, seed) for seed in range(2)])
    before = {called: one.clone() for called, one in model.unique_tensors().items()}
    flat = FlatParameters(model)
    for called, one in model.unique_tensors().items():
        assert torch.equal(one, before[called])
        if one.is_floating_point():
            assert (one.data_ptr() - flat.all.data_ptr()) % (4 * ALIGNMENT) == 0
    for view in flat.gradients.values():
        assert (view.data_ptr() - flat.gradient.data_ptr()) % (4 * ALIGNMENT) == 0


def test_autograds_gradients_are_collected_and_the_others_stay() -> None:
    model = build(load("mnist-500").architecture, 0)
    flat = FlatParameters(model)
    flat.gradient.fill_(-1)
    first, *rest = flat.parameters
    for number, one in enumerate(rest):
        one.grad = torch.full_like(one, number)
    flat.collect_gradients()
    assert torch.equal(flat.gradients[first], torch.full_like(first, -1))
    for number, one in enumerate(rest):
        assert torch.equal(flat.gradients[one], torch.full_like(one, number))
    flat.zero_grad()
    assert all(one.grad is None for one in model.parameters())
