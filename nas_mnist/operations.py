"""What a stage consists of: a convolution's weights, and maps with what happens to them until they are read.

Both give rows of programs (`vectors.Program`): kernels with the addresses of what they work on.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import between, convolve
from .convolve import OUTPUTS, gradient_outputs, split
from .layers import Layer
from .maps import Array, Maps, zeros
from .stages import Stored
from .vectors import LANES

Row = list[int]


class Convolution:
    """A convolution's weights in the order in which kernels read them, and their gradients."""

    def __init__(self, layer: Layer, module: nn.Conv2d, kind: np.dtype[Any], threads: int) -> None:
        self.layer, self.module, self.kind = layer, module, kind
        self.kernel, self.stride, self.pad = layer.kernel[0], layer.stride, layer.padding
        self.depthwise = layer.groups > 1
        self.inputs, self.outputs = layer.in_shape[0], layer.out_shape[0]
        weight, size = module.weight.detach(), module.weight.numel()
        # Where the weights lie, whatever their layout, and where their gradients will.
        self._newest = weight.as_strided((size,), (1,)).numpy()
        places = torch.arange(size).as_strided(weight.shape, weight.stride()).numpy()
        plain = np.arange(size).reshape(weight.shape)
        turned = places[:, :, ::-1, ::-1]  # by half a turn: the way back is a convolution with these
        if self.depthwise:
            self._orders = places.ravel(), turned.ravel()
            self._gradient_order = plain.ravel()
        else:
            self._orders = _in_tiles(places, OUTPUTS), _in_tiles(turned.swapaxes(0, 1), OUTPUTS)
            self._gradient_order = _in_tiles(plain, gradient_outputs(self.kernel))
        self._weights, self._turned = zeros((places.size,), kind), zeros((places.size,), kind)
        self._bias, self._no_bias = zeros((self.outputs,), kind), zeros((self.inputs,), kind)
        self._gradients = zeros((threads, places.size), kind)
        self._bias_gradients = zeros((threads, self.outputs), kind)

    def begin(self) -> None:
        """Take the module's weights of now."""
        self._newest.take(self._orders[0], out=self._weights, mode="clip")  # which none needs, but is faster
        self._newest.take(self._orders[1], out=self._turned, mode="clip")
        if self.module.bias is not None:
            self._bias[:] = numbers(self.module.bias)

    def begin_back(self) -> None:
        """Before a way back."""
        self._gradients.fill(0)
        self._bias_gradients.fill(0)

    def gradients(self) -> dict[Tensor, Array]:
        """Those of weight and bias, after all threads."""
        into = np.empty(self._gradients.shape[1], self.kind)
        into[self._gradient_order] = self._gradients.sum(0)
        found = {self.module.weight: into.reshape(tuple(self.module.weight.shape))}
        if self.module.bias is not None:
            found[self.module.bias] = self._bias_gradients.sum(0)
        return found

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

    def __init__(self, stored: Stored, groups: int, kind: np.dtype[Any], threads: int) -> None:
        self.stored, self.post, self.kind = stored, stored.post, kind
        self.channels, self._groups = stored.shape[0], groups
        self.maps = Maps(stored.shape, kind, groups)
        # Factor, shift, and what is subtracted before sums are made, near the mean: of large numbers the
        # sums of squares would leave nothing of the variance.
        self._affine = zeros((3, self.channels), kind)
        self._through = zeros((2, self.channels), kind)
        self._kept = zeros((groups if self.post.dropout else 0, self.channels, LANES), kind)
        self._sums = zeros((threads, 2, self.channels), np.dtype(np.float64))
        norm: Any = stored.norm
        if norm is not None:
            self._weight, self._bias = numbers(norm.weight), numbers(norm.bias)
            self._running = numbers(norm.running_mean), numbers(norm.running_var)

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
    def sums(self) -> bool:
        """Whether the normalisation takes the statistics of the batch."""
        return self.stored.norm is not None and self.stored.norm.training

    @property
    def _chain(self) -> list[int]:
        return [self._affine.ctypes.data, self._kept.ctypes.data, self.channels]

    # What runs between programs, with few numbers.

    def begin(self, count: int) -> None:
        """Before a pass over ``count`` images: draw dropout."""
        self._sums.fill(0)
        dropout = self.stored.dropout
        if dropout is None:
            return
        self._kept.fill(1)
        if dropout.training:
            kept = (torch.rand((count, self.channels)) >= dropout.p).numpy() / (1 - dropout.p)
            places = self._kept.swapaxes(1, 2).reshape(-1, self.channels)  # image by image
            places[:count] = kept
            self._kept[:] = places.reshape(-1, LANES, self.channels).swapaxes(1, 2)

    def begin_back(self) -> None:
        """Before a way back."""
        self._sums.fill(0)

    def normalise(self, count: int) -> None:
        """Find factor and shift: by the batch's statistics, or in evaluation by the running ones."""
        norm: Any = self.stored.norm
        if norm is None:
            return
        if norm.training:
            values = self._values(count)
            first, second = self._sums.sum(0)
            apart = first / values
            self._mean = self._affine[2] + apart
            variance = np.maximum(second / values - apart * apart, 0)
            unbiased = variance * (values / max(values - 1, 1))
            for kept, newest in zip(self._running, (self._mean, unbiased), strict=True):
                np.add(kept, norm.momentum * (newest - kept), out=kept, casting="same_kind")
            norm.num_batches_tracked.add_(1)
        else:
            self._mean, variance = self._running[0].copy(), self._running[1]
        self._by_batch = norm.training
        self._inverse_std = 1 / np.sqrt(variance + norm.eps)
        self._factor = self._weight * self._inverse_std
        self._affine[0] = self._factor
        self._affine[1] = self._bias - self._mean * self._factor
        self._affine[2] = self._mean

    def gradients(self, count: int) -> dict[Tensor, Array]:
        """Those of the normalisation's weight and bias, when all readers are through.

        (Ioffe and Szegedy 2015, arxiv.org/abs/1502.03167, section 3.)
        """
        norm: Any = self.stored.norm
        if norm is None:
            return {}
        into_bias, second = self._sums.sum(0)
        into_weight = (second - (self._mean - self._affine[2]) * into_bias) * self._inverse_std
        self._through.fill(0)
        if self._by_batch:  # mean and variance depend on the maps
            values = self._values(count)
            linear = -self._factor * self._inverse_std * into_weight / values
            self._through[0] = linear
            self._through[1] = -self._factor * into_bias / values - self._mean * linear
        return {norm.weight: into_weight.astype(self.kind), norm.bias: into_bias.astype(self.kind)}

    def _values(self, count: int) -> int:
        """Numbers a channel."""
        return count * self.maps.size[0] * self.maps.size[1]


def numbers(tensor: Tensor) -> Array:
    """A tensor's memory as an array."""
    return tensor.detach().numpy()
