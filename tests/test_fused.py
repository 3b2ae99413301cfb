"""The fused training pass computes what torch's plain modules compute."""

import copy
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from numba import njit
from numba.extending import intrinsic
from torch import nn

from nas_mnist import fused, kernels
from nas_mnist.architecture import Architecture
from nas_mnist.epilogue import Epilogue
from nas_mnist.model import StridedPoint, build
from nas_mnist.zoo import load

SHAPES = [(2, 1, 4, 6), (1, 3, 2, 2), (3, 5, 7, 5), (2, 12, 4, 4), (5, 16, 5, 3), (1, 33, 4, 2)]
ACTIVATIONS = {"none": None, "relu": nn.ReLU(), "leaky": nn.LeakyReLU(), "hardswish": nn.Hardswish()}
POOLS = {"none": None, "max": nn.MaxPool2d(2), "average": nn.AvgPool2d(2)}
VARIANTS = [
    variant
    for variant in itertools.product(("none", "before", "after"), ACTIVATIONS, (False, True), POOLS)
    if variant != ("none", "none", False, "none")
]


def make_chain(shape, norm, activation, drop, pool, dtype=torch.float64):
    """Layers that an epilogue covers, dropout apart, and maps; all in training mode."""
    torch.manual_seed(sum(shape))
    module = nn.BatchNorm2d(shape[1]).to(dtype)
    with torch.no_grad():
        module.weight.uniform_(-1, 2)
        module.bias.uniform_(-1, 1)
    chain = [module if norm == "before" else None, ACTIVATIONS[activation]]
    chain += [module if norm == "after" else None, nn.Dropout2d(0.4) if drop else None, POOLS[pool]]
    maps = torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
    return copy.deepcopy([layer for layer in chain if layer is not None]), maps


def plain(chain, maps, seed):
    """The same through torch's own modules, with the dropout that an epilogue draws."""
    torch.manual_seed(seed)
    for layer in chain:
        if isinstance(layer, nn.Dropout2d) and layer.training:
            keep = torch.rand(maps.shape[:2]) >= layer.p
            maps = maps * keep[:, :, None, None] / (1 - layer.p)
        else:
            maps = layer(maps)
    return maps


def fast(chain, maps, seed):
    torch.manual_seed(seed)
    epilogue, covered = Epilogue.of(chain)
    assert covered == len(chain)
    return epilogue(maps)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("norm", "activation", "drop", "pool"), VARIANTS)
