"""What CUDA asks of a step that it records and replays, held where there is no CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nas_mnist import Architecture
from nas_mnist.data.dataset import DataSet
from nas_mnist.engine.cuda.backend import CudaBackend
from nas_mnist.engine.cuda.step import FusedSGD
from nas_mnist.models.network import Network, build, stack_models
from nas_mnist.recipes.recipe import Augmentation, Recipe
from nas_mnist.training import evaluate
from nas_mnist.training import step as step_module
from nas_mnist.training.loop import train_together
from nas_mnist.training.optim import AdamW
from nas_mnist.training.step import EAGER_STEPS, TrainStep

FIRST = {"kind": "conv", "channels": 4, "stride": 2, "dropout": 0.1}
NETWORK = Architecture.make({"blocks": [FIRST, {"kind": "separable", "channels": 6}, {"kind": "pool"}]})
RECIPE = Recipe(
    epochs=2, batch_size=30, learning_rate=0.1, momentum=0.8, weight_decay=1e-3, average=0.9,
    augmentation=Augmentation(rotate=10, translate=0.1),
)  # fmt: skip


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> list[CudaBackend]:
    """The backends for CUDA that the test makes; the processor runs them."""
    made: list[CudaBackend] = []

    def create_backend(network: Network, device: torch.device, _: object = None) -> CudaBackend:
        made.append(CudaBackend(network, device))
        return made[-1]

    for module in (step_module, evaluate):
        monkeypatch.setattr(module, "create_backend", create_backend)
    return made


def make(data: DataSet, recipe: Recipe = RECIPE) -> TrainStep:
    """Two networks side by side in training, as on CUDA but for the device."""
    model = stack_models([build(NETWORK, seed) for seed in range(2)])
    torch.manual_seed(0)
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    return TrainStep(model, data.train, recipe, generators)


class Graph:
    """A CUDA graph that runs a step again instead of replaying its kernels."""

    def __init__(self, step: TrainStep) -> None:
        self.step, self.replays = step, 0

    def replay(self) -> None:
        self.replays += 1
        self.step()


@contextmanager
def without_effect(graph: Graph) -> Iterator[None]:
    """As `torch.cuda.graph`: nothing that runs within it changes a number on the device."""
    step, default = graph.step, torch.default_generator
    assert isinstance(step.backend, CudaBackend)
    if isinstance(step.optimizer, AdamW):
        states = [step.optimizer.lr]
        states += [number for one in step.optimizer.adamw.state.values() for number in one.values()]
    else:
        assert isinstance(step.optimizer, FusedSGD)
        states = [step.optimizer.momentum_buffer]
    assert step.ema_parameters is not None
    backbones = step.backend._backbones.values()
    tensors = [
        step.parameters.all,
        step.ema_parameters,
        step.loss,
        step.tables.step_index,
        *step.model.buffers(),
        *states,
        *(one.affine for backbone in backbones for one in backbone.maps.values()),
    ]
    before = [tensor.clone() for tensor in tensors]
    generator_state = default.get_state()
    yield
    for tensor, numbers in zip(tensors, before, strict=True):
        tensor.copy_(numbers)
    default.set_state(generator_state)


def stand_in(monkeypatch: pytest.MonkeyPatch, step: TrainStep, recording: Any = without_effect) -> Graph:
    step.recordable, graph = True, Graph(step)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return graph


def numbers_of(step: TrainStep) -> list[torch.Tensor]:
    assert step.ema_parameters is not None
    return [step.parameters.all.clone(), step.ema_parameters.clone(), step.loss.clone()]


@pytest.mark.usefixtures("backends")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_recording_a_step_changes_nothing(
    optimizer: str, tiny_data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.model_validate({**RECIPE.model_dump(), "optimizer": optimizer, "learning_rate": 0.01})
    parts = (2, EAGER_STEPS + 1), (EAGER_STEPS + 3,)  # steps, by epoch
    expected, recorded = make(tiny_data, recipe), make(tiny_data, recipe)
    for step in (expected, recorded):
        torch.manual_seed(1)
        graph = stand_in(monkeypatch, step) if step is recorded else None
        for epoch in parts:
            step.begin_epoch()
            for count in epoch:
                step.run(count)
    assert graph is not None
    assert graph.replays == sum(map(sum, parts)) - EAGER_STEPS
    torch.testing.assert_close(numbers_of(recorded), numbers_of(expected), rtol=0, atol=0)


@pytest.mark.usefixtures("backends")
def test_if_recording_fails_training_goes_on_step_by_step(
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
    expected.run(EAGER_STEPS + 4)
    torch.manual_seed(1)
    graph = stand_in(monkeypatch, unrecorded, failing)
    unrecorded.begin_epoch()
    with pytest.warns(UserWarning, match="one by one.*stream is capturing$") as warned:
        unrecorded.run(EAGER_STEPS + 4)
    assert len(warned) == 1
    assert graph.replays == 0
    torch.testing.assert_close(numbers_of(unrecorded), numbers_of(expected), rtol=0, atol=0)


@pytest.mark.usefixtures("backends")
def test_the_host_reads_no_number_of_a_steps(tiny_data: DataSet) -> None:
    """CUDA cannot record a step in which the host reads a number of the device's."""
    step = make(tiny_data)
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


def test_two_networks_as_on_cuda_train_as_on_a_cpu(
    five_thousand: DataSet, request: pytest.FixtureRequest
) -> None:
    """By CUDA's kernels, which the processor runs, with augmentation, two networks side by side."""
    blocks = [{"kind": "conv", "channels": 8, "stride": 2}, {"kind": "repeat"}, {"kind": "pool"}]
    blocks[1:1] = [{"kind": "residual", "body": [{"kind": "separable", "channels": 8}]}]
    still = Architecture.make({"blocks": blocks})
    data = five_thousand.train.take(torch.arange(0, 3000, 6))

    def results() -> tuple[torch.Tensor, torch.Tensor]:
        models = [build(still, seed) for seed in range(2)]
        epochs = list(train_together(models, data, RECIPE, seeds=(5, 6), score_on=data))
        losses = torch.tensor([[one.train_loss for one in each] for each in epochs])
        return losses, torch.tensor([one.score.loss for one in epochs[-1] if one.score])

    expected = results()
    backends = request.getfixturevalue("backends")
    found = results()
    assert len(backends) == 2  # both networks side by side in training, and in evaluation
    assert not all(map(torch.equal, found, expected))  # other sums, rounded otherwise
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=0)
