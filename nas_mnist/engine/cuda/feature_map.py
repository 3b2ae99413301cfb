"""A stored feature map on CUDA, with its normalisation and dropout, and its gradient."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...models.layers import Layer
from ..kernels import parameters, pointwise
from ..maps import TiledMaps
from ..stages import FeatureMapSpec
from .workspace import Workspace
from .writer import WARP


class FeatureMap:
    """The maps of all images of a batch, and the launches that read them through their epilogue."""

    def __init__(
        self, workspace: Workspace, spec: FeatureMapSpec, producer: Layer | None, readers: int, training: bool
    ) -> None:
        """``producer``: the convolution that writes the maps, if one does; ``readers``: how many stages."""
        self.workspace, self.spec, self.epilogue = workspace, spec, spec.epilogue
        self.producer, self.readers, self.training = producer, readers, training
        self.channels = spec.shape[0]
        self.maps = workspace.maps(spec.shape)
        self.backward_launches = 0  # readers whose gradient is taken, so far
        # As in `cpu.feature_map`, by model.
        float64 = workspace.dtype.as_float64()
        self.affine = workspace.zeros((workspace.models, 3, self.channels))
        self._for_backward = workspace.zeros((workspace.models, 2, self.channels))
        self._stats = float64.zeros((workspace.models, 4, self.channels))
        tiles = workspace.tiles if self.epilogue.dropout else 0
        self.dropout_factors = workspace.zeros((tiles, self.channels, WARP)).fill_(1)
        norm: Any = spec.norm
        if norm is not None:
            values = workspace.count * self.maps.size[0] * self.maps.size[1]  # a channel
            constants = [values, values / max(values - 1, 1), norm.momentum, norm.eps]
            self._constants = float64.zeros((4,))
            self._constants.copy_(torch.tensor(constants, dtype=torch.float64))

    def draw_dropout(self) -> None:
        """Draw the factors of the maps: 0, or the inverse of the share that is kept."""
        assert self.spec.dropout is not None
        kept = 1 - self.spec.dropout.p
        self.dropout_factors.bernoulli_(kept).div_(kept)

    @cached_property
    def gradient(self) -> TiledMaps:
        """The gradient of the normalisation's output; without a normalisation, of the maps."""
        return self.workspace.maps(self.spec.shape) if self.epilogue.norm else self._gradient_of_maps()

    def _gradient_of_maps(self) -> TiledMaps:
        """Memory for the gradient of the maps, as the convolution that writes them reads it."""
        if self.producer is None:
            return self.workspace.maps(self.spec.shape)
        return self.workspace.gradient_maps(self.producer)

    @property
    def _epilogue_arguments(self) -> list[int]:
        return [*self.workspace.strided(self.affine), self.dropout_factors.data_ptr(), self.channels]

    def read(self, target: TiledMaps, adds: bool = False) -> None:
        """Write the maps after their epilogue to the target, or add them."""
        workspace = self.workspace
        kernel = pointwise.forward(self.epilogue, adds, workspace.dtype)
        arguments = [*self.maps.arguments, *target.arguments, *self._epilogue_arguments, *target.size]
        workspace.launch(kernel, arguments, self.channels, workspace.row_chunks(target.size[0]))

    def batchnorm_affine(self) -> None:
        """Find factor and shift, by the batch's statistics, or in evaluation by the running ones."""
        if not self.epilogue.norm:
            return
        workspace, norm = self.workspace, self.spec.norm
        sums = [self.channels, 0, self._constants.data_ptr(), 0, 0]
        if self.training:
            chunks = workspace.chunks(self.channels, self.maps.size[0])
            self._new_sums(chunks)
            kernel = pointwise.batch_stats(self.epilogue, workspace.dtype)
            more = [*self.maps.size, *self._block_sums, workspace.mask.data_ptr()]
            arguments = [*self.maps.arguments, *self._epilogue_arguments, *more]
            workspace.launch(kernel, arguments, self.channels, chunks)
            sums = self._model_sums
        tensors: Any = (norm.weight, norm.bias, norm.running_mean, norm.running_var)  # type: ignore[union-attr]
        arguments = [*sums, *self._strided(*tensors, self.affine, self._stats)]
        kernel = parameters.batchnorm_affine(self.training, workspace.dtype)
        workspace.launch(kernel, arguments, self.channels, per_model=True)

    def backward(self, gradient: TiledMaps) -> None:
        """Take the gradient from a reader; every reader but the first one adds."""
        workspace, height = self.workspace, gradient.size[0]
        chunks, sums = workspace.row_chunks(height), [0, 0]
        if self.epilogue.norm:
            chunks = workspace.chunks(self.channels, height)
            if not self.backward_launches:
                self._new_sums(chunks, self.readers)
            start, stride = self._block_sums
            of_reader = 2 * self.channels * self.sums.element_size()
            sums = [start + self.backward_launches * of_reader, stride]
        kernel = pointwise.backward(self.epilogue, self.backward_launches > 0, workspace.dtype)
        self.backward_launches += 1
        maps = [*gradient.arguments, *self.maps.arguments, *self.gradient.arguments]
        arguments = [*maps, *self._epilogue_arguments, *gradient.size, *sums]
        workspace.launch(kernel, arguments, self.channels, chunks)

    def batchnorm_backward(self, gradients: Mapping[Tensor, Tensor]) -> TiledMaps:
        """The gradient of the maps, after `backward` for all readers; and those of the normalisation."""
        if not self.epilogue.norm:
            return self.gradient
        workspace, norm, target = self.workspace, self.spec.norm, self._gradient_of_maps()
        assert norm is not None
        into = [gradients[one] for one in (norm.weight, norm.bias)]
        arguments = [*self._model_sums, *self._strided(self._stats, self._for_backward, *into)]
        kernel = parameters.batchnorm_gradients(True, workspace.dtype)
        workspace.launch(kernel, arguments, self.channels, per_model=True)
        kernel = pointwise.batchnorm_backward(self.epilogue, workspace.dtype)
        maps = [*self.gradient.arguments, *self.maps.arguments, *target.arguments]
        more = [*target.size, *workspace.strided(self._for_backward), workspace.mask.data_ptr()]
        arguments = [*maps, *self._epilogue_arguments, *more]
        workspace.launch(kernel, arguments, self.channels, workspace.row_chunks(target.size[0]))
        return target

    def _strided(self, *tensors: Tensor) -> list[int]:
        return [number for one in tensors for number in self.workspace.strided(one)]

    def _new_sums(self, chunks: int, readers: int = 1) -> None:
        """Memory for the sums of every block, for one reader after the other."""
        shape = self.workspace.tiles * chunks, readers, 2, self.channels
        self.sums: Tensor = self.workspace.keep(self.workspace.dtype.as_float64().zeros(shape))

    @property
    def _block_sums(self) -> list[int]:
        return [self.sums.data_ptr(), self.sums[0].numel() * self.sums.element_size()]

    @property
    def _model_sums(self) -> list[int]:
        rows = self.sums.shape[0] * self.sums.shape[1] // self.workspace.models
        return [self.channels, rows, self._constants.data_ptr(), *self.workspace.strided(self.sums)]
