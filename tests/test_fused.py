"""The compiled pass on a CPU computes what torch's own modules compute."""

from __future__ import annotations

import copy
import itertools
import math
import os
import random
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from candidates import random_architectures
from torch import Tensor, nn
from torch.nn import functional as F

from nas_mnist.engine import vectors
from nas_mnist.engine.fused import FusedNetwork, lending
from nas_mnist.engine.threads import own_threads, threads
from nas_mnist.engine.vectors import LANES
from nas_mnist.models.architecture import Architecture
from nas_mnist.models.network import Network, build
from nas_mnist.models.zoo import load


def network(architecture: Architecture, seed: int = 0, dropout: bool = False) -> Network:
    """In float64 and in training mode, with normalisations that differ from channel to channel."""
    model = build(architecture, seed).double().train()
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1, 1.5)
            nn.init.normal_(module.bias)
        if isinstance(module, nn.Dropout2d) and not dropout:
            module.p = 0.0
    return model


def images_for(architecture: Architecture, count: int) -> Tensor:
    return torch.randn(count, *architecture.input_shape, dtype=torch.float64)


def check(ours: Network, theirs: Network, images: Tensor) -> None:
    """Scores, gradients and running statistics of a training pass, and scores in evaluation."""
    fused = FusedNetwork(ours)
    assert fused.plan is not None
    weights = torch.randn(len(images), ours.architecture.classes, dtype=images.dtype)
    torch.manual_seed(1)
    scores = fused(images)
    torch.manual_seed(1)
    expected = theirs(images)
    torch.testing.assert_close(scores, expected)
    (scores * weights).sum().backward()
    (expected * weights).sum().backward()
    for (name, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        scale = max(1.0, other.grad.abs().max().item())
        torch.testing.assert_close({name: mine.grad}, {name: other.grad}, rtol=1e-6, atol=1e-7 * scale)
    for (name, one), (_, same) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        torch.testing.assert_close({name: one}, {name: same})
    with torch.inference_mode():
        torch.testing.assert_close(FusedNetwork(ours.eval())(images), theirs.eval()(images))


def check_learning(ours: Network, images: Tensor, smoothing: float) -> bool:
    """The loss, and the gradients that are written: those of autograd through torch's modules."""
    ours.zero_grad()
    theirs = copy.deepcopy(ours)
    gradients = {one: torch.full_like(one, math.nan) for one in ours.parameters()}
    fused = FusedNetwork(ours, gradients)
    if not fused.learns:
        return False
    labels = torch.randint(ours.architecture.classes, (len(images),))
    torch.manual_seed(1)
    loss = fused.learn(images, labels, smoothing)
    torch.manual_seed(1)
    expected = F.cross_entropy(theirs(images), labels, label_smoothing=smoothing)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-9)
    for (name, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert mine.grad is None
        assert other.grad is not None
        scale = max(1.0, other.grad.abs().max().item())
        torch.testing.assert_close({name: gradients[mine]}, {name: other.grad}, rtol=1e-6, atol=1e-7 * scale)
    return True


def with_blocks(*blocks: dict[str, Any], size: Sequence[int] = (1, 9, 8), **head: Any) -> Architecture:
    return Architecture.make({"input_shape": list(size), "classes": 4, "blocks": list(blocks), "head": head})


def test_random_networks_agree_with_torch() -> None:
    rng, checked, learned = random.Random(0), 0, 0
    for number, architecture in enumerate(random_architectures(250, seed=8)):
        model = network(architecture, number)
        if FusedNetwork(model).plan is not None:
            checked += 1
            images = images_for(architecture, rng.choice((2, 3, 8, 9, 17)))
            check(model, copy.deepcopy(model), images)
            learned += check_learning(model.train(), images, rng.choice((0.0, 0.1)))
    assert checked > 40
    assert learned > 20


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("order", ["conv_then_pool", "pool_then_conv"])
def test_a_step_without_autograd_has_its_gradients(order: str, bias: bool) -> None:
    model = network(with_blocks({"kind": "conv", "channels": 3, "dropout": 0.5}, order=order, bias=bias))
    for smoothing in (0.0, 0.2):
        assert check_learning(model, images_for(model.architecture, 19), smoothing)


@pytest.mark.parametrize("head", [{"kernel": 3}, {"norm": True}], ids=str)
def test_a_head_that_is_no_linear_layer_is_left_to_autograd(head: dict[str, Any]) -> None:
    model = network(with_blocks({"kind": "conv", "channels": 3}, **head))
    assert not check_learning(model, images_for(model.architecture, 4), 0.0)


@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu", "hardswish"])
@pytest.mark.parametrize("norm", ["none", "before", "after"])
@pytest.mark.parametrize("pool", [None, "max", "average"])
def test_what_follows_a_convolution_agrees_with_torch(pool: str | None, norm: str, activation: str) -> None:
    block = {"kind": "conv", "channels": 6, "norm": norm, "activation": activation, "bias": True}
    pooling = [] if pool is None else [{"kind": "pool", "method": pool}]
    model = network(with_blocks({"kind": "conv", "channels": 3}, block, *pooling))
    check(model, copy.deepcopy(model), images_for(model.architecture, 5))


@pytest.mark.parametrize("kind", ["conv", "separable"])
@pytest.mark.parametrize(("kernel", "stride"), list(itertools.product((1, 3, 5, 7), (1, 2, 3, 4))))
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_convolutions_agree_with_torch(padding: str, kernel: int, stride: int, kind: str) -> None:
    block = {"kind": kind, "kernel": kernel, "stride": stride, "padding": padding, "channels": 7}
    architecture = with_blocks({"kind": "conv", "channels": 5, "kernel": 1}, block, size=(1, 11, 9))
    model = network(architecture, kernel)
    check(model, copy.deepcopy(model), images_for(architecture, LANES + 1))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 6, 7, 8, 9, 17])
