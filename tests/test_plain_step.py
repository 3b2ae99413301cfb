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
from nas_mnist.training.plain_step import plain_sgd, plain_step
from nas_mnist.training.schedule import ema_alphas, lr_table
from nas_mnist.training.step import TrainStep

STEPS, BATCH = 5, 35  # a full batch tile and one that is not
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
    epochs=1,
    batch_size=BATCH,
    learning_rate=0.2,
    momentum=0.8,
    nesterov=True,
    weight_decay=0.05,
    schedule="linear",
    warmup=0.3,
    label_smoothing=0.1,
    average=0.3,
    augmentation=Augmentation(rotate=10, translate=0.1, scale=0.1, shear=5),
)
BARE = Recipe(epochs=1, batch_size=BATCH, learning_rate=0.1, momentum=0.9)  # nothing that is optional


def plain(data: Images, recipe: Recipe, seed: int) -> tuple[list[float], Network, Network]:
    """The losses of the steps of one epoch, the network and its average."""
    model = build(NETWORK, seed)
    ema, optimizer = copy.deepcopy(model), plain_sgd(model, recipe)
    normalize = Normalizer.of(data.images)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data), generator=generator)[: STEPS * BATCH]
    maps: list[Tensor | None] = [None] * STEPS
    if not recipe.augmentation.off:
        maps = list(draw_affine_maps(recipe.augmentation, len(order), generator).split(BATCH))
    losses = []
    for index, picked in enumerate(order.split(BATCH)):
        lr, alpha = lr_table(recipe, STEPS)[index], ema_alphas(recipe, STEPS)[index]
        batch = data.images[picked], data.labels[picked], maps[index]
        how: Any = {"normalize": normalize, "recipe": recipe, "lr": lr, "ema_alpha": alpha}
        losses.append(plain_step(model, ema, optimizer, *batch, **how).item())
    return losses, model, ema


def close(ours: Network, theirs: Network, start: Network) -> bool:
    """Whether two networks are the same but for rounding, compared with how far they have moved."""
    flat = [
        torch.cat([one.flatten().float() for one in network.unique_tensors().values()])
        for network in (ours, theirs, start)
    ]
    return bool((flat[0] - flat[1]).norm() < 1e-3 * (flat[1] - flat[2]).norm())


@pytest.mark.parametrize("recipe", [RECIPE, BARE], ids=["everything", "bare"])
@pytest.mark.parametrize(
    ("name", "copies"), [("cpu", 1), ("torch", 1), ("torch", 2), ("cuda", 1), ("cuda", 2)]
)
def test_a_backend_takes_the_plain_steps(
    name: str, copies: int, recipe: Recipe, five_thousand: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = five_thousand.train.take(torch.arange(0, 3000, 3000 // (STEPS * BATCH + 9))[: STEPS * BATCH + 9])
    monkeypatch.setattr(step_module, "create_backend", BACKENDS[name])
    models = [build(NETWORK, seed) for seed in range(copies)]
    generators = [torch.Generator().manual_seed(seed) for seed in range(copies)]
    step = TrainStep(stack_models(models), data, recipe, generators)
    assert (step.steps, step.recordable) == (STEPS, False)
    expected = [plain(data, recipe, seed) for seed in range(copies)]
    losses = []
    step.begin_epoch()
    for _ in range(STEPS):
        before = step.loss.clone()
        step.run(1)
        losses.append((step.loss - before).tolist())
    for index, (plain_losses, model, ema) in enumerate(expected):
        assert [each[index] for each in losses] == pytest.approx(plain_losses, rel=1e-4)
        trained = [build(NETWORK, 0) for _ in range(copies)]
        unstack_models(step.model, trained)
        assert close(trained[index], model, models[index])
        unstack_models(step.result, trained)
        assert close(trained[index], ema if recipe.average else model, models[index])


@pytest.mark.parametrize(
    "change",
    [
        {"label_smoothing": 0.0},
        {"nesterov": False},
        {"weight_decay": 0.0},
        {"average": 0.2},
        {"augmentation": Augmentation(rotate=9, translate=0.1, scale=0.1, shear=5)},
    ],
    ids=str,
)
def test_the_comparison_notices_every_part_of_a_step(change: dict[str, Any], five_thousand: DataSet) -> None:
    data = five_thousand.train.take(torch.arange(0, 3000, 16))
    _, model, ema = plain(data, RECIPE, 0)
    _, other, other_ema = plain(data, RECIPE.model_copy(update=change), 0)
    start = build(NETWORK, 0)
    assert not (close(other, model, start) and close(other_ema, ema, start))
