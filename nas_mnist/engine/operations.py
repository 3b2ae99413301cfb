"""What a stage consists of: a convolution's weights, and maps with what happens to them until they are read.

Both give rows of programs (`vectors.Program`): kernels with the addresses of what they work on.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..models.layers import Layer
from . import between, convolve, parameters
from .convolve import OUTPUTS, gradient_outputs, split
from .maps import Array, Maps, zeros
from .stages import Stored
from .vectors import LANES

Row = list[int]
_WIDE = np.dtype(np.float64)


class Convolution:
    """A convolution's weights in the order in which kernels read them, and their gradients."""

    def __init__(self, layer: Layer, module: nn.Conv2d, kind: np.dtype[Any], threads: int) -> None:
        self.layer, self.module, self.kind = layer, module, kind
        self.kernel, self.stride, self.pad = layer.kernel[0], layer.stride, layer.padding
        self.depthwise = layer.groups > 1
        self.inputs, self.outputs = layer.in_shape[0], layer.out_shape[0]
        size = module.weight.numel()
        # Where the weights lie, whatever their layout, and where their gradients will.
        places = torch.arange(size).as_strided(module.weight.shape, module.weight.stride()).numpy()
        plain = np.arange(size).reshape(module.weight.shape)
        turned = places[:, :, ::-1, ::-1]  # by half a turn: the way back is a convolution with these
        if self.depthwise:
            self._orders = places.ravel(), turned.ravel()
            self._gradient_order = plain.ravel()
        else:
            self._orders = _in_tiles(places, OUTPUTS), _in_tiles(turned.swapaxes(0, 1), OUTPUTS)
            self._gradient_order = _in_tiles(plain, gradient_outputs(self.kernel))
        self._bias_order = np.arange(self.outputs)
        self._weights, self._turned = zeros((size,), kind), zeros((size,), kind)
        self._bias, self._no_bias = zeros((self.outputs,), kind), zeros((self.inputs,), kind)
        self._gradients = zeros((threads, size), kind)
        self._bias_gradients = zeros((threads, self.outputs), kind)

    def taken(self) -> list[Row]:
        """Rows that take the module's weights of now."""
        weight, bias = self.module.weight, self.module.bias
        jobs = [
            (weight, self._weights, self._orders[0]),
            (weight, self._turned, self._orders[1]),
            *([] if bias is None else [(bias, self._bias, self._bias_order)]),
        ]
        return [
            [parameters.take(self.kind), source.data_ptr(), target.ctypes.data, order.ctypes.data, order.size]
            for source, target, order in jobs
        ]

    def begin_back(self) -> None:
        """Before a way back."""
        self._gradients.fill(0)
        self._bias_gradients.fill(0)

    def put(self, gradients: Mapping[Tensor, Array], adds: bool) -> list[Row]:
        """Rows that put what all threads found to the gradients of weight and bias, or add it."""
        jobs = [(self._gradients, self._gradient_order, self.module.weight)]
        if self.module.bias is not None:
            jobs.append((self._bias_gradients, self._bias_order, self.module.bias))
        return [
            [
                *(parameters.put(adds, self.kind), source.ctypes.data, gradients[of].ctypes.data),
                *(order.ctypes.data, order.size, len(source)),
            ]
            for source, order, of in jobs
        ]

    def forward(self, source: Maps, target: Maps) -> Row:
        """From the input, with its padding around it, to the output."""
        weights = [self._weights.ctypes.data, self._bias.ctypes.data]
        data = [*source.from_the_edge, *target.arguments, *weights]
        pixelwise = source.dense and target.dense and self.kernel == self.stride == 1
        return self._row(data, self.inputs, self.outputs, self.stride, _size(target, pixelwise))

    def backward(self, gradient: Maps, target: Maps) -> Row:
        """From the output's gradient, in a `place_for_gradient`, to the input's."""
        weights = [self._turned.ctypes.data, self._no_bias.ctypes.data]
        data = [*gradient.from_the_edge, *target.arguments, *weights]
        pixelwise = gradient.dense and target.dense and self.kernel == 1
        return self._row(data, self.outputs, self.inputs, 1, _size(target, pixelwise))

    def _row(self, data: list[int], inputs: int, outputs: int, stride: int, size: list[int]) -> Row:
        if self.depthwise:
            return [convolve.depthwise(self.kernel, stride, self.kind), *data, outputs, *size]
        return [
            *(convolve.dense(self.kernel, stride, self.kind), *data, inputs, *size),
            *_tiles(outputs, OUTPUTS),
        ]

    def weight_gradient(self, source: Maps, gradient: Maps, thread: int) -> list[Row]:
        """Rows that add to the gradients of weight and bias."""
        pixelwise = source.dense and gradient.dense and self.kernel == self.stride == 1
        size = _size(gradient, pixelwise)
        data = [*source.from_the_edge, *gradient.arguments, self._gradients[thread].ctypes.data, self.inputs]
        if self.depthwise:
            rows = [[convolve.depthwise_gradient(self.kernel, self.stride, self.kind), *data, *size]]
        else:
            kernel = convolve.dense_gradient(self.kernel, self.stride, self.kind)
            rows = [[kernel, *data, *size, *_tiles(self.outputs, gradient_outputs(self.kernel))]]
        if self.module.bias is not None:
            into = self._bias_gradients[thread].ctypes.data
            rows.append([between.totals(self.kind), *gradient.arguments, self.outputs, *gradient.size, into])
        return rows

    def place_for_gradient(self) -> Maps:
        """Room for the output's gradient of one group, with the zeros that `backward` reads."""
        before = self.kernel - 1 - self.pad
        _, *read = self.layer.in_shape
        _, *written = self.layer.out_shape
        height, width = (
            into + self.pad - ((out - 1) * self.stride + 1) for into, out in zip(read, written, strict=True)
        )
        return Maps(self.layer.out_shape, self.kind, before=before, behind=(height, width), apart=self.stride)


