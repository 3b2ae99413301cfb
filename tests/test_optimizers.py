"""Learning rates by step, flat parameters, and SGD on all of them at once."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nas_mnist.engine.flat_parameters import ALIGNMENT, FlatParameters
from nas_mnist.engine.sgd import SGD, StepTables
from nas_mnist.models.network import Network, build, stack_models
from nas_mnist.models.zoo import load
from nas_mnist.recipes.recipe import Recipe, make_recipe
from nas_mnist.training.schedule import ema_alphas, lr_factor, lr_table


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_the_learning_rate_warms_up_to_its_peak_then_falls_to_zero(schedule: str, warmup: float) -> None:
    recipe = make_recipe({"schedule": schedule, "warmup": warmup}, "test")
    factors = [lr_factor(recipe, step / 100) for step in range(101)]
    peak = int(100 * warmup)
    assert factors[peak] == max(factors) == pytest.approx(1)
    assert factors[-1] == pytest.approx(0, abs=1e-12)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert all(-1e-12 <= factor <= 1 + 1e-12 for factor in factors)


def test_the_learning_rate_by_hand() -> None:
    linear, cosine, constant = (
        make_recipe({"schedule": kind, "warmup": 0.2}, "test") for kind in ("linear", "cosine", "constant")
    )
    assert [lr_factor(linear, p) for p in (0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.5, 1, 0.5, 0])
    assert [lr_factor(cosine, p) for p in (0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.5, 1, 0.5, 0])
    assert lr_factor(cosine, 0.4) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert [lr_factor(constant, p) for p in (0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.5, 1, 1, 1])


def test_the_tables_have_an_entry_for_every_step() -> None:
    recipe = Recipe(epochs=3, learning_rate=0.5, schedule="linear", average=0.75)
    assert lr_table(recipe, 2) == pytest.approx([0.5 * left / 6 for left in (5, 4, 3, 2, 1, 0)])
    alphas = ema_alphas(recipe, 20)
    assert len(alphas) == 60
    assert alphas[0] == pytest.approx(1 - 2 / 11)  # the first weights are soon forgotten
    assert alphas[-1] == 0.25
    assert alphas == sorted(alphas, reverse=True)


def network() -> Network:
    return stack_models([build(load("mnist-500").architecture, seed) for seed in range(2)]).double()


def gradient_for(flat: FlatParameters, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(len(flat.gradient), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_sgd_takes_the_steps_of_torchs_and_averages(weight_decay: float, nesterov: bool) -> None:
    model = network()
    flat, ema = FlatParameters(model), FlatParameters(network()).all
    lrs, alphas = torch.tensor([0.1, 0.05, 0.02]), torch.tensor([0.9, 0.5, 0.1])
    tables = StepTables(torch.zeros(1, dtype=torch.long), lrs, alphas)
    recipe = Recipe(momentum=0.9, nesterov=nesterov, weight_decay=weight_decay)
    optimizer = SGD(flat, recipe, tables, ema)
    expected = [flat.weights.clone().requires_grad_(), flat.others.clone().requires_grad_()]
    expected_ema = ema.clone()
    groups = [{"params": expected[:1], "weight_decay": weight_decay}, {"params": expected[1:]}]
    sgd = torch.optim.SGD(groups, momentum=0.9, nesterov=nesterov)
    for step in range(3):
        flat.gradient.copy_(gradient_for(flat, step))
        expected[0].grad, expected[1].grad = flat.weight_gradient.clone(), flat.other_gradient.clone()
        for group in sgd.param_groups:
            group["lr"] = float(lrs[step])
        optimizer.step()
        sgd.step()
        tables.step_index.add_(1)
        torch.testing.assert_close(flat.weights, expected[0].detach())
        torch.testing.assert_close(flat.others, expected[1].detach())
        expected_ema += (flat.all - expected_ema) * float(alphas[step])
        torch.testing.assert_close(ema, expected_ema)


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
    model = network()
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
