"""Every backend takes the steps that `plain_step` defines in ordinary torch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from nas_mnist import Architecture
from nas_mnist.data.dataset import DataSet, Images
from nas_mnist.data.normalize import Normalizer
from nas_mnist.engine.cpu.backend import CpuBackend
from nas_mnist.engine.cuda.backend import CudaBackend
from nas_mnist.engine.torch_backend import TorchBackend
from nas_mnist.models.network import Network, build, stack_models, unstack_models
from nas_mnist.recipes.recipe import Augmentation, Recipe
from nas_mnist.training import step as step_module
from nas_mnist.training.augment import draw_affine_maps
from nas_mnist.training.loop import train
from nas_mnist.training.plain_step import plain_sgd, plain_step
from nas_mnist.training.schedule import ema_alphas, lr_table
from nas_mnist.training.step import TrainStep

STEPS, BATCH = 3, 35  # an epoch; a full batch tile and one that is not
BACKENDS: dict[str, Any] = {
    "cpu": lambda network, _, __: CpuBackend(network),
    "torch": lambda network, device, _: TorchBackend(network, device),
    "cuda": lambda network, device, _: CudaBackend(network, device),  # which the processor runs
}
NETWORK = Architecture.make(
    {
        "blocks": [
            {"kind": "conv", "channels": 6, "stride": 2, "bias": True},
            {"kind": "residual", "body": [{"kind": "separable", "channels": 6, "norm": "after"}]},
            {"kind": "repeat"},
            {"kind": "pool", "method": "average"},
            {"kind": "conv", "channels": 9, "activation": "hardswish"},
        ],
    }
)
RECIPE = Recipe(
    epochs=2, batch_size=BATCH, learning_rate=0.2, momentum=0.8, nesterov=True, weight_decay=0.05,
    schedule="linear", warmup=0.3, label_smoothing=0.1, average=0.3,
    augmentation=Augmentation(rotate=10, translate=0.1, scale=0.1, shear=5),
)  # fmt: skip
BARE = Recipe(epochs=2, batch_size=BATCH, learning_rate=0.1, momentum=0.9)  # nothing that is optional
ADAMW = RECIPE.model_copy(update={"optimizer": "adamw", "nesterov": False, "learning_rate": 0.003})


@pytest.fixture(scope="module")
def data(five_thousand: DataSet) -> Images:
    """The images of three batches, and nine more."""
    return five_thousand.train.take(torch.arange(0, 3000, 26)[: STEPS * BATCH + 9])


def plain(data: Images, recipe: Recipe, seed: int) -> tuple[list[float], Network, Network]:
    """The losses of the steps of all epochs, the network and its average."""
    model = build(NETWORK, seed)
    ema, optimizer = copy.deepcopy(model), plain_sgd(model, recipe)
    if recipe.optimizer == "adamw":
        betas = recipe.momentum, 0.999
        optimizer = torch.optim.AdamW(optimizer.param_groups, betas=betas, weight_decay=0.0)
    generator, losses = torch.Generator().manual_seed(seed), []
    for _ in range(recipe.epochs):
        order = torch.randperm(len(data), generator=generator)[: STEPS * BATCH]
        maps: list[Tensor | None] = [None] * STEPS
        if not recipe.augmentation.off:
            maps = list(draw_affine_maps(recipe.augmentation, len(order), generator).split(BATCH))
        for picked, moved in zip(order.split(BATCH), maps, strict=True):
            at, batch = len(losses), (data.images[picked], data.labels[picked], moved)
            lr, alpha = lr_table(recipe, STEPS)[at], ema_alphas(recipe, STEPS)[at]
            how: Any = {"normalize": Normalizer.of(data.images), "recipe": recipe}
            losses.append(plain_step(model, ema, optimizer, *batch, **how, lr=lr, ema_alpha=alpha).item())
    return losses, model, ema


def close(ours: Network, theirs: Network, start: Network, most: float = 1e-3) -> bool:
    """Whether two networks are the same but for rounding, compared with how far they have moved."""
    flat = [
        torch.cat([one.flatten().float() for one in network.unique_tensors().values()])
        for network in (ours, theirs, start)
    ]
    return bool((flat[0] - flat[1]).norm() < most * (flat[1] - flat[2]).norm())


@pytest.mark.parametrize(
    ("name", "copies", "recipe"),
    [
        *((name, 1, recipe) for name in BACKENDS for recipe in (RECIPE, BARE)),
        *((name, 2, recipe) for name in ("torch", "cuda") for recipe in (RECIPE, BARE)),
        ("torch", 1, ADAMW),
    ],
)
def test_a_backend_takes_the_plain_steps(
    name: str, copies: int, recipe: Recipe, data: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_module, "create_backend", BACKENDS[name])
    models = [build(NETWORK, seed) for seed in range(copies)]
    generators = [torch.Generator().manual_seed(seed) for seed in range(copies)]
    step = TrainStep(stack_models(models), data, recipe, generators)
    assert (step.steps, step.recordable) == (STEPS, False)
    expected = [plain(data, recipe, seed) for seed in range(copies)]
    losses = []
    for _ in range(recipe.epochs):
        step.begin_epoch()
        for _ in range(STEPS):
            before = step.loss.clone()
            step.run(1)
            losses.append((step.loss - before).tolist())
    # With AdamW, a gradient that is zero but for rounding makes a whole step.
    most = 0.02 if recipe is ADAMW else 1e-3
    for index, (plain_losses, model, ema) in enumerate(expected):
        assert [each[index] for each in losses] == pytest.approx(plain_losses, rel=most / 10)
        trained = [build(NETWORK, 0) for _ in range(copies)]
        unstack_models(step.model, trained)
        assert close(trained[index], model, models[index], most)
        unstack_models(step.result, trained)
        assert close(trained[index], ema if recipe.average else model, models[index], most)


def test_training_takes_the_plain_steps_and_reports_their_mean_loss(data: Images) -> None:
    model = build(NETWORK, 0)
    results = list(train(model, data, RECIPE, seed=0))
    losses, _, ema = plain(data, RECIPE, 0)
    expected = [sum(losses[:STEPS]) / STEPS, sum(losses[STEPS:]) / STEPS]
    assert [result.train_loss for result in results] == pytest.approx(expected, rel=1e-4)
    assert close(model, ema, build(NETWORK, 0))


@pytest.mark.parametrize(
    "change",
    [
        {"momentum": 0.7},
        {"nesterov": False},
        {"weight_decay": 0.0},
        {"label_smoothing": 0.0},
        {"schedule": "cosine"},
        {"warmup": 0.2},
        {"average": 0.2},
        {"augmentation": Augmentation(rotate=9, translate=0.1, scale=0.1, shear=5)},
    ],
    ids=str,
)
def test_the_comparison_notices_every_part_of_a_step(change: dict[str, Any], data: Images) -> None:
    _, model, ema = plain(data, RECIPE, 0)
    _, other, other_ema = plain(data, RECIPE.model_copy(update=change), 0)
    start = build(NETWORK, 0)
    assert not (close(other, model, start) and close(other_ema, ema, start))