def _size(maps: Maps, pixelwise: bool) -> list[int]:
    """Height and width; a map whose pixels have nothing to do with each other is one long row."""
    return [1, maps.size[0] * maps.size[1]] if pixelwise else list(maps.size)


def _in_tiles(places: Array, most: int) -> Array:
    """The order (tile, ky, input, kx, output of the tile) of weights (output, input, ky, kx)."""
    tiles, first = [], 0
    for size in split(len(places), most):
        tiles.append(places[first : first + size].transpose(2, 1, 3, 0).ravel())
        first += size
    return np.concatenate(tiles)


def _tiles(outputs: int, most: int) -> list[int]:
    """How many tiles there are of every size, from the largest to one of a single output."""
    sizes = split(outputs, most)
    return [sizes.count(size) for size in range(most, 0, -1)]


class Outcome:
    """`Stored` maps of all images: their memory, their normalisation and dropout, and their gradient."""

    def __init__(self, stored: Stored, groups: int, kind: np.dtype[Any], threads: int, count: int) -> None:
        self.stored, self.post, self.kind, self.count = stored, stored.post, kind, count
        self.channels, self._groups = stored.shape[0], groups
        self.maps = Maps(stored.shape, kind, groups)
        # Factor, shift, and what is subtracted before sums are made, near the mean: of large numbers the
        # sums of squares would leave nothing of the variance.
        self._affine = zeros((3, self.channels), kind)
        self._through = zeros((2, self.channels), kind)
        self._dropout = zeros((groups if self.post.dropout else 0, self.channels, LANES), kind)
        self._sums = zeros((threads, 2, self.channels), _WIDE)
        self._kept = zeros((4, self.channels), _WIDE)
        norm: Any = stored.norm
        if norm is not None:
            values = count * self.maps.size[0] * self.maps.size[1]  # a channel
            self._numbers = np.array([values, values / max(values - 1, 1), norm.momentum, norm.eps])

    @cached_property
    def gradient(self) -> Maps:
        """That of the normalisation's output; without a normalisation, that of the maps."""
        return Maps(self.stored.shape, self.kind, self._groups)

    # Rows of programs.

    def read(self, target: Maps, adds: bool = False) -> Row:
        """Write what readers see, or add it."""
        kernel = between.forward(self.post, adds, self.kind)
        return [kernel, *self.maps.arguments, *target.arguments, *self._chain, *target.size]

    def summed(self, thread: int, there: Array) -> Row:
        """Sum what the normalisation reads. ``there`` (groups, LANES): 1 where there is an image, else 0."""
        kernel = between.statistics(self.post, self.kind)
        more = [*self.maps.size, self._sums[thread].ctypes.data, there.ctypes.data]
        return [kernel, *self.maps.arguments, *self._chain, *more]

    def back(self, gradient: Maps, thread: int, adds: bool) -> Row:
        """Take the gradient of what a reader saw; every reader but the first one ``adds``."""
        kernel = between.backward(self.post, adds, self.kind)
        maps = [*gradient.arguments, *self.maps.arguments, *self.gradient.arguments]
        return [kernel, *maps, *self._chain, *gradient.size, self._sums[thread].ctypes.data]

    def through_norm(self, target: Maps, there: Array) -> Row:
        """Write the gradient of the maps."""
        kernel = between.through_norm(self.post, self.kind)
        maps = [*self.gradient.arguments, *self.maps.arguments, *target.arguments]
        more = [*target.size, self._through.ctypes.data, there.ctypes.data]
        return [kernel, *maps, *self._chain, *more]

    @property
    def _chain(self) -> list[int]:
        return [self._affine.ctypes.data, self._dropout.ctypes.data, self.channels]

    def normalised(self, by_batch: bool) -> Row:
        """Find factor and shift: by the batch's statistics, or in evaluation by the running ones."""
        norm: Any = self.stored.norm
        where = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        return [
            *(parameters.normalise(by_batch, self.kind), *self._summed, *(one.data_ptr() for one in where)),
            *(self._affine.ctypes.data, self._kept.ctypes.data),
        ]

    def put(self, gradients: Mapping[Tensor, Array], by_batch: bool) -> Row:
        """Find the gradients of the normalisation's weight and bias, when all readers are through."""
        norm: Any = self.stored.norm
        return [
            *(parameters.gradients(by_batch, self.kind), *self._summed),
            *(self._kept.ctypes.data, self._through.ctypes.data),
            *(gradients[one].ctypes.data for one in (norm.weight, norm.bias)),
        ]

    @property
    def _summed(self) -> list[int]:
        return [self.channels, len(self._sums), self._numbers.ctypes.data, self._sums.ctypes.data]

    # What runs between programs.

    def begin(self) -> None:
        """Before a pass: draw dropout."""
        self._sums.fill(0)
        dropout = self.stored.dropout
        if dropout is None:
            return
        self._dropout.fill(1)
        if dropout.training:
            kept = (torch.rand((self.count, self.channels)) >= dropout.p).numpy() / (1 - dropout.p)
            places = self._dropout.swapaxes(1, 2).reshape(-1, self.channels)  # image by image
            places[: self.count] = kept
            self._dropout[:] = places.reshape(-1, LANES, self.channels).swapaxes(1, 2)

    def begin_back(self) -> None:
        """Before a way back."""
        self._sums.fill(0)
