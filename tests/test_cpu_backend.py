"""The backend with kernels for a CPU computes the same as torch's modules."""

from __future__ import annotations

import copy
import itertools
import math
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from candidates import random_architectures, varied
from conftest import run_python
from torch import Tensor, nn
from torch.nn import functional as F

from nas_mnist.data.normalize import Normalizer
from nas_mnist.engine.backend import create_backend
from nas_mnist.engine.batches import TorchImages
from nas_mnist.engine.cpu.backend import CpuBackend, CpuTrainer
from nas_mnist.engine.cpu.threads import reserve_threads, thread_count
from nas_mnist.engine.flat_parameters import FlatParameters
from nas_mnist.engine.kernels.compile import LANES
from nas_mnist.engine.stages import UnsupportedLayerError
from nas_mnist.engine.torch_backend import TorchBackend
from nas_mnist.models.architecture import Architecture
from nas_mnist.models.network import Network, build
from nas_mnist.models.zoo import load


def network(architecture: Architecture, seed: int = 0, dropout: bool = False) -> Network:
    """In float64 and in training mode, with normalisations that differ from channel to channel."""
    return varied(build(architecture, seed), dropout, seed)


def images_for(architecture: Architecture, count: int) -> Tensor:
    return torch.randn(count, *architecture.input_shape, dtype=torch.float64)


def trainer_of(model: Network, smoothing: float = 0.0) -> CpuTrainer:
    """A trainer for images and labels that the test makes itself."""
    none = torch.zeros(1, *model.architecture.input_shape, dtype=torch.uint8)
    images = TorchImages(none, Normalizer(0.0, 1.0))
    return CpuTrainer(CpuBackend(model), FlatParameters(model), images, torch.zeros(1), smoothing)


def check(ours: Network, images: Tensor, smoothing: float = 0.0) -> CpuTrainer:
    """Loss, gradients and running statistics of a training pass, and class scores in evaluation."""
    theirs, trainer = copy.deepcopy(ours), trainer_of(ours, smoothing)
    trainer.parameters.gradient.fill_(math.nan)
    labels = torch.randint(ours.architecture.classes, (len(images),))
    torch.manual_seed(1)
    loss = trainer.pass_through(images, labels)
    torch.manual_seed(1)
    expected = F.cross_entropy(theirs(images), labels, label_smoothing=smoothing)
    torch.testing.assert_close(loss[0], expected)
    expected.backward()
    found = {name: trainer.parameters.gradients[one] for name, one in ours.named_parameters()}
    gradients = {name: one.grad for name, one in theirs.named_parameters()}
    torch.testing.assert_close(found, gradients, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))
    with torch.inference_mode():
        torch.testing.assert_close(scores_of(ours.eval(), images), theirs.eval()(images))
    return trainer


def scores_of(model: Network, images: Tensor) -> Tensor:
    """Class scores (N, classes) in evaluation."""
    return CpuBackend(model).scores(images)[0]


def with_blocks(*blocks: dict[str, Any], size: Sequence[int] = (1, 9, 8), **head: Any) -> Architecture:
    return Architecture.make({"input_shape": list(size), "classes": 4, "blocks": list(blocks), "head": head})


@pytest.mark.slow
def test_random_networks_agree_with_torch() -> None:
    rng, linear_heads = random.Random(0), []
    for number, architecture in enumerate(random_architectures(150, seed=8)):
        model = network(architecture, number)
        images = images_for(architecture, rng.choice((2, 3, 8, 9, 17)))
        try:
            linear_heads.append(check(model, images, smoothing=rng.choice((0.0, 0.1))).linear_head)
        except UnsupportedLayerError:
            continue
    assert len(linear_heads) > 24
    assert sum(linear_heads) > 12


@pytest.mark.parametrize(
    ("head", "linear"),
    [
        ({"order": "pool_then_conv"}, True),
        ({"bias": False}, True),
        ({"kernel": 3}, False),
        ({"norm": True}, False),
    ],
)
def test_a_linear_head_needs_no_autograd(head: dict[str, Any], linear: bool) -> None:
    model = network(with_blocks({"kind": "conv", "channels": 3}, **head))
    for smoothing in (0.0, 0.2):
        trainer = check(model.train(), images_for(model.architecture, 19), smoothing=smoothing)
        assert trainer.linear_head == linear
        assert linear == all(one.grad is None for one in model.parameters())