def test_any_number_of_channels_agrees_with_torch(channels: int) -> None:
    architecture = with_blocks(
        {"kind": "conv", "channels": channels}, {"kind": "conv", "channels": channels + 2, "kernel": 5}
    )
    model = network(architecture)
    check(model, copy.deepcopy(model), images_for(architecture, 3))


class SameDraws(nn.Module):
    """Dropout of whole channels that draws as the compiled pass does."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, maps: Tensor) -> Tensor:
        if not self.training:
            return maps
        keep = torch.rand(maps.shape[:2]) >= self.rate
        return maps * keep[:, :, None, None] / (1 - self.rate)


@pytest.mark.parametrize("norm", ["before", "after"])
def test_dropout_drops_whole_channels_and_their_gradients(norm: str) -> None:
    block = {"kind": "conv", "channels": 8, "norm": norm, "dropout": 0.4}
    body = [block | {"kind": "separable", "middle": True}]
    architecture = with_blocks(block, {"kind": "pool"}, {"kind": "residual", "body": body}, block)
    ours = network(architecture, dropout=True)
    theirs = copy.deepcopy(ours)
    for position, layer in enumerate(theirs.layers):
        if isinstance(layer, nn.Dropout2d):
            theirs.layers[position] = SameDraws(layer.p)
    check(ours, theirs, images_for(architecture, 11))


def test_gradients_agree_with_finite_differences() -> None:
    architecture = with_blocks(
        {"kind": "conv", "channels": 3, "norm": "after", "activation": "hardswish"},
        {"kind": "pool"},
        {"kind": "residual", "body": [{"kind": "separable", "channels": 5, "stride": 2}]},
        size=(1, 7, 9),
    )
    model = network(architecture)
    images = images_for(architecture, 3)
    # Parameters are changed in place, where the kernels read them.
    torch.autograd.gradcheck(lambda *_: FusedNetwork(model)(images), tuple(model.parameters()), atol=1e-4)


REPEATED = [
    [
        {"kind": "separable", "channels": 4, "norm": "after", "bias": True},
        {"kind": "repeat"},
        {"kind": "repeat"},
    ],
    [{"kind": "conv", "channels": 4, "bias": True}, {"kind": "pool"}, {"kind": "repeat"}],
    [{"kind": "residual", "body": [{"kind": "separable", "channels": 4}]}, {"kind": "repeat"}],
]


@pytest.mark.parametrize("blocks", REPEATED)
def test_repeated_blocks_agree_with_torch(blocks: list[dict[str, Any]]) -> None:
    architecture = with_blocks({"kind": "conv", "channels": 4}, *blocks)
    model = network(architecture)
    check(model, copy.deepcopy(model), images_for(architecture, LANES + 1))


@pytest.mark.parametrize("name", ["reference", "mnist-16k"])
def test_float32_is_as_near_to_torch_as_torch_to_itself(name: str) -> None:
    architecture = load(name).architecture
    exact = build(architecture, 3).eval()
    images = torch.randn(20, 1, 28, 28)
    with torch.inference_mode():
        scores, expected = FusedNetwork(exact)(images), exact(images)
        truth = copy.deepcopy(exact).double()(images.double())
    assert scores.dtype == torch.float32
    assert (scores - truth).abs().max() <= 4 * (expected - truth).abs().max() + 1e-6


def test_threads_share_the_images_and_the_result_is_the_same() -> None:
    architecture = load("mnist-16k").architecture
    results = []
    before = torch.get_num_threads()
    for count in (1, 2, 3):
        model, images = network(architecture), images_for(architecture, 2 * LANES + 3)
        torch.set_num_threads(count)
        torch.manual_seed(0)
        try:
            scores = FusedNetwork(model)(torch.linspace(-1, 1, images.numel()).reshape(images.shape).double())
            scores.square().sum().backward()
        finally:
            torch.set_num_threads(before)
        results.append([scores.detach(), *(parameter.grad for parameter in model.parameters())])
    for result in results[1:]:
        for one, first in zip(result, results[0], strict=True):
            torch.testing.assert_close(one, first)


def test_torchs_threads_are_lent_and_come_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), own_threads():
        with own_threads():
            assert threads() == before
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == threads() == before


@pytest.mark.parametrize(
    "block",
    [
        {"kind": "conv", "channels": 4, "activation": "silu"},
        {"kind": "conv", "channels": 4, "activation": "gelu"},
        {"kind": "pool", "kernel": 3},
        {"kind": "pool", "stride": 1},
    ],
    ids=str,
)
def test_layers_without_kernels_are_left_to_torch(block: dict[str, Any]) -> None:
    architecture = with_blocks({"kind": "conv", "channels": 3}, block)
    model = network(architecture)
    fused = FusedNetwork(model)
    assert fused.plan is None
    images = images_for(architecture, 3)
    assert torch.equal(fused(images), model(images))


def test_the_threads_are_lent_only_to_networks_with_kernels() -> None:
    seen = []
    for activation in ("relu", "silu"):
        architecture = with_blocks({"kind": "conv", "channels": 3, "activation": activation})
        forward = FusedNetwork(network(architecture))
        with lending(forward):
            seen.append(torch.get_num_threads())
    assert seen == [1, torch.get_num_threads()]


def test_threads_of_python_lend_apart_from_each_other() -> None:
    before = torch.get_num_threads()
    inside, go_on = threading.Event(), threading.Event()

    def other() -> None:
        with own_threads():
            inside.set()
            go_on.wait(10)

    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(other)
        inside.wait(10)
        with own_threads():
            go_on.set()
            job.result()
            assert threads() >= 1
    torch.set_num_threads(before)


def test_parameters_and_statistics_that_are_replaced_are_seen() -> None:
    architecture = with_blocks({"kind": "conv", "channels": 3}, {"kind": "conv", "channels": 4})
    ours, other = network(architecture), network(architecture, 1)
    fused, images = FusedNetwork(ours), images_for(architecture, 3)
    fused(images)
    ours.load_state_dict(copy.deepcopy(other.state_dict()), assign=True)
    scores, expected = fused(images), other(images)
    torch.testing.assert_close(scores, expected)
    scores.sum().backward()
    expected.sum().backward()
    for mine, theirs in zip(ours.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 1, 9, 9).double(), torch.zeros(2, 2, 9, 8).double(), torch.zeros(2, 1, 9, 8)],
    ids=str,
)
def test_images_of_another_kind_are_refused(images: Tensor) -> None:
    model = network(with_blocks({"kind": "conv", "channels": 3}))
    fused = FusedNetwork(model, {one: torch.zeros_like(one) for one in model.parameters()})
    with pytest.raises(ValueError, match="of another type or shape"):
        fused(images)
    with pytest.raises(ValueError, match="of another type or shape"):
        fused.learn(images, torch.zeros(2, dtype=torch.long), 0.0)


def test_images_that_want_a_gradient_get_one() -> None:
    architecture = with_blocks({"kind": "conv", "channels": 3})
    images = images_for(architecture, 2).requires_grad_()
    FusedNetwork(network(architecture))(images).sum().backward()
    assert images.grad is not None


@pytest.mark.parametrize("norm", ["before", "after"])
def test_the_variance_of_large_numbers_is_right_in_float32(norm: str) -> None:
    block = {"kind": "conv", "channels": 4, "bias": True, "norm": norm}
    architecture = with_blocks(block, size=(1, 28, 28))
    model = network(architecture).float()
    convolution = next(layer for layer in model.layers if isinstance(layer, nn.Conv2d))
    with torch.no_grad():
        convolution.bias.fill_(500.0)
    exact = copy.deepcopy(model).double()
    images, fused = torch.randn(40, 1, 28, 28), FusedNetwork(model)
    for _ in range(2):  # what is subtracted is the mean of the batch before
        scores, expected = fused(images), exact(images.double())
    torch.testing.assert_close(scores.double(), expected, rtol=1e-3, atol=1e-3)


def test_one_normalisation_in_training_mode_takes_the_batchs_statistics() -> None:
    ours = network(with_blocks({"kind": "conv", "channels": 3}, {"kind": "conv", "channels": 3})).eval()
    next(layer for layer in ours.layers if isinstance(layer, nn.BatchNorm2d)).train()
    theirs, images = copy.deepcopy(ours), images_for(ours.architecture, 5)
    with torch.inference_mode():
        torch.testing.assert_close(FusedNetwork(ours)(images), theirs(images))
    for one, same in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(one, same)


def test_vectors_of_another_length_compute_the_same() -> None:
    """A processor has 8 or 16 numbers in a vector; here are the others."""
    code = f"""
