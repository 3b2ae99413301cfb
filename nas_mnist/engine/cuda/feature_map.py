"""A stored feature map on CUDA: the launches that read it, and where its gradient lies."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from torch import Tensor

from ...models.layers import Layer
from ..feature_map import FeatureMap
from ..maps import TiledMaps
from ..stages import FeatureMapSpec
from .workspace import Workspace


class CudaFeatureMap(FeatureMap):
    """A `FeatureMap` whose calls are added to a workspace's launches."""

    def __init__(
        self, workspace: Workspace, spec: FeatureMapSpec, producer: Layer | None, readers: int, training: bool
    ) -> None:
        """``producer``: the convolution that writes the maps, if one does; ``readers``: how many stages."""
        super().__init__(
            *(spec, workspace.dtype, workspace.tiles, workspace.count), training, workspace.models
        )
        self.workspace, self.producer, self.readers = workspace, producer, readers
        self.readers_done = 0  # readers whose gradient is taken, so far

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

    def launch_read(self, target: TiledMaps, adds: bool = False) -> None:
        """Write the maps after their epilogue to the target, or add them."""
        chunks = self.workspace.row_chunks(target.size[0])
        self.workspace.launch(self.read(target, adds), self.channels, chunks)

    def launch_affine(self) -> None:
        """Find the normalisation's factor and shift, in training by the batch's statistics."""
        if not self.epilogue.norm:
            return
        workspace = self.workspace
        if self.training:
            chunks = workspace.chunks(self.channels, self.maps.size[0])
            call = self.batch_stats(self._new_sums(chunks), workspace.mask)
            workspace.launch(call, self.channels, chunks)
        workspace.launch(self.batchnorm_affine(), self.channels, per_model=True)

    def launch_backward(self, gradient: TiledMaps) -> None:
        """Take the gradient from a reader; every reader but the first one adds."""
        workspace, height = self.workspace, gradient.size[0]
        chunks, sums = workspace.row_chunks(height), [0, 0]
        if self.epilogue.norm:
            chunks = workspace.chunks(self.channels, height)
            if not self.readers_done:
                self._new_sums(chunks, self.readers)
            sums = self._block_sums(self.readers_done)
        call = self.take_gradient(gradient, sums, adds=self.readers_done > 0)
        self.readers_done += 1
        workspace.launch(call, self.channels, chunks)

    def launch_batchnorm_backward(self, gradients: Mapping[Tensor, Tensor]) -> TiledMaps:
        """The gradient of the maps, after all readers' `launch_backward`; and those of the normalisation."""
        if not self.epilogue.norm:
            return self.gradient
        workspace, target = self.workspace, self._gradient_of_maps()
        workspace.launch(self.batchnorm_gradients(gradients), self.channels, per_model=True)
        call = self.batchnorm_backward(target, workspace.mask)
        workspace.launch(call, self.channels, workspace.row_chunks(target.size[0]))
        return target

    def _new_sums(self, chunks: int, readers: int = 1) -> list[int]:
        """Memory for the sums of every block, for one reader after the other; `_block_sums` of the first."""
        shape = self.workspace.tiles * chunks, readers, 2, self.channels
        self.sums = self.workspace.keep(self.dtype.as_float64().zeros(shape))
        return self._block_sums()

    def _block_sums(self, reader: int = 0) -> list[int]:
        """A kernel's arguments: the address of a reader's sums in the first block, and a block's bytes."""
        return [self.sums[:, reader].data_ptr(), self.sums[0].numel() * self.sums.element_size()]
