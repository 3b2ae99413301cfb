"""A stored feature map on a CPU: its memory, its normalisation and dropout, and its gradient."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels import parameters, pointwise
from ..kernels.compile import LANES
from ..maps import Array, TiledMaps, zeros
from ..stages import FeatureMapSpec
from .convolution import Call

_FLOAT64 = np.dtype(np.float64)


class FeatureMap:
    """The maps of all images of a batch, and the calls that read them through their epilogue."""

    def __init__(
        self, spec: FeatureMapSpec, tiles: int, dtype: np.dtype[Any], threads: int, count: int, training: bool
    ) -> None:
        """``count`` images in ``tiles`` batch tiles; ``training``: batch statistics, and dropout."""
        self.spec, self.epilogue, self.dtype, self.count = spec, spec.epilogue, dtype, count
        self.channels, self.tiles, self.training = spec.shape[0], tiles, training
        self.maps = TiledMaps(spec.shape, dtype, tiles)
        # Factor, shift, and a value near the mean that is subtracted before sums are made: of large values
        # the sums of squares would leave nothing of the variance.
        self._affine = zeros((3, self.channels), dtype)
        self._for_backward = zeros((2, self.channels), dtype)
        self._dropout = zeros((tiles if self.epilogue.dropout else 0, self.channels, LANES), dtype)
        self._sums = zeros((threads, 2, self.channels), _FLOAT64)
        self._stats = zeros((4, self.channels), _FLOAT64)
        norm: Any = spec.norm
        if norm is not None:
            values = count * self.maps.size[0] * self.maps.size[1]  # a channel
            self._constants = np.array([values, values / max(values - 1, 1), norm.momentum, norm.eps])

    @cached_property
    def gradient(self) -> TiledMaps:
        """The gradient of the normalisation's output; without a normalisation, of the maps."""
        return TiledMaps(self.spec.shape, self.dtype, self.tiles)

    def read(self, target: TiledMaps, adds: bool = False) -> Call:
        """Write the maps after their epilogue to the target, or add them."""
        kernel = pointwise.forward(self.epilogue, adds, self.dtype)
        return [kernel, *self.maps.arguments, *target.arguments, *self._epilogue_arguments, *target.size]

    def batch_stats(self, thread: int, mask: Array) -> Call:
        """Sum for the normalisation. ``mask`` (tiles, LANES): 1 where a lane has an image, else 0."""
        kernel = pointwise.batch_stats(self.epilogue, self.dtype)
        more = [*self.maps.size, self._sums[thread].ctypes.data, mask.ctypes.data]
        return [kernel, *self.maps.arguments, *self._epilogue_arguments, *more]

    def backward(self, gradient: TiledMaps, thread: int, adds: bool) -> Call:
        """Take the gradient from a reader; every reader but the first one ``adds``."""
        kernel = pointwise.backward(self.epilogue, adds, self.dtype)
        maps = [*gradient.arguments, *self.maps.arguments, *self.gradient.arguments]
        return [kernel, *maps, *self._epilogue_arguments, *gradient.size, self._sums[thread].ctypes.data]

    def batchnorm_backward(self, target: TiledMaps, mask: Array) -> Call:
        """Write the gradient of the maps, from that of the normalisation's output."""
        kernel = pointwise.batchnorm_backward(self.epilogue, self.dtype)
        maps = [*self.gradient.arguments, *self.maps.arguments, *target.arguments]
        more = [*target.size, self._for_backward.ctypes.data, mask.ctypes.data]
        return [kernel, *maps, *self._epilogue_arguments, *more]

    def batchnorm_affine(self) -> Call:
        """Find factor and shift, by the batch's statistics, or in evaluation by the running ones."""
        norm: Any = self.spec.norm
        tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        return [
            *(parameters.batchnorm_affine(self.training, self.dtype), *self._sum_arguments),
            *(one.data_ptr() for one in tensors),
            *(self._affine.ctypes.data, self._stats.ctypes.data),
        ]

    def batchnorm_gradients(self, gradients: Mapping[Tensor, Array]) -> Call:
        """Find the gradients of the normalisation's weight and bias, after `backward` for all readers."""
        norm: Any = self.spec.norm
        return [
            *(parameters.batchnorm_gradients(self.training, self.dtype), *self._sum_arguments),
            *(self._stats.ctypes.data, self._for_backward.ctypes.data),
            *(gradients[one].ctypes.data for one in (norm.weight, norm.bias)),
        ]

    @property
    def _epilogue_arguments(self) -> list[int]:
        return [self._affine.ctypes.data, self._dropout.ctypes.data, self.channels]

    @property
    def _sum_arguments(self) -> list[int]:
        return [self.channels, len(self._sums), self._constants.ctypes.data, self._sums.ctypes.data]

    def begin_forward(self) -> None:
        """Before a forward pass: draw dropout."""
        self._sums.fill(0)
        dropout = self.spec.dropout
        if dropout is None:
            return
        self._dropout.fill(1)
        if self.training:
            kept = (torch.rand((self.count, self.channels)) >= dropout.p).numpy() / (1 - dropout.p)
            by_image = self._dropout.swapaxes(1, 2).reshape(-1, self.channels)
            by_image[: self.count] = kept
            self._dropout[:] = by_image.reshape(-1, LANES, self.channels).swapaxes(1, 2)

    def begin_backward(self) -> None:
        """Before a backward pass."""
        self._sums.fill(0)
