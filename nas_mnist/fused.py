"""The forward pass that trains fast on a CPU; it learns what the plain modules learn.

Where the time goes in a network this small: convolutions take a fifth of a plain training step, the rest is
memory traffic in normalisation, activation, dropout and pooling. Three things help:

* normalisation, ReLU, channel dropout and 2x2 max-pooling run as one autograd function over a view of
  the maps as a (pixels, channels) matrix, which keeps only what the backward pass reads;
* torch's batch normalisation leaves its vectorised path where the channels are no multiple of 16. There
  the matrix is folded: ``k`` neighbouring pixels side by side make rows of ``k * channels`` columns, and
  the column groups' statistics are put together by the law of total variance, which is exact;
* ReLU, dropout and pooling work on the bit patterns of the numbers read as integers: non-negative floats
  order like their bit patterns and negative ones are negative integers, and torch's integer kernels run
  at the speed of memory where its bfloat16 kernels convert to float32 and back.

Everything else runs as the plain modules, under autocast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .device import autocast, number_type
from .layers import IMAGE, Layer
from .model import Network

_INTEGERS = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}
_SIGN_BIT = {torch.int16: 15, torch.int32: 31, torch.int64: 63}
_VECTOR = 16  # channels; torch's channels_last kernels are vectorised for multiples of this
_NARROW = 3  # pixels; the widest depthwise kernel whose weight gradient torch computes fast
_LONG_ROW = 128  # values; rows this long hide the cost of starting on a new one

Step = Callable[..., Tensor]


class FusedNetwork:
    """A network's training forward pass with neighbouring layers run as one; shares the network's weights."""

    def __init__(self, network: Network) -> None:
        self.device = next(network.parameters()).device
        self.is_kept = network.is_kept
        self.steps: list[tuple[tuple[int, ...], int, Step]] = []  # read from, written to, what to do
        layers = network.architecture.layers
        position = 0
        while position < len(layers):
            step, length = _step(network, layers, position)
            self.steps.append((layers[position].inputs, position + length - 1, step))
            position += length

    def __call__(self, images: Tensor) -> Tensor:
        """Class scores (N, classes) float32 of normalised images (N, C, H, W), in training mode."""
        latest = images.to(number_type(self.device)).contiguous(memory_format=torch.channels_last)
        at, kept = IMAGE, {IMAGE: latest}
        for sources, position, step in self.steps:
            latest = step(*(latest if source == at else kept[source] for source in sources))
            at = position
            if self.is_kept(position):
                kept[position] = latest
        return latest.flatten(1).float()


def _step(network: Network, layers: tuple[Layer, ...], position: int) -> tuple[Step, int]:
    """What runs at a position, and how many layers it covers."""
    module = network.layers[position]
    if isinstance(module, nn.Conv2d):
        return _convolution(module), 1
    if not isinstance(module, nn.BatchNorm2d):
        return _plain(module), 1
    following = []
    for ahead in range(position + 1, len(layers)):
        if layers[ahead].inputs != (ahead - 1,) or network.is_kept(ahead - 1):
            break
        following.append(network.layers[ahead])
    if not following or not isinstance(following[0], nn.ReLU):
        return _norm(module, relu=False), 1
    length, rate = 2, 0.0
    if len(following) >= length and isinstance(following[1], nn.Dropout2d):
        rate, length = following[1].p, 3
    _, height, width = layers[position].out_shape
    pool = following[length - 1] if len(following) >= length else None
    halves = isinstance(pool, nn.MaxPool2d) and pool.kernel_size == (2, 2) and pool.stride == 2
    if halves and height % 2 == 0 and width % 2 == 0:
        return _norm(module, relu=True, rate=rate, pool=True), length + 1
    return _norm(module, relu=True, rate=rate), length


def _plain(module: nn.Module) -> Step:
    def step(*maps: Tensor) -> Tensor:
        with autocast(maps[0].device):
            return module(*maps)  # type: ignore[no-any-return]

    return step


def _convolution(module: nn.Conv2d) -> Step:
    """The weights stay float32 and are cast once a step, for less than autocast's bookkeeping costs."""
    depthwise = module.groups == module.in_channels == module.out_channels > 1
    wide_depthwise = depthwise and module.kernel_size[0] > _NARROW
    down, across = module.stride

    def step(maps: Tensor) -> Tensor:
        weight = module.weight.to(maps.dtype)
        bias = None if module.bias is None else module.bias.to(maps.dtype)
        if wide_depthwise:
            out: Tensor = _WideDepthwise.apply(maps, weight, module.padding)[:, :, ::down, ::across]
            return out if bias is None else out + bias.view(1, -1, 1, 1)
        return F.conv2d(maps, weight, bias, module.stride, module.padding, module.dilation, module.groups)

    return step


