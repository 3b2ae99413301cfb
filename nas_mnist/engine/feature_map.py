"""A stored feature map: its memory, and the calls of kernels that read it through its epilogue."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .kernels import parameters, pointwise
from .kernels.compile import Call, DType
from .maps import TiledMaps
from .stages import FeatureMapSpec


class FeatureMap:
    """The maps of all images of a batch, with their normalisation and dropout, and their gradient."""

    def __init__(
        self,
        spec: FeatureMapSpec,
        dtype: DType,
        tiles: int,
        count: int,
        training: bool,
        models: int = 1,
        threads: int = 0,
    ) -> None:
        """``count`` images a model in ``tiles`` batch tiles; ``training``: with the batch's statistics.

        ``threads``: how many sum for the normalisation, each to its row of `sums`.
        """
        self.spec, self.epilogue, self.dtype = spec, spec.epilogue, dtype
        self.tiles, self.models, self.training = tiles, models, training
        self.channels, float64 = spec.shape[0], dtype.as_float64()
        self.maps = TiledMaps(spec.shape, dtype, tiles)
        # Factor, shift, and a value near the mean that is subtracted before sums are made: of large values
        # the sums of squares would leave nothing of the variance.
        self.affine = dtype.zeros((models, 3, self.channels))
        self._for_backward = dtype.zeros((models, 2, self.channels))
        self._stats = float64.zeros((models, 4, self.channels))
        self.sums = float64.zeros((threads, 2, self.channels))
        with_dropout = tiles if self.epilogue.dropout else 0
        self.dropout_factors = dtype.zeros((with_dropout, self.channels, dtype.lanes)).fill_(1)
        norm: Any = spec.norm
        if norm is not None:
            values = count * self.maps.size[0] * self.maps.size[1]  # a channel
            constants = [values, values / max(values - 1, 1), norm.momentum, norm.eps]
            self._constants = torch.tensor(constants, dtype=torch.float64, device=dtype.device)

    @cached_property
    def gradient(self) -> TiledMaps:
        """The gradient of the normalisation's output; without a normalisation, of the maps."""
        return TiledMaps(self.spec.shape, self.dtype, self.tiles)

    def read(self, target: TiledMaps, adds: bool = False) -> Call:
        """Write the maps after their epilogue to the target, or add them."""
        kernel = pointwise.forward(self.dtype, self.epilogue, adds)
        return [kernel, *self.maps.arguments, *target.arguments, *self._epilogue_arguments, *target.size]

    def batch_stats(self, sums: list[int], mask: Tensor) -> Call:
        """Sum for the normalisation. ``mask`` (tiles, lanes): 1 where a lane has an image, else 0."""
        kernel = pointwise.batch_stats(self.dtype, self.epilogue)
        more = [*self.maps.size, *sums, mask.data_ptr()]
        return [kernel, *self.maps.arguments, *self._epilogue_arguments, *more]

    def take_gradient(self, gradient: TiledMaps, sums: list[int], adds: bool) -> Call:
        """Take the gradient from a reader; every reader but the first one ``adds``."""
        kernel = pointwise.backward(self.dtype, self.epilogue, adds)
        maps = [*gradient.arguments, *self.maps.arguments, *self.gradient.arguments]
        return [kernel, *maps, *self._epilogue_arguments, *gradient.size, *sums]

    def batchnorm_backward(self, target: TiledMaps, mask: Tensor) -> Call:
        """Write the gradient of the maps, from that of the normalisation's output."""
        kernel = pointwise.batchnorm_backward(self.dtype, self.epilogue)
        maps = [*self.gradient.arguments, *self.maps.arguments, *target.arguments]
        more = [*target.size, *self._per_model(self._for_backward), mask.data_ptr()]
        return [kernel, *maps, *self._epilogue_arguments, *more]

    def batchnorm_affine(self) -> Call:
        """Find factor and shift, by the batch's statistics, or in evaluation by the running ones."""
        kernel = parameters.batchnorm_affine(self.dtype.as_float64(), self.training, self.dtype.number)
        norm = self.spec.norm
        tensors: Any = (norm.weight, norm.bias, norm.running_mean, norm.running_var)  # type: ignore[union-attr]
        return [kernel, *self._sum_arguments, *self._per_model(*tensors, self.affine, self._stats)]

    def batchnorm_gradients(self, gradients: Mapping[Tensor, Tensor]) -> Call:
        """Find the gradients of the normalisation's weight and bias, after all readers' `take_gradient`."""
        norm: Any = self.spec.norm
        tensors = (self._stats, self._for_backward, gradients[norm.weight], gradients[norm.bias])
        kernel = parameters.batchnorm_gradients(self.dtype.as_float64(), self.dtype.number)
        return [kernel, *self._sum_arguments, *self._per_model(*tensors)]

    @property
    def _epilogue_arguments(self) -> list[int]:
        return [*self._per_model(self.affine), self.dropout_factors.data_ptr(), self.channels]

    @property
    def _sum_arguments(self) -> list[int]:
        rows = self.sums.numel() // (self.models * 2 * self.channels)
        return [self.channels, rows, self._constants.data_ptr(), *self._per_model(self.sums)]

    def _per_model(self, *tensors: Tensor) -> list[int]:
        return self.dtype.per_model(self.models, *tensors)
