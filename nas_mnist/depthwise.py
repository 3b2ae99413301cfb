"""Depthwise convolutions whose gradients torch computes slowly on a CPU, with gradients of their own.

Maps are (N, C, H, W) in channels_last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_NARROW = 3  # pixels; the widest kernel whose weight gradient torch computes fast


def is_slow(module: nn.Conv2d) -> bool:
    """Whether `depthwise` is faster than torch's own convolution."""
    each_its_own = module.groups == module.in_channels == module.out_channels > 1
    return each_its_own and (module.kernel_size[0] > _NARROW or module.stride[0] > 1)


def depthwise(maps: Tensor, weight: Tensor, bias: Tensor | None, stride: int, pad: int) -> Tensor:
    """A depthwise convolution; ``weight`` (C, 1, K, K) and ``bias`` (C,) are of the maps' type."""
    result: Tensor = _Depthwise.apply(maps, weight, bias, stride, pad)
    return result


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution with a stride or a wide kernel, whose gradients torch computes slowly.

    For 32 channels of 28x28 and a batch of 128 in bfloat16 torch takes 46 ms to 91 ms for the gradient of
    the input where there is a stride, against 2 ms without one: the output's gradient is spread over the
    pixels of a convolution without stride, zeros between. It takes 59 ms for the gradient of a 5x5
    kernel, against 1 ms for 3x3: that one is put together from those of 3x3 kernels on shifted maps.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor | None, *shape: int) -> Tensor:
        ctx.save_for_backward(maps, weight)
        ctx.shape = stride, pad = shape
        return F.conv2d(maps, weight, bias, stride, pad, 1, weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        maps, weight = ctx.saved_tensors
        (stride, pad), size = ctx.shape, weight.shape[2]
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        everywhere = _spread(gradient, [2 * pad - size + 1 + extent for extent in maps.shape[2:]], stride)
        into = None
        if ctx.needs_input_grad[0]:
            into = _depthwise_backward(everywhere, maps, weight, 1, pad, (True, False, False))[0]
        if size <= _NARROW:
            wanted = (False, True, ctx.needs_input_grad[2])
            _, into_weight, into_bias = _depthwise_backward(gradient, maps, weight, stride, pad, wanted)
        else:
            into_weight, into_bias = _wide_gradients(everywhere, maps, weight, pad, ctx.needs_input_grad[2])
        return into, into_weight, into_bias if ctx.needs_input_grad[2] else None, None, None


def _spread(gradient: Tensor, extent: Sequence[int], stride: int) -> Tensor:
    """The gradient of every ``stride``-th pixel as that of all pixels of (N, C, *extent)."""
    if stride == 1:
        return gradient
    shape = (*gradient.shape[:2], *extent)
    spread = gradient.new_zeros(shape).contiguous(memory_format=torch.channels_last)
    spread[:, :, ::stride, ::stride] = gradient
    return spread


def _depthwise_backward(
    gradient: Tensor, maps: Tensor, weight: Tensor, stride: int, pad: int, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Torch's gradients of a depthwise convolution's input, weight and bias, where ``wanted``."""
    channels = len(weight)
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        gradient, maps, weight, [channels], [stride] * 2, [pad] * 2, [1, 1], False, [0, 0], channels, wanted
    )
    return result


def _wide_gradients(
    gradient: Tensor, maps: Tensor, weight: Tensor, pad: int, with_bias: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of a wide depthwise kernel without stride and of its bias, from 3x3 pieces."""
    size = weight.shape[2]
    padded = F.pad(maps, (pad, pad, pad, pad)).contiguous(memory_format=torch.channels_last)
    height, width = (extent + _NARROW - 1 for extent in gradient.shape[2:])
    into_weight, into_bias = torch.empty_like(weight), torch.empty_like(weight[:, 0, 0, 0])
    narrow = torch.empty_like(weight[:, :, :_NARROW, :_NARROW])
    starts = sorted({min(start, size - _NARROW) for start in range(0, size, _NARROW)})
    for top in starts:
        for left in starts:
            part = padded[:, :, top : top + height, left : left + width]
            part = part.contiguous(memory_format=torch.channels_last)
            wanted = (False, True, with_bias and top == left == 0)
            _, here, bias_here = _depthwise_backward(gradient, part, narrow, 1, 0, wanted)
            into_weight[:, :, top : top + _NARROW, left : left + _NARROW] = here
            into_bias = bias_here if wanted[2] else into_bias
    return into_weight, into_bias