class _WideDepthwise(torch.autograd.Function):
    """A depthwise convolution with a 5x5 or 7x7 kernel, at every pixel.

    Its weight gradient is put together from those of 3x3 kernels on shifted maps: torch's own takes 23 ms
    for 48 channels of 14x14 and a batch of 128 in bfloat16, where the 3x3 kernel's takes 0.3 ms. A stride
    is taken by leaving out values afterwards: torch's own strided gradient takes 63 ms there.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(maps, weight)
        ctx.padding = padding
        return F.conv2d(maps, weight, None, 1, padding, 1, weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        maps, weight = ctx.saved_tensors
        pad, channels, size = ctx.padding[0], weight.shape[0], weight.shape[2]
        backward = torch.ops.aten.convolution_backward
        rest = ([1, 1], [0, 0], [1, 1], False, [0, 0], channels)  # stride, padding, dilation...
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        into = None
        if ctx.needs_input_grad[0]:
            into = backward(
                gradient, maps, weight, None, [1, 1], [pad, pad], *rest[2:], [True, False, False]
            )[0]
        padded = F.pad(maps, (pad, pad, pad, pad)).contiguous(memory_format=torch.channels_last)
        height, width = (extent + _NARROW - 1 for extent in gradient.shape[2:])
        into_weight = torch.empty_like(weight)
        narrow = torch.empty_like(weight[:, :, :_NARROW, :_NARROW])
        starts = sorted({min(start, size - _NARROW) for start in range(0, size, _NARROW)})
        for top in starts:
            for left in starts:
                part = padded[:, :, top : top + height, left : left + width]
                part = part.contiguous(memory_format=torch.channels_last)
                here = backward(gradient, part, narrow, None, *rest, [False, True, False])[1]
                into_weight[:, :, top : top + _NARROW, left : left + _NARROW] = here
        return into, into_weight, None


def _norm(module: nn.BatchNorm2d, relu: bool, rate: float = 0.0, pool: bool = False) -> Step:
    def step(maps: Tensor) -> Tensor:
        assert module.num_batches_tracked is not None
        module.num_batches_tracked.add_(1)
        keep = torch.rand(maps.shape[:2], device=maps.device) >= rate if rate else None
        return norm_relu_pool(maps, module, relu, keep, 1 / (1 - rate), pool)

    return step


def norm_relu_pool(
    maps: Tensor, module: nn.BatchNorm2d, relu: bool, keep: Tensor | None, scale: float, pool: bool
) -> Tensor:
    """Batch normalisation in training mode, then ReLU, channel dropout and 2x2 max-pooling.

    ``maps`` is (N, C, H, W) channels_last; ``keep`` (N, C) says which channels dropout keeps, and
    ``scale`` is what it multiplies them with. Updates the module's running statistics. Dropout and
    pooling need ReLU, pooling even H and W.
    """
    running = (module.running_mean, module.running_var)
    maps = maps.contiguous(memory_format=torch.channels_last)
    apply = _NormReluPool.apply
    result: Tensor = apply(
        maps, module.weight, module.bias, running, module.momentum, module.eps, relu, keep, scale, pool
    )
    return result


class _NormReluPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor, *options: Any) -> Tensor:
        running, momentum, eps, relu, keep, scale, pool = options
        count, channels, height, width = maps.shape
        rows = maps.permute(0, 2, 3, 1).reshape(-1, channels)  # (N * H * W, C), a view
        out, mean, inverse_std = _normalise(rows, weight * scale, bias * scale, running, momentum, eps)
        bits = out.view(_INTEGERS[out.dtype])
        if relu:
            bits.clamp_(min=0)
        if keep is not None:
            mask = keep.to(bits.dtype).neg_()  # (N, C): all bits where the channel stays
            bits.view(count, -1, channels).bitwise_and_(mask.view(count, 1, channels))
        saved = [rows, out, weight, mean, inverse_std]
        shape = (count, height, width, channels)
        if pool:
            pairs = bits.view(count, height // 2, 2, width * channels)
            upper = torch.maximum(pairs[:, :, 0], pairs[:, :, 1])  # of two rows
            upper = upper.view(count, height // 2, width // 2, 2, channels)
            best = torch.maximum(upper[..., 0, :], upper[..., 1, :])  # of two columns
            saved += [upper, best]
            pooled = best.view(out.dtype)
        ctx.save_for_backward(*saved)
        ctx.options = (shape, eps, relu, scale, pool)
        return (pooled if pool else out.view(shape)).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        shape, eps, relu, scale, pool = ctx.options
        rows, out, weight, mean, inverse_std, *pooling = ctx.saved_tensors
        gradient = gradients[0].permute(0, 2, 3, 1).contiguous()  # (N, H, W, C), halved where pooled
        if pool:
            gradient = _unpool(gradient, out.view(shape), *pooling)
        gradient = gradient.view(rows.shape)
        if relu and not pool:
            gradient = torch.ops.aten.threshold_backward(gradient, out, 0)
        into, into_weight, into_bias = _normalise_backward(
            gradient, rows, weight * scale, mean, inverse_std, eps
        )
        into = into.view(shape).permute(0, 3, 1, 2)
        return into, into_weight * scale, into_bias * scale, *[None] * 7


def _unpool(gradient: Tensor, out: Tensor, upper: Tensor, best: Tensor) -> Tensor:
    """The gradient of max-pooling and the ReLU before it; of equal values one gets everything.

    ``gradient`` and ``best`` (N, H/2, W/2, C), ``upper`` (N, H/2, W/2, 2, C), ``out`` (N, H, W, C).
    """
    sign = _SIGN_BIT[best.dtype]
    count, height, width, channels = out.shape
    # An arithmetic shift by the sign bit makes a mask of all ones from a negative number, else zeros.
    alive = best.neg().bitwise_right_shift_(sign).bitwise_and_(gradient.view(best.dtype))
    right = (upper[..., 0, :] - upper[..., 1, :]).bitwise_right_shift_(sign)
    split = torch.empty_like(upper)
    torch.bitwise_and(alive, right, out=split[..., 1, :])
    torch.bitwise_and(alive, right.bitwise_not_(), out=split[..., 0, :])
    split = split.view(count, height // 2, width * channels)
    bits = out.view(best.dtype).view(count, height // 2, 2, width * channels)
    lower = (bits[:, :, 0] - bits[:, :, 1]).bitwise_right_shift_(sign)
    whole = torch.empty_like(bits)
    torch.bitwise_and(split, lower, out=whole[:, :, 1])
    torch.bitwise_and(split, lower.bitwise_not_(), out=whole[:, :, 0])
    return whole.view(out.dtype)


def _fold(rows: int, channels: int) -> int:
    """How many neighbouring rows make one long row; 1 where the channels fill vectors anyway."""
    factor = 1
    while channels % _VECTOR and rows % (2 * factor) == 0 and channels * factor < _LONG_ROW:
        factor *= 2
    return factor


def _normalise(
    rows: Tensor, weight: Tensor, bias: Tensor, running: tuple[Tensor, Tensor], momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised rows, the columns' means and inverse standard deviations; updates ``running``."""
    count, channels = rows.shape
    fold = _fold(count, channels)
    if fold == 1:
        result: tuple[Tensor, Tensor, Tensor] = torch.native_batch_norm(
            rows, weight, bias, *running, True, momentum, eps
        )
        return result
    scratch = torch.zeros(fold * channels, dtype=weight.dtype)
    means, variances = torch.batch_norm_update_stats(
        rows.view(-1, fold * channels), scratch, scratch.clone(), 0.0
    )
    means, variances = means.view(fold, channels), variances.view(fold, channels)
    mean = means.mean(0)
    variance = variances.mean(0) + (means - mean).square_().mean(0)  # the law of total variance
    inverse_std = (variance + eps).rsqrt_()
    factor = weight * inverse_std
    out = _affine(rows, fold, factor, bias - mean * factor)
    running[0].lerp_(mean, momentum)
    running[1].lerp_(variance.mul_(count / max(count - 1, 1)), momentum)
    return out, mean, inverse_std


