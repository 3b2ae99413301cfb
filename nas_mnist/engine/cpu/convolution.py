"""A convolution on a CPU: its weights and gradients in the order of the kernels, and the calls that use them.

A call is a kernel's address with the addresses of its data (`kernels.compile.CallList`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...models.layers import Layer
from ..kernels import convolution, parameters, pointwise
from ..kernels.convolution import OUTPUTS, gradient_outputs, split
from ..maps import Array, TiledMaps, zeros

Call = list[int]


class Convolution:
    """One layer's weights, and their gradients by thread."""

    def __init__(self, layer: Layer, module: nn.Conv2d, dtype: np.dtype[Any], threads: int) -> None:
        self.layer, self.module, self.dtype = layer, module, dtype
        self.kernel, self.stride, self.pad = layer.kernel[0], layer.stride, layer.padding
        self.depthwise = layer.groups > 1
        self.inputs, self.outputs = layer.in_shape[0], layer.out_shape[0]
        size = module.weight.numel()
        # The places of the weights in memory, for any layout; gradients are contiguous.
        places = torch.arange(size).as_strided(module.weight.shape, module.weight.stride()).numpy()
        contiguous = np.arange(size).reshape(module.weight.shape)
        flipped = places[:, :, ::-1, ::-1]  # the backward pass is a convolution with flipped weights
        if self.depthwise:
            self._orders = places.ravel(), flipped.ravel()
            self._gradient_order = contiguous.ravel()
        else:
            self._orders = _in_tiles(places, OUTPUTS), _in_tiles(flipped.swapaxes(0, 1), OUTPUTS)
            self._gradient_order = _in_tiles(contiguous, gradient_outputs(self.kernel))
        self._bias_order = np.arange(self.outputs)
        self._weights, self._flipped = zeros((size,), dtype), zeros((size,), dtype)
        self._bias, self._no_bias = zeros((self.outputs,), dtype), zeros((self.inputs,), dtype)
        self._gradients = zeros((threads, size), dtype)
        self._bias_gradients = zeros((threads, self.outputs), dtype)

    def gather_calls(self) -> list[Call]:
        """Calls that copy the module's present weights."""
        weight, bias = self.module.weight, self.module.bias
        copies = [
            (weight, self._weights, self._orders[0]),
            (weight, self._flipped, self._orders[1]),
            *([] if bias is None else [(bias, self._bias, self._bias_order)]),
        ]
        kernel = parameters.gather(self.dtype)
        return [
            [kernel, source.data_ptr(), target.ctypes.data, order.ctypes.data, order.size]
            for source, target, order in copies
        ]

    def zero_gradients(self) -> None:
        """Before a backward pass."""
        self._gradients.fill(0)
        self._bias_gradients.fill(0)

    def scatter_calls(self, gradients: Mapping[Tensor, Array], adds: bool) -> list[Call]:
        """Calls that write the sums over threads to the gradients of weight and bias, or add them."""
        copies = [(self._gradients, self._gradient_order, self.module.weight)]
        if self.module.bias is not None:
            copies.append((self._bias_gradients, self._bias_order, self.module.bias))
        kernel = parameters.scatter_sum(adds, self.dtype)
        return [
            [
                *(kernel, source.ctypes.data, gradients[of].ctypes.data),
                *(order.ctypes.data, order.size, len(source)),
            ]
            for source, order, of in copies
        ]

    def forward(self, source: TiledMaps, target: TiledMaps) -> Call:
        """From the input with its padding to the output."""
        weights = [self._weights.ctypes.data, self._bias.ctypes.data]
        data = [*source.padded_arguments, *target.arguments, *weights]
        pixelwise = source.dense and target.dense and self.kernel == self.stride == 1
        return self._call(data, self.inputs, self.outputs, self.stride, _size(target, pixelwise))

    def backward(self, gradient: TiledMaps, target: TiledMaps) -> Call:
        """From the output's gradient, in a `gradient_tile`, to the input's."""
        weights = [self._flipped.ctypes.data, self._no_bias.ctypes.data]
        data = [*gradient.padded_arguments, *target.arguments, *weights]
        pixelwise = gradient.dense and target.dense and self.kernel == 1
        return self._call(data, self.outputs, self.inputs, 1, _size(target, pixelwise))

    def _call(self, data: list[int], inputs: int, outputs: int, stride: int, size: list[int]) -> Call:
        if self.depthwise:
            return [convolution.depthwise(self.kernel, stride, self.dtype), *data, outputs, *size]
        kernel = convolution.dense(self.kernel, stride, self.dtype)
        return [kernel, *data, inputs, *size, *_tiles(outputs, OUTPUTS)]

    def weight_gradient(self, source: TiledMaps, gradient: TiledMaps, thread: int) -> list[Call]:
        """Calls that add to the thread's gradients of weight and bias."""
        pixelwise = source.dense and gradient.dense and self.kernel == self.stride == 1
        size, into = _size(gradient, pixelwise), self._gradients[thread].ctypes.data
        data = [*source.padded_arguments, *gradient.arguments, into, self.inputs]
        if self.depthwise:
            kernel = convolution.depthwise_weight_gradient(self.kernel, self.stride, self.dtype)
            calls = [[kernel, *data, *size]]
        else:
            kernel = convolution.dense_weight_gradient(self.kernel, self.stride, self.dtype)
            calls = [[kernel, *data, *size, *_tiles(self.outputs, gradient_outputs(self.kernel))]]
        if self.module.bias is not None:
            more = [self.outputs, *gradient.size, self._bias_gradients[thread].ctypes.data]
            calls.append([pointwise.channel_sums(self.dtype), *gradient.arguments, *more])
        return calls

    def gradient_tile(self) -> TiledMaps:
        """Memory for the output's gradient of one tile, with the zeros that `backward` reads."""
        return TiledMaps.for_gradient(self.layer, self.dtype)


def _size(maps: TiledMaps, pixelwise: bool) -> list[int]:
    """Height and width; maps of a pixelwise operation are one long row."""
    return [1, maps.size[0] * maps.size[1]] if pixelwise else list(maps.size)


def _in_tiles(places: Array, most: int) -> Array:
    """The order (tile, ky, input, kx, output of the tile) of weights (output, input, ky, kx)."""
    tiles, first = [], 0
    for size in split(len(places), most):
        tiles.append(places[first : first + size].transpose(2, 1, 3, 0).ravel())
        first += size
    return np.concatenate(tiles)


def _tiles(outputs: int, most: int) -> list[int]:
    """How many tiles of outputs there are of every size, from ``most`` down to 1."""
    sizes = split(outputs, most)
    return [sizes.count(size) for size in range(most, 0, -1)]
