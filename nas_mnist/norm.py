"""Batch normalisation with its neighbours, for CPUs: forward passes and hand-written gradients.

Maps are (N, C, H, W) in channels_last, float64, float32 or bfloat16; parameters and statistics are
float64 or float32. "Rows" are a map's numbers as a (pixels, channels) matrix, which is a view. What helps:

* normalisation, ReLU, channel dropout and 2x2 max-pooling run as one autograd function, which keeps only
  what its backward pass reads;
* torch's batch normalisation starts anew on every row and leaves its vectorised path where the channels are
  no multiple of 16. So the matrix is folded: ``k`` neighbouring pixels side by side make rows of
  ``k * channels`` columns, and the column groups' statistics are put together by the law of total variance,
  which is exact;
* ReLU, dropout and pooling work on the bit patterns of the numbers read as integers: non-negative floats
  order like their bit patterns and negative ones are negative integers, and torch's integer kernels run
  at the speed of memory where its bfloat16 kernels convert to float32 and back;
* a map that is normalised and then pooled is pooled first, so that a quarter of it is normalised: the
  largest of four values stays the largest, or becomes the smallest where the channel's weight is negative.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_INTEGERS = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}
_SIGN_BIT = {torch.int16: 15, torch.int32: 31, torch.int64: 63}
_VECTOR = 16  # channels; torch's channels_last kernels are vectorised for multiples of this
_LONG_ROW = 128  # values; rows this long hide the cost of starting on a new one


def norm_relu(
    maps: Tensor, module: nn.BatchNorm2d, keep: Tensor | None = None, scale: float = 1.0, pool: bool = False
) -> Tensor:
    """Batch normalisation in training mode, then ReLU, channel dropout and 2x2 max-pooling.

    ``keep`` (N, C) says which channels dropout keeps, and ``scale`` is what it multiplies them with;
    pooling needs even H and W. Updates the module's running statistics.
    """
    apply = _NormRelu.apply
    result: Tensor = apply(_ready(maps), module.weight, module.bias, _running(module), keep, scale, pool)
    return result


def relu_norm(
    maps: Tensor,
    module: nn.BatchNorm2d,
    relu: bool = True,
    keep: Tensor | None = None,
    scale: float = 1.0,
    pool: bool = False,
) -> Tensor:
    """The same with the ReLU before the normalisation, or none; pooling needs the ReLU."""
    apply = _ReluNorm.apply
    running = _running(module)
    result: Tensor = apply(_ready(maps), module.weight, module.bias, running, relu, keep, scale, pool)
    return result


def norm_in_scoring(
    maps: Tensor, module: nn.BatchNorm2d, relu_first: bool, relu_last: bool, pool: bool
) -> Tensor:
    """Batch normalisation in evaluation mode with its neighbours; no gradients."""
    assert module.running_mean is not None
    assert module.running_var is not None
    shape, rows = _rows(_ready(maps))
    if relu_first:
        rows = rows.clamp(min=0)
    factor = module.weight * torch.rsqrt(module.running_var + module.eps)
    out = _affine(rows, factor, module.bias - module.running_mean * factor).view(shape)
    if relu_last:
        out.clamp_(min=0)
    if pool and relu_last:
        out = _pool(out.view(_INTEGERS[out.dtype]))[1].view(out.dtype)
        pool = False
    out = out.permute(0, 3, 1, 2)
    return F.max_pool2d(out, 2) if pool else out


Running = tuple[Tensor, Tensor, float, float]  # mean, variance, momentum, epsilon


def _ready(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last)


def _running(module: nn.BatchNorm2d) -> Running:
    assert module.running_mean is not None
    assert module.running_var is not None
    assert module.num_batches_tracked is not None
    assert module.momentum is not None
    module.num_batches_tracked.add_(1)
    return module.running_mean, module.running_var, module.momentum, module.eps


class _NormRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor, *options: Any) -> Tensor:
        running, keep, scale, pool = options
        shape, rows = _rows(maps)
        mean, inverse_std = _statistics(rows, running)
        factor = weight * scale * inverse_std
        out = _affine(rows, factor, bias * scale - mean * factor)
        bits = out.view(_INTEGERS[out.dtype]).clamp_(min=0)
        if keep is not None:
            bits.view(shape).bitwise_and_(_mask(keep, bits.dtype))
        saved = [rows, out, weight, mean, inverse_std]
        if pool:
            upper, best = _pool(bits.view(shape))
            saved += [upper, best]
        ctx.save_for_backward(*saved)
        ctx.options = (shape, running[3], scale, pool)
        return (best.view(out.dtype) if pool else out.view(shape)).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        shape, eps, scale, pool = ctx.options
        rows, out, weight, mean, inverse_std, *pooling = ctx.saved_tensors
        gradient = gradients[0].permute(0, 2, 3, 1).contiguous()  # (N, H, W, C), halved where pooled
        if pool:
            bits = out.view(_INTEGERS[out.dtype]).view(shape)
            gradient = _unpool(_where_positive(gradient, pooling[1]), bits, *pooling)
            gradient = gradient.view(rows.shape)
        else:
            gradient = torch.ops.aten.threshold_backward(gradient.view(rows.shape), out, 0)
        into, into_weight, into_bias = _normalise_backward(
            gradient, rows, weight * scale, mean, inverse_std, eps
        )
        into = into.view(shape).permute(0, 3, 1, 2)
        return into, into_weight * scale, into_bias * scale, *[None] * 4


class _ReluNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor, *options: Any) -> Tensor:
        running, relu, keep, scale, pool = options
        shape, rows = _rows(maps)
        bits = rows.view(_INTEGERS[rows.dtype])
        if relu:
            bits = bits.clamp(min=0)
            rows = bits.view(rows.dtype)
        mean, inverse_std = _statistics(rows, running)
        ctx.mask = None if keep is None else _mask(keep, bits.dtype)
        ctx.options = (shape, running[3], relu, scale)
        saved = [rows, weight, mean, inverse_std]
        normalised = rows
        if pool:
            ctx.flip = _flip(weight, bits.dtype)
            upper, best = _pool(_flipped(bits, ctx.flip).view(shape))
            saved += [upper, best]
            normalised = _flipped(best, ctx.flip).view(rows.dtype).view(-1, shape[3])
        factor = weight * scale * inverse_std
        out = _affine(normalised, factor, bias * scale - mean * factor)
        out = out.view(best.shape if pool else shape)
        if ctx.mask is not None:
            out.view(bits.dtype).bitwise_and_(ctx.mask)
        ctx.save_for_backward(*saved)
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        shape, eps, relu, scale = ctx.options
        rows, weight, mean, inverse_std, *pooling = ctx.saved_tensors
        integers = _INTEGERS[rows.dtype]
        gradient = gradients[0].permute(0, 2, 3, 1).contiguous()  # (N, H, W, C), halved where pooled
        if ctx.mask is not None:
            gradient = gradient.view(integers).bitwise_and(ctx.mask).view(rows.dtype)
        gradient = gradient.view(-1, shape[3])
        known = (weight * scale, mean, inverse_std)
        if pooling:
            upper, best = pooling
            normalised = _flipped(best, ctx.flip).view(rows.dtype).view(gradient.shape)
            into, into_weight, into_bias = _affine_backward(gradient, normalised, *known, eps)
            bits = _flipped(rows.view(integers), ctx.flip).view(shape)
            into = _unpool(into.view(best.shape), bits, upper, best).view(rows.shape)
            _add_through_statistics(into, rows, *known, into_weight, into_bias)
        else:
            into, into_weight, into_bias = _normalise_backward(gradient, rows, *known, eps)
        if relu:
            into = torch.ops.aten.threshold_backward(into, rows, 0)
        into = into.view(shape).permute(0, 3, 1, 2)
        return into, into_weight * scale, into_bias * scale, *[None] * 5


def _rows(maps: Tensor) -> tuple[tuple[int, int, int, int], Tensor]:
    """(N, H, W, C), and the maps as a matrix (N * H * W, C), a view."""
    count, channels, height, width = maps.shape
    return (count, height, width, channels), maps.permute(0, 2, 3, 1).reshape(-1, channels)


def _mask(keep: Tensor, integers: torch.dtype) -> Tensor:
    """(N, 1, 1, C): all bits where the channel stays, of booleans (N, C)."""
    return keep.to(integers).neg_()[:, None, None]


def _flip(weight: Tensor, integers: torch.dtype) -> Tensor | None:
    """(C,): all bits where the weight is negative; None where it is nowhere."""
    negative = weight < 0
    return negative.to(integers).neg_() if bool(negative.any()) else None


def _flipped(bits: Tensor, flip: Tensor | None) -> Tensor:
    """Numbers whose order is reversed in flipped channels; flipping twice changes nothing."""
    return bits if flip is None else bits.bitwise_xor(flip)


def _pool(bits: Tensor) -> tuple[Tensor, Tensor]:
    """Of integers (N, H, W, C) the larger of two rows (N, H/2, W/2, 2, C), then of two columns."""
    count, height, width, channels = bits.shape
    pairs = bits.view(count, height // 2, 2, width * channels)
    upper = torch.maximum(pairs[:, :, 0], pairs[:, :, 1])
    upper = upper.view(count, height // 2, width // 2, 2, channels)
    return upper, torch.maximum(upper[..., 0, :], upper[..., 1, :])


def _where_positive(gradient: Tensor, bits: Tensor) -> Tensor:
    """The gradient where integers are positive, else 0."""
    # An arithmetic shift by the sign bit makes a mask of all ones from a negative number, else zeros.
    mask = bits.neg().bitwise_right_shift_(_SIGN_BIT[bits.dtype])
    return mask.bitwise_and_(gradient.view(bits.dtype)).view(gradient.dtype)


def _unpool(gradient: Tensor, bits: Tensor, upper: Tensor, best: Tensor) -> Tensor:
    """The gradient of max-pooling; of equal values one gets everything.

    ``gradient`` (N, H/2, W/2, C); integers: ``bits`` (N, H, W, C), ``upper`` (N, H/2, W/2, 2, C) and
    ``best`` (N, H/2, W/2, C). Needs differences that do not overflow: numbers of one sign.
    """
    sign = _SIGN_BIT[best.dtype]
    count, height, width, channels = bits.shape
    passed = gradient.view(best.dtype)
    right = (upper[..., 0, :] - upper[..., 1, :]).bitwise_right_shift_(sign)
    split = torch.empty_like(upper)
    torch.bitwise_and(passed, right, out=split[..., 1, :])
    torch.bitwise_and(passed, right.bitwise_not_(), out=split[..., 0, :])
    split = split.view(count, height // 2, width * channels)
    rows = bits.view(count, height // 2, 2, width * channels)
    lower = (rows[:, :, 0] - rows[:, :, 1]).bitwise_right_shift_(sign)
    whole = torch.empty_like(rows)
    torch.bitwise_and(split, lower, out=whole[:, :, 1])
    torch.bitwise_and(split, lower.bitwise_not_(), out=whole[:, :, 0])
    return whole.view(gradient.dtype)


def _fold(rows: int, channels: int) -> int:
    """How many neighbouring rows make one long row."""
    factor = 1
    while rows % (2 * factor) == 0 and channels * factor < _LONG_ROW:
        factor *= 2
    return factor


def _statistics(rows: Tensor, running: Running) -> tuple[Tensor, Tensor]:
    """The columns' means and inverse standard deviations; updates ``running``."""
    count, channels = rows.shape
    running_mean, running_var, momentum, eps = running
    fold = _fold(count, channels)
    scratch = torch.zeros(fold * channels, dtype=running_mean.dtype)
    means, variances = torch.batch_norm_update_stats(
        rows.view(-1, fold * channels), scratch, scratch.clone(), 0.0
    )
    means, variances = means.view(fold, channels), variances.view(fold, channels)
    mean = means.mean(0)
    variance = variances.mean(0) + (means - mean).square_().mean(0)  # the law of total variance
    inverse_std = (variance + eps).rsqrt_()
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(variance.mul_(count / max(count - 1, 1)), momentum)
    return mean, inverse_std


