"""What CUDA asks of a step that it records and replays, held where there is no CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nas_mnist import Architecture
from nas_mnist.data.dataset import DataSet
from nas_mnist.engine.cuda.network import GpuNetwork
from nas_mnist.engine.cuda.step import Descent
from nas_mnist.models.network import Network, build, stack_models
from nas_mnist.recipes.recipe import Augmentation, Distillation, Recipe
from nas_mnist.training import evaluate as scoring
from nas_mnist.training import step as steps
from nas_mnist.training.loop import train_together
from nas_mnist.training.optim import SGD
from nas_mnist.training.step import EAGER, Step

NETWORK = Architecture.make(
    {
        "blocks": [
            {"kind": "conv", "channels": 4, "stride": 2, "dropout": 0.1},
            {"kind": "separable", "channels": 6},
            {"kind": "pool"},
        ]
    }
)
RECIPE = Recipe(
    epochs=2,
    batch_size=30,
    learning_rate=0.1,
    momentum=0.8,
    weight_decay=1e-3,
    average=0.9,
    augmentation=Augmentation(rotate=10, translate=0.1),
    distillation=Distillation(teacher="mnist-1k"),
)


def make(data: DataSet, recipe: Recipe = RECIPE) -> Step:
    """Two networks side by side in training, as on CUDA but for the device."""
    model = stack_models([build(NETWORK, seed) for seed in range(2)])
    torch.manual_seed(0)
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    teacher = None if recipe.distillation.off else build(NETWORK, 7).eval()
    with mock.patch.object(steps, "forward_on", GpuNetwork):
        return Step(model, data.train, recipe, generators, teacher=teacher)


UNTAUGHT = Recipe.model_validate(RECIPE.model_dump(exclude={"distillation"}))


class Graph:
    """A CUDA graph that runs a step again instead of replaying its kernels."""

    def __init__(self, step: Step) -> None:
        self.step, self.replays = step, 0

    def replay(self) -> None:
        self.replays += 1
        self.step()


@contextmanager
def without_effect(graph: Graph) -> Iterator[None]:
    """What `torch.cuda.graph` does: nothing that is run within changes a number on the device."""
    step, default = graph.step, torch.default_generator
    assert isinstance(step.forward, GpuNetwork)
    if isinstance(step.optimizer, SGD | Descent):
        states = [step.optimizer.average]
    else:
        states = [numbers for one in step.optimizer.state.values() for numbers in one.values()]
    places = [
        step.numbers.all,
        step.averaged,
        step.loss,
        step.done,
        step.rate,
        *step.model.buffers(),
        *states,
        *(one.affine for body in step.forward.bodies.values() for one in body.outcomes.values()),
    ]
    before = [place.clone() for place in places]
    drawn = default.get_state()
    yield
    for place, numbers in zip(places, before, strict=True):
        place.copy_(numbers)
    default.set_state(drawn)


def stand_in(monkeypatch: pytest.MonkeyPatch, step: Step, recording: Any = without_effect) -> Graph:
    step.recorded, graph = True, Graph(step)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return graph


def numbers_of(step: Step) -> tuple[torch.Tensor, ...]:
    return step.numbers.all.clone(), step.averaged.clone(), step.loss.clone()


@pytest.mark.parametrize("recipe", [RECIPE, UNTAUGHT], ids=["taught", "untaught"])
@pytest.mark.parametrize("optimizer", ["sgd", "muon", "adamw"])
def test_recording_a_step_changes_nothing(
    optimizer: str, recipe: Recipe, tiny_data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.model_validate({**recipe.model_dump(), "optimizer": optimizer, "learning_rate": 0.01})
    parts = (2, EAGER + 1), (EAGER + 3,)  # steps, by epoch
    expected = make(tiny_data, recipe)
    recorded = make(tiny_data, recipe)
    for step in (expected, recorded):
        torch.manual_seed(1)
        graph = stand_in(monkeypatch, step) if step is recorded else None
        for epoch in parts:
            step.begin_epoch()
            for count in epoch:
                step.run(count)
    assert graph is not None
    assert graph.replays == sum(map(sum, parts)) - EAGER
    for one, other in zip(numbers_of(recorded), numbers_of(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_where_recording_fails_training_goes_on_step_by_step(
    tiny_data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def failing(graph: Graph) -> Iterator[None]:
        with without_effect(graph):
            yield
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    expected, unrecorded = make(tiny_data), make(tiny_data)
    torch.manual_seed(1)
    expected.begin_epoch()
    expected.run(EAGER + 4)
    torch.manual_seed(1)
    graph = stand_in(monkeypatch, unrecorded, failing)
    unrecorded.begin_epoch()
    with pytest.warns(UserWarning, match="one by one.*stream is capturing$") as warned:
        unrecorded.run(EAGER + 4)
    assert len(warned) == 1
    assert graph.replays == 0
    for one, other in zip(numbers_of(unrecorded), numbers_of(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("recipe", [RECIPE, UNTAUGHT], ids=["taught", "untaught"])
def test_a_step_reads_nothing_back(recipe: Recipe, tiny_data: DataSet) -> None:
    """CUDA cannot record a step in which the host reads a number of the device's."""
    step = make(tiny_data, recipe)
    step.begin_epoch()
    step()

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            read.append(str(func)) if "_local_scalar_dense" in str(func) else None
            return func(*args, **(kwargs or {}))

    read: list[str] = []
    with Reads():
        assert float(torch.ones(1)) == 1
        assert read  # it notices
        read.clear()
        step()
    assert read == []


@pytest.mark.parametrize("how", [{}, {"optimizer": "muon", "learning_rate": 0.02}, {"taught": True}], ids=str)
def test_a_step_as_on_cuda_learns_what_a_step_on_a_cpu_learns(
    how: dict[str, Any], five_thousand: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By CUDA's kernels, which the processor runs, with augmentation, two networks side by side."""
    still = Architecture.make(
        {
            "blocks": [
                {"kind": "conv", "channels": 8, "stride": 2},
                {"kind": "residual", "body": [{"kind": "separable", "channels": 8}]},
                {"kind": "repeat"},
                {"kind": "pool"},
            ]
        }
    )
    how = dict(how)
    taught = how.pop("taught", False)
    fields = (RECIPE if taught else UNTAUGHT).model_dump() | {"batch_size": 50, "label_smoothing": 0.1} | how
    recipe, teacher = Recipe.model_validate(fields), build(still, 7).eval() if taught else None
    data = five_thousand.train.take(torch.arange(0, 3000, 3))

    def results() -> tuple[torch.Tensor, torch.Tensor]:
        models = [build(still, seed) for seed in range(2)]
        epochs = list(train_together(models, data, recipe, seeds=(5, 6), score_on=data, teacher=teacher))
        losses = torch.tensor([[one.train_loss for one in each] for each in epochs])
        return losses, torch.tensor([one.score.loss for one in epochs[-1] if one.score])

    expected = results()
    made: list[GpuNetwork] = []

    def forward_on(model: Network, device: torch.device, *gradients: Any) -> GpuNetwork:
        made.append(GpuNetwork(model, device, *gradients))
        return made[-1]

    for module in (steps, scoring):
        monkeypatch.setattr(module, "forward_on", forward_on)
    found = results()
    assert len(made) == (3 if taught else 2)  # both side by side in training, and when they are scored
    assert not all(map(torch.equal, found, expected))  # other sums, rounded otherwise
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=0)
