"""The fused training pass computes what torch's plain modules compute."""

import copy

import pytest
import torch
from torch import nn

from nas_mnist import fused, norm
from nas_mnist.architecture import Architecture
from nas_mnist.model import build
from nas_mnist.zoo import load

SHAPES = [
    (2, 1, 4, 6),
    (1, 3, 2, 2),
    (3, 5, 6, 4),
    (2, 12, 4, 4),
    (2, 16, 2, 4),
    (1, 33, 4, 2),
    (2, 24, 4, 4),
]


def plain(maps, module, relu, keep, scale, pool):
    """The same through torch's own modules."""
    if relu == "first":
        maps = torch.relu(maps)
    out = module(maps)
    if relu == "last":
        out = torch.relu(out)
    if keep is not None:
        out = out * keep[:, :, None, None] * scale
    return nn.functional.max_pool2d(out, 2) if pool else out


def ours_of(maps, module, relu, keep, scale, pool):
    if relu == "last":
        return norm.norm_relu(maps, module, keep, scale, pool)
    return norm.relu_norm(maps, module, relu == "first", keep, scale, pool)


VARIANTS = [
    (relu, drop, pool)
    for relu in ("none", "first", "last")
    for drop in (False, True)
    for pool in (False, True)
    if relu != "none" or not pool
]


def make_case(shape, dtype=torch.float64):
    torch.manual_seed(sum(shape))
    maps = torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
    module = nn.BatchNorm2d(shape[1]).to(dtype)
    with torch.no_grad():
        module.weight.uniform_(-1, 2)
        module.bias.uniform_(-1, 1)
    return maps, module


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("relu", "drop", "pool"), VARIANTS)
def test_fused_normalisation_agrees_with_torch_in_value_gradient_and_statistics(shape, relu, drop, pool):
    maps, ours = make_case(shape)
    theirs = copy.deepcopy(ours)
    keep = torch.rand(shape[:2]) > 0.3 if drop else None
    scale = 1 / 0.7 if drop else 1.0
    a, b = maps.clone().requires_grad_(), maps.clone().requires_grad_()
    out = ours_of(a, ours, relu, keep, scale, pool)
    expected = plain(b, theirs, relu, keep, scale, pool)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    weights = torch.randn_like(expected)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, other in (
        (a.grad, b.grad),
        (ours.weight.grad, theirs.weight.grad),
        (ours.bias.grad, theirs.bias.grad),
    ):
        torch.testing.assert_close(mine, other, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)


@pytest.mark.parametrize("shape", [(2, 3, 4, 2), (1, 7, 2, 6), (2, 16, 2, 2)])
@pytest.mark.parametrize(("relu", "drop", "pool"), VARIANTS)
def test_gradients_agree_with_finite_differences(shape, relu, drop, pool):
    maps, module = make_case(shape)
    keep = torch.rand(shape[:2]) > 0.3 if drop else None
    maps.requires_grad_()

    def run(maps, weight, bias):
        stand_in = copy.deepcopy(module)
        del stand_in.weight, stand_in.bias
        stand_in.weight, stand_in.bias = weight, bias
        return ours_of(maps, stand_in, relu, keep, 1.4, pool)

    torch.autograd.gradcheck(run, (maps, module.weight, module.bias), check_undefined_grad=False)


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


def test_fused_dropout_drops_whole_channels_at_its_rate():
    maps, module = make_case((64, 16, 4, 4), torch.float32)
    torch.manual_seed(0)
    out = fused._norm(module, False, True, 0.25, False)(maps)
    gone = (out == 0).flatten(2).all(2).float().mean().item()
    kept = fused._norm(copy.deepcopy(module), False, True, 0.0, False)(maps)
    never_alive = (kept == 0).flatten(2).all(2).float().mean().item()
    assert 0.2 < gone - never_alive < 0.3


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