import nas_mnist.engine.vectors as vectors
vectors.LANES = {24 - LANES}
import test_fused
assert test_fused.LANES == {24 - LANES}
for kind, kernel, stride in (("conv", 3, 1), ("separable", 5, 2), ("conv", 1, 1)):
    test_fused.test_convolutions_agree_with_torch("same", kernel, stride, kind)
test_fused.test_what_follows_a_convolution_agrees_with_torch("max", "before", "relu")
import test_training
test_training.test_the_compiled_loop_moves_images_as_torch_does((3, 10, 7), 2)
"""
    folders = [Path(__file__).parent, Path(vectors.__file__).parents[1]]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=300)


def test_what_is_no_number_reaches_the_scores() -> None:
    architecture = with_blocks({"kind": "conv", "channels": 3}, {"kind": "pool"})
    for model in (network(architecture), network(architecture).eval()):
        with torch.no_grad():
            next(iter(model.parameters()))[0, 0, 0, 0] = float("nan")
            assert FusedNetwork(model)(images_for(architecture, 3)).isnan().any()
    block = {"kind": "conv", "channels": 3, "norm": "none", "activation": "none", "kernel": 1}
    model = network(with_blocks(block, {"kind": "pool"})).eval()
    images = torch.zeros(LANES, 1, 9, 8, dtype=torch.float64)
    for place in range(4):
        images[place, 0, place // 2, place % 2] = float("nan")
    with torch.no_grad():
        assert FusedNetwork(model)(images).isnan().any(1).tolist() == [True] * 4 + [False] * (LANES - 4)


def test_a_way_back_through_memory_that_was_used_again_is_refused() -> None:
    architecture = with_blocks({"kind": "conv", "channels": 3})
    fused = FusedNetwork(network(architecture))
    first, _ = fused(images_for(architecture, 3)), fused(images_for(architecture, 3))
    with pytest.raises(AssertionError, match="forward pass"):
        first.sum().backward()
