"""CUDA's kernels compute what torch's modules do, and become PTX.

The processor runs them here; where there is a GPU, that does, too.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import itertools
import random
import re
import weakref
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from candidates import random_architectures
from torch import Tensor, nn
from torch.nn import functional as F

from nas_mnist.core.errors import InputError
from nas_mnist.data.normalize import Normalizer
from nas_mnist.engine.cuda import kernels, writer
from nas_mnist.engine.cuda import launch as launcher
from nas_mnist.engine.cuda.body import Body
from nas_mnist.engine.cuda.launch import CudaDType, Launch
from nas_mnist.engine.cuda.network import GpuNetwork
from nas_mnist.engine.cuda.step import Descent, Learner
from nas_mnist.engine.kernels import convolution, parameters, pointwise
from nas_mnist.engine.kernels.compile import KERNELS, KernelInfo, kernel_name
from nas_mnist.engine.kernels.epilogue import AVERAGE_POOL, Epilogue
from nas_mnist.engine.stages import UnknownLayerError
from nas_mnist.engine.warp import Warp
from nas_mnist.models.architecture import Architecture
from nas_mnist.models.network import Network, build, stack_models
from nas_mnist.models.zoo import load
from nas_mnist.recipes.recipe import Augmentation, Recipe
from nas_mnist.training.augment import draw
from nas_mnist.training.augment import warp as warp_by_torch
from nas_mnist.training.evaluate import forward_on
from nas_mnist.training.loop import device_failure
from nas_mnist.training.optim import SGD, Numbers

CPU = torch.device("cpu")
DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]
on_devices = pytest.mark.parametrize("device", DEVICES)
FLOAT, DOUBLE = (np.dtype(kind) for kind in (np.float32, np.float64))


def network(architecture: Architecture, copies: int = 1) -> Network:
    """In float64 and in training mode, without dropout, with normalisations that differ by channel."""
    model = stack_models([build(architecture, seed) for seed in range(copies)]).double().train()
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1, 1.5)
            nn.init.normal_(module.bias)
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    return model


def by_torch(model: Network, images: Tensor) -> Tensor:
    """Class scores (copies * N, classes) by torch's modules, which take a network's channels side by side."""
    beside = images.unflatten(0, (model.copies, -1)).transpose(0, 1).flatten(1, 2)
    return model(beside).unflatten(1, (model.copies, -1)).transpose(0, 1).flatten(0, 1)  # type: ignore[no-any-return]


def check(model: Network, count: int, device: str) -> None:
    """Scores, gradients and running statistics of two training passes, and scores in evaluation."""
    theirs = copy.deepcopy(model)
    numbers = Numbers(model.to(device))
    ours = GpuNetwork(model, torch.device(device), numbers.gradients)
    for _ in range(2):
        images = torch.randn(model.copies * count, *model.architecture.input_shape, dtype=torch.float64)
        scores, expected = ours(images.to(device)).cpu(), by_torch(theirs, images)
        torch.testing.assert_close(scores, expected)
        weights = torch.randn_like(scores)
        numbers.gradient.fill_(torch.nan)
        theirs.zero_grad()
        (scores * weights).sum().backward()
        (expected * weights).sum().backward()
        for (name, other), mine in zip(theirs.named_parameters(), model.parameters(), strict=True):
            assert other.grad is not None
            scale = max(1.0, other.grad.abs().max().item())
            found = {name: numbers.gradients[mine].cpu()}
            torch.testing.assert_close(found, {name: other.grad}, rtol=1e-6, atol=1e-7 * scale)
    for (name, one), (_, same) in zip(model.named_buffers(), theirs.named_buffers(), strict=True):
        torch.testing.assert_close({name: one.cpu()}, {name: same})
    model.eval(), theirs.eval()
    with torch.inference_mode():
        torch.testing.assert_close(ours(images.to(device)).cpu(), by_torch(theirs, images))


@on_devices
def test_random_networks_agree_with_torch(device: str) -> None:
    rng, checked = random.Random(0), 0
    for architecture in random_architectures(120, seed=9):
        try:
            model = network(architecture, rng.choice((1, 1, 2)))
            check(model, rng.choice((2, 31, 32, 33)), device)
        except UnknownLayerError:
            continue
        checked += 1
    assert checked > 15


@on_devices
@pytest.mark.parametrize("name", ["reference", "mnist-1k"])
def test_networks_of_the_zoo_agree_with_torch(name: str, device: str) -> None:
    check(network(load(name).architecture, 2), 35, device)


@on_devices
def test_maps_with_several_readers_and_repeated_weights_agree_with_torch(device: str) -> None:
    blocks: list[dict[str, Any]] = [
        {"kind": "conv", "channels": 6, "norm": "after", "bias": True},
        {"kind": "residual", "body": [{"kind": "conv", "channels": 6, "bias": True}]},
        {"kind": "repeat"},
        {"kind": "repeat"},
        {"kind": "pool"},
        {"kind": "residual", "body": [{"kind": "separable", "channels": 9}]},
    ]
    for head in ({"kernel": 3, "padding": "same"}, {"order": "pool_then_conv", "bias": False}):
        fields = {"blocks": blocks, "head": head, "input_shape": [2, 11, 10], "classes": 4}
        check(network(Architecture.make(fields), 2), 5, device)


def test_dropout_keeps_whole_maps_and_lets_them_grow() -> None:
    model = build(load("reference").architecture, 0).double().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.25
    ours = GpuNetwork(model, CPU, Numbers(model).gradients)
    images = torch.randn(40, 1, 28, 28, dtype=torch.float64)
    scores = ours(images)
    body = ours.body(40, learns=True)
    kept = [one.keep for one in body.dropouts]  # (groups, C, 32), in the layers' order
    assert len(kept) == 5
    for one in kept:
        assert set(one.unique().tolist()) == {0.0, 1 / 0.75}
    masks = iter([one.transpose(1, 2).flatten(0, 1)[:40, :, None, None] for one in kept])
    with mock.patch.object(nn.Dropout2d, "forward", lambda _, maps: maps * next(masks)):
        torch.testing.assert_close(scores, copy.deepcopy(model)(images))
    before = body.dropouts[0].keep.clone()
    ours(images)
    assert not torch.equal(body.dropouts[0].keep, before)
    model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), model(images))


def test_a_pass_that_is_not_needed_any_more_gives_its_memory_back() -> None:
    model = build(load("mnist-500").architecture, 0)
    network = GpuNetwork(model, CPU, Numbers(model).gradients)
    gc.disable()
    try:
        for learns in (True, False):
            body = weakref.ref(network.body(3, learns))
            network.bodies.clear()
            assert body() is None
    finally:
        gc.enable()


def test_weights_that_are_elsewhere_are_found() -> None:
    model = build(load("mnist-500").architecture, 0).eval()
    network, images = GpuNetwork(model, CPU), torch.randn(3, 1, 28, 28)
    with torch.inference_mode():
        first = network(images)
        weight = next(model.parameters())
        weight.data = weight.data * 2
        second = network(images)
        torch.testing.assert_close(second, model(images))
    assert not torch.allclose(first, second)


def test_a_way_back_belongs_to_the_newest_pass() -> None:
    model = build(load("mnist-500").architecture, 0)
    network = GpuNetwork(model, CPU, Numbers(model).gradients)
    scores, _ = network(torch.randn(3, 1, 28, 28)), network(torch.randn(3, 1, 28, 28))
    with pytest.raises(AssertionError, match="came between"):
        scores.sum().backward()


def test_more_images_than_a_launch_can_take_are_refused() -> None:
    model = build(load("mnist-500").architecture, 0)
    network = GpuNetwork(model, CPU, Numbers(model).gradients)
    with (
        mock.patch("nas_mnist.engine.cuda.body._PARTS", 3),
        pytest.raises(InputError, match=r"batch_size: 200 images of this size \(use fewer\)"),
    ):
        network.body(200, learns=True)
    wide = Architecture.make({"blocks": [{"kind": "conv", "channels": 1024}] * 3})
    # The image, and maps before and behind their normalisation.
    assert GpuNetwork(build(wide, 0), CPU).batch == int(2e9 / (4 * 784 * 2 * (1 + 3 * 1024)))


def test_layers_without_kernels_are_left_to_torch() -> None:
    for fields in ({"blocks": [{"kind": "conv", "channels": 3, "activation": "silu"}]},
                   {"blocks": [{"kind": "conv", "channels": 3}], "head": {"norm": True}}):  # fmt: skip
        model = build(Architecture.make(fields), 0)
        assert forward_on(model, torch.device("cuda")) is model


def test_a_network_learns_in_training_mode_only() -> None:
    model = build(load("mnist-500").architecture, 0).eval()
    with pytest.raises(AssertionError, match="training mode"):
        GpuNetwork(model, CPU, Numbers(model).gradients)(torch.zeros(2, 1, 28, 28))


@on_devices
@pytest.mark.parametrize("augmented", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_steps_images_loss_and_gradient(augmented: bool, smoothing: float, device: str) -> None:
    """Two networks side by side, 35 images each: a full group and one that is not."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (90, 2, 11, 9), dtype=torch.uint8)
    labels = torch.randint(0, 4, (90,))
    fields = {"blocks": [{"kind": "conv", "channels": 3}], "input_shape": [2, 11, 9], "classes": 4}
    model = stack_models([build(Architecture.make(fields), seed) for seed in range(2)]).train()
    theirs, normalize = copy.deepcopy(model), Normalizer.of(images)
    numbers, warp = Numbers(model.to(device)), Warp(images.to(device), normalize)
    ours = GpuNetwork(model, torch.device(device), numbers.gradients)
    learner = Learner(ours, warp, 35, smoothing)
    picked = torch.randperm(90)[:70]
    learner.picked[0], learner.labels[:] = picked, labels[picked]
    shown = images[picked].float()
    if augmented:
        maps = draw(Augmentation(rotate=20, translate=0.2, scale=0.2), 70, torch.Generator().manual_seed(1))
        learner.lines[0] = warp.lines(maps.to(device))
        shown = warp_by_torch(shown, maps)
    numbers.gradient.fill_(torch.nan)
    losses = learner().cpu()
    target = learner.body.outcomes[learner.body.plan.image].maps.values.unflatten(0, (2, -1))
    seen = target.permute(0, 1, 5, 2, 3, 4).flatten(1, 2)[:, :35].flatten(0, 1)
    torch.testing.assert_close(seen.cpu(), normalize(shown), rtol=0, atol=3e-4)
    scores = by_torch(theirs, normalize(shown))
    each = F.cross_entropy(scores, labels[picked], label_smoothing=smoothing, reduction="none")
    expected = each.view(2, -1).mean(1)
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-4, atol=0)
    expected.sum().backward()
    for other, mine in zip(theirs.parameters(), model.parameters(), strict=True):
        assert other.grad is not None
        torch.testing.assert_close(numbers.gradients[mine].cpu(), other.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_descent_takes_the_steps_of_sgd_and_averages(nesterov: bool, weight_decay: float) -> None:
    models = [build(load("mnist-500").architecture, 0) for _ in range(2)]
    ours, theirs = map(Numbers, models)
    rates, shares = torch.tensor([0.1, 0.05, 0.02]), torch.tensor([0.9, 0.5, 0.1])
    done, rate = torch.zeros(1, dtype=torch.long), torch.zeros(())
    recipe = Recipe(momentum=0.8, nesterov=nesterov, weight_decay=weight_decay)
    where: Any = SimpleNamespace(kind=CudaDType(FLOAT, CPU))
    descent = Descent(where, ours, recipe, rates, done)
    averaged, average = ours.all.clone(), theirs.all.clone()
    descent.follow(averaged, ours.all, shares)
    sgd = SGD(theirs, rate, 0.8, nesterov, weight_decay)
    for step in range(3):
        gradient = torch.randn(len(ours.gradient), generator=torch.Generator().manual_seed(step))
        for numbers in (ours, theirs):
            numbers.gradient.copy_(gradient)
        descent.step()
        rate.copy_(rates[step])
        sgd.step()
        average.lerp_(theirs.all, shares[step])
        done += 1
        torch.testing.assert_close(ours.all, theirs.all)
        torch.testing.assert_close(averaged, average)


@pytest.fixture
def no_kernel_is_known() -> Any:
    """Kernels that were compiled before are compiled again, and those of a test are forgotten."""
    cached = [
        one
        for module in (convolution, kernels, parameters, pointwise)
        for one in vars(module).values()
        if hasattr(one, "cache_clear")
    ]
    for one in cached:
        one.cache_clear()
    yield
    for one in cached:
        one.cache_clear()


@pytest.mark.parametrize("capability", [(7, 0), (9, 0), (12, 0)])
@pytest.mark.usefixtures("no_kernel_is_known")
def test_every_kernel_becomes_ptx(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    codes: dict[str, list[str]] = {}
    handles = itertools.count(1)

    def compile_only(kind: CudaDType, write: Any, lanes: int) -> tuple[int, int]:
        code, arguments = writer.ptx(write, kind.numpy, lanes or kind.lanes, capability)
        codes.setdefault(kernel_name(write), []).append(code)
        return next(handles), arguments

    monkeypatch.setattr(CudaDType, "compile", compile_only)
    strided = [
        {"kind": kind, "channels": 9, "kernel": size, "stride": 2, "activation": "leaky_relu"}
        for kind in ("conv", "separable")
        for size in (5, 7)
    ]
    others = Architecture.make({"blocks": strided})
    for architecture in (load("reference").architecture, load("mnist-1k").architecture, others):
        model = build(architecture, 0)
        network = GpuNetwork(model, CPU, Numbers(model).gradients)
        for learns in (True, False):
            Body(network.plan, 3, 1, network.kind, network.gradients if learns else None)
    kind = CudaDType(FLOAT, CPU)
    for kernel in (kernels.augmented_images, kernels.cross_entropy, kernels.ema_update):
        kernel(kind)
    kernels.sgd_step(True, kind)
    pointwise.forward(Epilogue(norm=True, activation="LeakyReLU", pool=AVERAGE_POOL), True, kind)
    assert set(codes) == {
        *("forward", "backward", "batchnorm_backward", "batch_stats", "channel_sums"),
        *("global_average_pool", "global_average_pool_backward", "batchnorm_affine", "batchnorm_gradients"),
        *("gather_pointers", "dense", "depthwise", "dense_weight_gradient", "depthwise_weight_gradient"),
        *("reduce_blocks", "augmented_images", "cross_entropy", "sgd_step", "ema_update"),
    }
    major, minor = min(capability, (9, 0))
    assert len(codes["dense"]) > 8
    for name, code in ((name, code) for name, several in codes.items() for code in several):
        assert f".target sm_{major}{minor}" in code
        assert f".visible .entry {name}(" in code
        assert ".local" not in code  # everything is in registers
        assert set(re.findall(r"\b(?:ld|st)\.(\w+)", code)) <= {"param", "global"}  # where it is, is known
        reads_and_writes = ("batchnorm_affine", "batchnorm_gradients", "reduce_blocks")
        assert ("bar.warp.sync" in code) == (name in reads_and_writes)


def test_what_a_launch_asks_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = CudaDType(FLOAT, torch.device("cuda"))
    monkeypatch.setitem(KERNELS, 77, KernelInfo("test", 4))
    launch = Launch(kind, 77, [5, -6], items=9, tiles=8, chunks=3, models=2)
    assert launch.shape == (77, 3, 24, 1, 32, 4, 1, 0)  # three blocks of four warps for nine items, by part
    first = ctypes.cast(launch.pointers[0], ctypes.POINTER(ctypes.c_int64))
    assert [first[at] for at in range(5)] == [3, 4, 5, -6, 0]  # rows' parts, a network's groups, arguments
    library = mock.Mock()
    library.cuLaunchKernel.side_effect = [0, 700]
    library.cuGetErrorString.side_effect = lambda _, text: setattr(text._obj, "value", b"misaligned address")
    driver = launcher._Driver.__new__(launcher._Driver)
    driver.library = library
    monkeypatch.setattr(launcher, "_driver", lambda: driver)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=123))
    launcher.run([launch])
    assert library.cuLaunchKernel.call_args.args == (*launch.shape, 123, launch.pointers, None)
    with pytest.raises(torch.AcceleratorError, match="CUDA error: misaligned address") as raised:
        launcher.run([launch])
    assert device_failure(raised.value) == "device failed"