def test_epilogues_agree_with_torch_in_value_gradient_and_statistics(shape, norm, activation, drop, pool):
    ours, maps = make_chain(shape, norm, activation, drop, pool)
    theirs = copy.deepcopy(ours)
    a, b = maps.clone().requires_grad_(), maps.clone().requires_grad_()
    out, expected = fast(ours, a, 1), plain(theirs, b, 1)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    weights = torch.randn_like(expected)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(a.grad, b.grad)
    for mine, other in zip(ours, theirs, strict=True):
        for one, same in zip(mine.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one.grad, same.grad)
        for one, same in zip(mine.buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(one, same)
    for layer in (*ours, *theirs):
        layer.eval()
    a.grad = b.grad = None
    out, expected = fast(ours, a, 2), plain(theirs, b, 2)
    torch.testing.assert_close(out, expected)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("shape", [(2, 3, 5, 2), (1, 7, 2, 5)])
@pytest.mark.parametrize(("norm", "activation", "drop", "pool"), VARIANTS)
def test_gradients_agree_with_finite_differences(shape, norm, activation, drop, pool):
    chain, maps = make_chain(shape, norm, activation, drop, pool)
    module = next((layer for layer in chain if isinstance(layer, nn.BatchNorm2d)), None)

    def run(maps, *parameters):
        if module is not None:
            del module.weight, module.bias
            module.weight, module.bias = parameters
        return fast(chain, maps, 3)

    parameters = () if module is None else (module.weight, module.bias)
    torch.autograd.gradcheck(run, (maps.requires_grad_(), *parameters), check_undefined_grad=False)


@pytest.mark.parametrize(
    ("norm", "activation", "pool"), [("before", "relu", "max"), ("after", "hardswish", "none")]
)
def test_threads_share_the_images_and_the_result_is_the_same(norm, activation, pool):
    results = []
    for threads in (1, 2, 3):
        chain, maps = make_chain((5, 6, 4, 4), norm, activation, False, pool)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            out = fast(chain, maps.requires_grad_(), 0)
            out.square().sum().backward()
        finally:
            torch.set_num_threads(before)
        results.append((out.detach(), maps.grad))
    for out, gradient in results[1:]:
        torch.testing.assert_close(out, results[0][0])
        torch.testing.assert_close(gradient, results[0][1])


def test_bfloat16_is_read_exactly_and_rounded_to_the_nearest():
    chain = [nn.ReLU()]
    numbers = torch.randn(1, 8, 6, 7).mul(100).bfloat16()
    numbers[0, 0, 0, :3] = torch.tensor([float("inf"), float("nan"), 0.0])
    maps = numbers.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(fast(chain, maps, 0), torch.relu(numbers), rtol=0, atol=0, equal_nan=True)
    norm = nn.BatchNorm2d(8).eval()
    norm.running_mean.uniform_(-1, 1)
    maps = torch.randn(2, 8, 6, 7).bfloat16().contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        exact = norm(maps.float())
        torch.testing.assert_close(fast([norm], maps, 0), exact.bfloat16(), rtol=2**-8, atol=0)


def test_layers_that_do_not_belong_together_are_left_to_others():
    norm, relu, pool = nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)
    assert [Epilogue.of(chain)[1] for chain in ([norm, relu, norm], [relu, norm, relu], [pool, relu])] == [
        2,
        2,
        1,
    ]
    assert [
        Epilogue.of([layer])[1] for layer in (nn.SiLU(), nn.GELU(), nn.MaxPool2d(3), nn.AvgPool2d(2, 1))
    ] == [0] * 4


ODD = Architecture.make(
    {
        "input_shape": [1, 14, 14],
        "classes": 5,
        "blocks": [
            {"kind": "conv", "channels": 6, "bias": True},
            {"kind": "pool"},
            {"kind": "residual", "body": [{"kind": "separable", "channels": 8, "activation": "silu"}]},
            {"kind": "pool", "kernel": 3},
            {
                "kind": "residual",
                "body": [{"kind": "conv", "channels": 8, "norm": "after"}],
                "activation": "gelu",
            },
            {"kind": "conv", "channels": 8, "norm": "after"},
            {"kind": "conv", "channels": 8, "norm": "after", "activation": "hardswish"},
            {"kind": "conv", "channels": 16, "norm": "none", "activation": "hardswish"},
        ],
        "head": {"order": "pool_then_conv", "norm": False},
    }
)


@pytest.mark.parametrize("architecture", [load("reference").architecture, ODD], ids=["reference", "odd"])
def test_the_fused_pass_of_a_whole_network_agrees_with_the_plain_one(architecture):
    ours = build(architecture, seed=3).double().train()
    for module in ours.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    theirs = copy.deepcopy(ours)
    images = torch.randn(4, *architecture.input_shape, dtype=torch.float64)
    scores, expected = fused.FusedNetwork(ours)(images), theirs(images)
    torch.testing.assert_close(scores, expected)
    scores.square().sum().backward()
    expected.square().sum().backward()
    for (name, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)
    for (name, mine), (_, other) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        torch.testing.assert_close(mine, other, msg=name)
    with torch.inference_mode():
        scores, expected = fused.FusedNetwork(ours.eval())(images), theirs.eval()(images)
    torch.testing.assert_close(scores, expected)


@pytest.mark.parametrize("architecture", [load("reference").architecture, ODD], ids=["reference", "odd"])
def test_bfloat16_changes_scores_by_no_more_than_its_precision(architecture):
    model = build(architecture, seed=3).eval()
    images = torch.randn(16, *architecture.input_shape)
    with torch.inference_mode():
        exact, rounded = fused.FusedNetwork(model)(images), fused.FusedNetwork(model)(images.bfloat16())
    assert exact.dtype == rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, rtol=0, atol=0.03 * exact.abs().max().item())