@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu", "hardswish"])
@pytest.mark.parametrize("norm", ["none", "before", "after"])
def test_what_follows_a_convolution_agrees_with_torch(norm: str, activation: str) -> None:
    block = {"kind": "conv", "channels": 6, "norm": norm, "activation": activation, "bias": True}
    pools = [{"kind": "pool", "method": method} for method in ("max", "average")]
    model = network(with_blocks({"kind": "conv", "channels": 3}, block, block, pools[0], block, pools[1]))
    check(model, images_for(model.architecture, 5))


@pytest.mark.parametrize("kind", ["conv", "separable"])
@pytest.mark.parametrize(("kernel", "stride"), list(itertools.product((1, 3, 5, 7), (1, 2, 3, 4))))
def test_convolutions_agree_with_torch(kernel: int, stride: int, kind: str) -> None:
    for padding in ("same", "valid"):
        block = {"kind": kind, "kernel": kernel, "stride": stride, "padding": padding, "channels": 7}
        architecture = with_blocks({"kind": "conv", "channels": 5, "kernel": 1}, block, size=(1, 11, 9))
        check(network(architecture, kernel), images_for(architecture, LANES + 1))


def test_any_number_of_channels_agrees_with_torch_without_normalisation_too() -> None:
    for norm, channels in (("before", (1, 2, 3, 4, 5, 6, 7, 8, 9, 17)), ("none", (3, 2))):
        unit = {"kind": "conv", "norm": norm}
        blocks = [unit | {"channels": count, "kernel": 3 + count % 2 * 2} for count in channels]
        architecture = with_blocks(*blocks)
        check(network(architecture), images_for(architecture, 3))


def same_draws(self: nn.Dropout2d, maps: Tensor) -> Tensor:
    """Dropout of whole channels that draws as the compiled pass does."""
    if not self.training:
        return maps
    keep = torch.rand(maps.shape[:2]) >= self.p
    return maps * keep[:, :, None, None] / (1 - self.p)


@pytest.mark.parametrize("norm", ["before", "after"])
def test_dropout_drops_whole_channels_and_their_gradients(norm: str) -> None:
    block = {"kind": "conv", "channels": 8, "norm": norm, "dropout": 0.4}
    body = [block | {"kind": "separable", "middle": True}]
    architecture = with_blocks(block, {"kind": "pool"}, {"kind": "residual", "body": body}, block)
    with mock.patch.object(nn.Dropout2d, "forward", same_draws):
        check(network(architecture, dropout=True), images_for(architecture, 11))


def test_repeated_blocks_agree_with_torch() -> None:
    repeat, pool, first = {"kind": "repeat"}, {"kind": "pool"}, {"kind": "conv", "channels": 4, "bias": True}
    separable = {"kind": "separable", "channels": 4, "norm": "after", "bias": True}
    sum_ = {"kind": "residual", "body": [{"kind": "separable", "channels": 4}]}
    architecture = with_blocks(first, separable, repeat, repeat, first, pool, repeat, sum_, repeat)
    check(network(architecture), images_for(architecture, LANES + 1))


@pytest.mark.parametrize("name", ["reference", "mnist-16k"])
def test_float32_is_as_near_to_torch_as_torch_to_itself(name: str) -> None:
    architecture = load(name).architecture
    exact = build(architecture, 3).eval()
    images = torch.randn(20, 1, 28, 28)
    with torch.inference_mode():
        scores, expected = scores_of(exact, images), exact(images)
        truth = copy.deepcopy(exact).double()(images.double())
    assert scores.dtype == torch.float32
    assert (scores - truth).abs().max() <= 4 * (expected - truth).abs().max() + 1e-6


def test_threads_share_the_images_and_the_result_is_the_same() -> None:
    results = []
    for count in (1, 2, 3):
        trainer = trainer_of(network(load("mnist-16k").architecture))
        images = torch.linspace(-1, 1, (2 * LANES + 3) * 784, dtype=torch.float64).view(-1, 1, 28, 28)
        with mock.patch("torch.get_num_threads", return_value=count):
            loss = trainer.pass_through(images, torch.arange(len(images)) % 10)
        results.append((loss, trainer.parameters.gradient))
        torch.testing.assert_close(results[-1], results[0])


def test_torchs_threads_are_reserved_and_come_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), reserve_threads():
        with reserve_threads():
            assert thread_count() == before
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == thread_count() == before