def _affine(rows: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    """``rows * factor + shift`` in one pass: batch normalisation with mean 0 and variance 1."""
    fold = _fold(*rows.shape)
    size = fold * rows.shape[1]
    zeros, ones = torch.zeros(size, dtype=factor.dtype), torch.ones(size, dtype=factor.dtype)
    out = torch.native_batch_norm(
        rows.view(-1, size), factor.repeat(fold), shift.repeat(fold), zeros, ones, False, 0.0, 0.0
    )[0]
    return out.view(rows.shape)


def _normalise_backward(
    gradient: Tensor, rows: Tensor, weight: Tensor, mean: Tensor, inverse_std: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the rows, the weight and the bias of a batch normalisation in training mode."""
    if rows.shape[1] % _VECTOR == 0 or _fold(*rows.shape) == 1:
        result: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_batch_norm_backward(
            gradient, rows, weight, None, None, mean, inverse_std, True, eps, [True] * 3
        )
        return result
    into, into_weight, into_bias = _affine_backward(gradient, rows, weight, mean, inverse_std, eps)
    _add_through_statistics(into, rows, weight, mean, inverse_std, into_weight, into_bias)
    return into, into_weight, into_bias


def _affine_backward(
    gradient: Tensor, rows: Tensor, weight: Tensor, mean: Tensor, inverse_std: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same gradients, mean and inverse standard deviation taken as constants."""
    channels, fold = rows.shape[1], _fold(*rows.shape)
    size = fold * channels
    variance = inverse_std.square().reciprocal_().sub_(eps)
    into, into_weight, into_bias = torch.ops.aten.native_batch_norm_backward(
        gradient.view(-1, size),
        rows.view(-1, size),
        weight.repeat(fold),
        mean.repeat(fold),
        variance.repeat(fold),
        None,
        None,
        False,
        eps,
        [True] * 3,
    )
    into_weight, into_bias = into_weight.view(fold, channels).sum(0), into_bias.view(fold, channels).sum(0)
    return into.view(rows.shape), into_weight, into_bias


def _add_through_statistics(
    into: Tensor,
    rows: Tensor,
    weight: Tensor,
    mean: Tensor,
    inverse_std: Tensor,
    into_weight: Tensor,
    into_bias: Tensor,
) -> None:
    """Add to ``into`` the part of the rows' gradient that goes through mean and standard deviation."""
    count = rows.shape[0]
    factor = -weight * inverse_std.square() * into_weight / count
    into.add_(_affine(rows, factor, -weight * inverse_std * into_bias / count - mean * factor))