def test_dropout_drops_whole_channels_at_its_rate():
    maps = torch.ones(64, 16, 4, 4).contiguous(memory_format=torch.channels_last)
    out = fast([nn.Dropout2d(0.25)], maps, 0)
    gone = (out == 0).flatten(2).all(2)
    assert torch.equal(gone, (out == 0).flatten(2).any(2))
    assert 0.2 < gone.float().mean().item() < 0.3
    torch.testing.assert_close(out.max(), torch.tensor(4 / 3))


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(
    ("shape", "stride"), [((2, 3, 9, 8), 1), ((1, 16, 7, 7), 1), ((2, 5, 9, 8), 2), ((2, 4, 8, 11), 3)]
)
def test_depthwise_convolutions_have_torchs_gradients(kernel, padding, shape, stride):
    torch.manual_seed(kernel)
    ours = nn.Conv2d(
        shape[1], shape[1], kernel, stride, padding=kernel // 2 if padding == "same" else 0, groups=shape[1]
    ).double()
    theirs = copy.deepcopy(ours)
    a = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    b = a.clone()
    a.requires_grad_()
    b.requires_grad_()
    out, expected = fused._convolution(ours)(a), theirs(b)
    torch.testing.assert_close(out, expected)
    weights = torch.randn_like(expected)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 3e38])
def test_what_is_not_finite_is_passed_on_in_silence(value):
    norm = nn.BatchNorm2d(3)
    epilogue = Epilogue(norm=norm, activation=nn.ReLU())
    maps = torch.randn(2, 3, 4, 4)
    maps[0, 1] = value
    maps.requires_grad_()
    with warnings.catch_warnings(action="error"):
        result = epilogue(maps)
        result.sum().backward()
    assert not result[:, 1].isfinite().all()
    assert result[:, 0].isfinite().all()


@pytest.mark.parametrize("channels", [1, 3, 5, 8])
@pytest.mark.parametrize("block", ["conv", "separable", "residual"])
def test_a_strided_convolution_of_single_pixels_stays_within_its_maps(block, channels):
    """Torch's own crashes with three channels side by side, on some processors."""
    part = {"kind": "conv" if block == "residual" else block, "channels": channels, "stride": 2}
    part |= {"kernel": 3} if block == "residual" else {"kernel": 1}
    strided = {"kind": "residual", "body": [part]} if block == "residual" else part
    architecture = Architecture.make({"blocks": [{"kind": "conv", "channels": channels}, strided]})
    ours, theirs = build(architecture, 0), build(architecture, 0)
    assert any(isinstance(module, StridedPoint) for module in ours.modules())
    images = torch.randn(104, 1, 28, 28).contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        scores, expected = fused.FusedNetwork(ours)(images), theirs(images.contiguous())
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
        scores.square().sum().backward()
        expected.square().sum().backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-2, atol=1e-2)


WAYS = {"by hand": kernels._rounded_by_hand} | (
    {"by hardware": kernels._rounded_by_hardware} if kernels.ROUNDS_IN_HARDWARE else {}
)


@pytest.mark.parametrize("way", WAYS)
def test_numbers_are_rounded_to_bfloat16_as_torch_does(way):
    rounded = intrinsic(WAYS[way])

    @njit
    def round_all(numbers, bits):
        for i in range(len(numbers)):
            bits[i] = rounded(numbers[i])

    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 3.3895e38, 1e-40, 0.0, -0.0, math.inf, -math.inf])
    numbers = torch.cat([ties, torch.randn(10_000) * torch.logspace(-38, 37, 10_000)])
    bits = np.zeros(len(numbers) + 1, dtype=np.uint16)
    round_all(torch.cat([numbers, torch.tensor([math.nan])]).numpy(), bits)
    assert bits[:-1].tolist() == numbers.bfloat16().view(torch.uint16).tolist()
    assert torch.from_numpy(bits[-1:]).view(torch.bfloat16).isnan().all()