def test_layers_without_kernels_are_left_to_torch() -> None:
    blocks = [{"kind": "conv", "channels": 4, "activation": name} for name in ("silu", "gelu")]
    for block in (*blocks, {"kind": "pool", "kernel": 3}, {"kind": "pool", "stride": 1}):
        model = network(with_blocks({"kind": "conv", "channels": 3}, block))
        with pytest.raises(UnsupportedLayerError):
            CpuBackend(model)
        backend, before = create_backend(model, torch.device("cpu"), "auto"), torch.get_num_threads()
        assert isinstance(backend, TorchBackend)
        with backend.reserve_threads():
            assert torch.get_num_threads() == before


def test_parameters_and_statistics_that_are_replaced_are_seen() -> None:
    architecture = with_blocks({"kind": "conv", "channels": 3}, {"kind": "conv", "channels": 4})
    ours, other = network(architecture).eval(), network(architecture, 1).eval()
    backend, images = CpuBackend(ours), images_for(architecture, 3)
    with torch.inference_mode():
        backend.scores(images)
        ours.load_state_dict(copy.deepcopy(other.state_dict()), assign=True)
        torch.testing.assert_close(backend.scores(images)[0], other(images))


def test_images_of_another_dtype_or_shape_are_refused() -> None:
    model = network(with_blocks({"kind": "conv", "channels": 3}))
    good = torch.zeros(2, 1, 9, 8, dtype=torch.float64)
    for images in (good.repeat(1, 1, 1, 2), good.repeat(1, 2, 1, 1), good.float()):
        with pytest.raises(ValueError, match="of another dtype or shape"):
            CpuBackend(model).scores(images)
        with pytest.raises(ValueError, match="of another dtype or shape"):
            trainer_of(model).pass_through(images, torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize("norm", ["before", "after"])
def test_the_variance_of_large_numbers_is_right_in_float32(norm: str) -> None:
    block = {"kind": "conv", "channels": 4, "bias": True, "norm": norm}
    architecture = with_blocks(block, size=(1, 28, 28))
    model = network(architecture).float()
    convolution = next(layer for layer in model.layers if isinstance(layer, nn.Conv2d))
    with torch.no_grad():
        convolution.bias.fill_(500.0)
    trainer, exact, images = trainer_of(model), copy.deepcopy(model).double(), torch.randn(40, 1, 28, 28)
    labels, variances = torch.zeros(40, dtype=torch.long), []
    norms = [next(one for one in each.layers if isinstance(one, nn.BatchNorm2d)) for each in (model, exact)]
    for _ in range(2):  # the value that is subtracted is the mean of the batch before
        before = [norm.running_var.clone().double() for norm in norms]
        trainer.pass_through(images, labels)
        exact(images.double())
        variances = [norm.running_var - 0.9 * old for norm, old in zip(norms, before, strict=True)]
    torch.testing.assert_close(variances[0].double(), variances[1], rtol=1e-3, atol=1e-4)


def test_vectors_of_another_length_compute_the_same(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor has 8 or 16 numbers in a vector; here are the others."""
    code = f"""
import nas_mnist.engine.kernels.compile as compiling
compiling.LANES = {24 - LANES}
import test_cpu_backend
assert test_cpu_backend.LANES == {24 - LANES}
for kind, kernel, stride in (("conv", 3, 1), ("separable", 5, 2), ("conv", 1, 1)):
    test_cpu_backend.test_convolutions_agree_with_torch(kernel, stride, kind)
test_cpu_backend.test_what_follows_a_convolution_agrees_with_torch("before", "relu")
import test_augment
test_augment.test_the_kernel_warps_images_as_torch_does((3, 10, 7), 2)
"""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    ended = run_python(["-c", code], work)
    assert ended.code == 0, ended.err


def test_nan_reaches_the_scores_and_the_loss() -> None:
    model = network(with_blocks({"kind": "conv", "channels": 3}, {"kind": "pool"}))
    images = images_for(model.architecture, 3)
    with torch.no_grad():
        next(iter(model.parameters()))[0, 0, 0, 0] = math.nan
    assert trainer_of(model).pass_through(images, torch.zeros(3).long()).isnan()
    assert scores_of(model.eval(), images).isnan().any()
    block = {"kind": "conv", "channels": 3, "norm": "none", "activation": "none", "kernel": 1}
    model = network(with_blocks(block, {"kind": "pool"})).eval()
    images = torch.zeros(LANES, 1, 9, 8, dtype=torch.float64)
    for place in range(4):
        images[place, 0, place // 2, place % 2] = math.nan
    assert scores_of(model, images).isnan().any(1).tolist() == [True] * 4 + [False] * (LANES - 4)
