"""A convolution on a CPU: weights and gradients in the order of the kernels, and the calls that use them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ...models.layers import Layer
from ..kernels import convolution, parameters, pointwise
from ..kernels.compile import Call, DType
from ..kernels.convolution import OUTPUTS, gradient_outputs
from ..maps import Array, TiledMaps


class Convolution:
    """One layer's weights, and their gradients by thread."""

    def __init__(self, layer: Layer, module: nn.Conv2d, dtype: DType, threads: int) -> None:
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
        self._weights, self._flipped = dtype.zeros((size,)), dtype.zeros((size,))
        self._no_bias = dtype.zeros((max(self.inputs, self.outputs),))
        # Sums of one backward pass, by thread.
        self.gradients = dtype.zeros((threads, size))
        self.bias_gradients = dtype.zeros((threads, self.outputs))

    def gather_calls(self) -> list[Call]:
        """Calls that copy the module's present weights."""
        kernel, source = parameters.gather(self.dtype), self.module.weight.data_ptr()
        return [
            [kernel, source, target.data_ptr(), order.ctypes.data, order.size]
            for target, order in zip((self._weights, self._flipped), self._orders, strict=True)
        ]

    def scatter_calls(self, gradients: Mapping[Tensor, Tensor], adds: bool) -> list[Call]:
        """Calls that write the sums over threads to the gradients of weight and bias, or add them."""
        copies = [(self.gradients, self._gradient_order, self.module.weight)]
        if self.module.bias is not None:
            copies.append((self.bias_gradients, self._bias_order, self.module.bias))
        kernel = parameters.scatter_sum(self.dtype, adds)
        return [
            [
                *(kernel, source.data_ptr(), gradients[of].data_ptr()),
                *(order.ctypes.data, order.size, len(source)),
            ]
            for source, order, of in copies
        ]

    def forward(self, source: TiledMaps, target: TiledMaps) -> Call:
        """From the input with its padding to the output."""
        bias = self._no_bias if self.module.bias is None else self.module.bias
        data = [*source.padded_arguments, *target.arguments, self._weights.data_ptr(), bias.data_ptr()]
        pixelwise = source.dense and target.dense and self.kernel == self.stride == 1
        return self._call(data, self.inputs, self.outputs, self.stride, _size(target, pixelwise))

    def backward(self, gradient: TiledMaps, target: TiledMaps) -> Call:
        """From the output's gradient, in a `gradient_tile`, to the input's."""
        weights = [self._flipped.data_ptr(), self._no_bias.data_ptr()]
        data = [*gradient.padded_arguments, *target.arguments, *weights]
        pixelwise = gradient.dense and target.dense and self.kernel == 1
        return self._call(data, self.outputs, self.inputs, 1, _size(target, pixelwise))

    def _call(self, data: list[int], inputs: int, outputs: int, stride: int, size: list[int]) -> Call:
        if self.depthwise:
            return [convolution.depthwise(self.dtype, self.kernel, stride, False), *data, outputs, *size]
        kernel = convolution.dense(self.dtype, self.kernel, stride)
        return [kernel, *data, inputs, *size, *_tiles(outputs, OUTPUTS)]

    def weight_gradient(self, source: TiledMaps, gradient: TiledMaps, thread: int) -> list[Call]:
        """Calls that add to the thread's gradients of weight and bias."""
        pixelwise = source.dense and gradient.dense and self.kernel == self.stride == 1
        size, into = _size(gradient, pixelwise), self.gradients[thread].data_ptr()
        data = [*source.padded_arguments, *gradient.arguments, into, self.inputs, *size]
        if self.depthwise:
            kernel = convolution.depthwise_weight_gradient(self.dtype, self.kernel, self.stride)
        else:
            kernel = convolution.dense_weight_gradient(self.dtype, self.kernel, self.stride)
            data += _tiles(self.outputs, gradient_outputs(self.kernel))
        calls = [[kernel, *data]]
        if self.module.bias is not None:
            more = [self.outputs, *gradient.size, self.bias_gradients[thread].data_ptr()]
            calls.append([pointwise.channel_sums(self.dtype), *gradient.arguments, *more])
        return calls

    def gradient_tile(self) -> TiledMaps:
        """Memory for the output's gradient of one tile, with the zeros that `backward` reads."""
        return TiledMaps.for_gradient(self.layer, self.dtype)


def _size(maps: TiledMaps, pixelwise: bool) -> list[int]:
    """Height and width; maps of a pixelwise operation are one long row."""
    return [1, maps.size[0] * maps.size[1]] if pixelwise else list(maps.size)


def _split(channels: Array, most: int) -> list[Array]:
    """Nearly equal parts of at most ``most`` channels, the larger ones first."""
    return np.array_split(channels, -(-len(channels) // most))


def _in_tiles(places: Array, most: int) -> Array:
    """The order (tile, ky, input, kx, output of the tile) of weights (output, input, ky, kx)."""
    return np.concatenate([tile.transpose(2, 1, 3, 0).ravel() for tile in _split(places, most)])


def _tiles(outputs: int, most: int) -> list[int]:
    """How many tiles of outputs there are of every size, from ``most`` down to 1."""
    sizes = [len(tile) for tile in _split(np.arange(outputs), most)]
    return [sizes.count(size) for size in range(most, 0, -1)]