def _normalise_backward(
    gradient: Tensor, rows: Tensor, weight: Tensor, mean: Tensor, inverse_std: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the rows, the weight and the bias of a batch normalisation in training mode."""
    count, channels = rows.shape
    fold = _fold(count, channels)
    backward = torch.ops.aten.native_batch_norm_backward
    everything = [True, True, True]
    if fold == 1:
        result: tuple[Tensor, Tensor, Tensor] = backward(
            gradient, rows, weight, None, None, mean, inverse_std, True, eps, everything
        )
        return result
    # In evaluation mode the kernel is one long-row pass; what depends on the batch is added afterwards.
    variance = inverse_std.square().reciprocal_().sub_(eps)
    statistics = (mean.repeat(fold), variance.repeat(fold))
    into, into_weight, into_bias = backward(
        gradient.view(-1, fold * channels),
        rows.view(-1, fold * channels),
        weight.repeat(fold),
        *statistics,
        None,
        None,
        False,
        eps,
        everything,
    )
    into_weight, into_bias = into_weight.view(fold, channels).sum(0), into_bias.view(fold, channels).sum(0)
    factor = -weight * inverse_std.square() * into_weight / count
    shift = -weight * inverse_std * into_bias / count - mean * factor
    into = into.view(rows.shape).add_(_affine(rows, fold, factor, shift))
    return into, into_weight, into_bias


def _affine(rows: Tensor, fold: int, factor: Tensor, shift: Tensor) -> Tensor:
    """``rows * factor + shift`` in one pass: batch normalisation with mean 0 and variance 1."""
    size = fold * rows.shape[1]
    zeros, ones = torch.zeros(size, dtype=factor.dtype), torch.ones(size, dtype=factor.dtype)
    folded = rows.view(-1, size)
    out = torch.native_batch_norm(
        folded, factor.repeat(fold), shift.repeat(fold), zeros, ones, False, 0.0, 0.0
    )[0]
    return out.view(rows.shape)
