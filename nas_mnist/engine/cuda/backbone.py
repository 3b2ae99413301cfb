"""A network forward and backward on CUDA, as launches of our own kernels.

It computes the same as `engine.cpu`, stage by stage, in float32. Here every kernel does one thing for all
images, and results that a later kernel reads are stored. Networks of one architecture may run side by side,
each with weights and images of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...core.compat import foreach_add_
from ...models.layers import Layer
from ..kernels import convolution, pointwise
from ..maps import TiledMaps
from ..stages import BackbonePlan, FeatureMapSpec, Stage
from . import kernels
from .feature_map import CudaFeatureMap
from .kernels import equal_tiles
from .launch import CudaDType, Launch, run
from .weights import OUTPUTS, Weights
from .workspace import Workspace
from .writer import WARP

_PIXELS = 7  # of a dense convolution's tile, at most
_WEIGHT_GRADIENT_TILE = {1: (8, 8), 3: (4, 1), 5: (2, 1), 7: (1, 1)}  # outputs, inputs; by kernel size


class Backbone:
    """A plan for one number of images a network, with the memory and the launches for it, head included."""

    def __init__(
        self,
        plan: BackbonePlan,
        count: int,
        models: int,
        dtype: CudaDType,
        gradients: Mapping[Tensor, Tensor] | None,
    ) -> None:
        """``gradients``: the places of the parameters' gradients; None: for evaluation.

        Raises `InputError` if the images are more than a launch can take.
        """
        self.plan, self.gradients = plan, gradients
        self.workspace = Workspace(count, models, dtype)
        training = gradients is not None
        # The convolution that writes a feature map, if one does, and how many read it; the head is a reader.
        producers: dict[FeatureMapSpec, Layer | None] = {plan.image: None}
        readers = Counter([plan.last])
        for stage in plan.stages:
            producers[stage.target] = stage.convolutions[0][0] if stage.convolutions else None
            readers.update(stage.sources)
        self.maps = {
            spec: CudaFeatureMap(self.workspace, spec, producer, readers[spec], training)
            for spec, producer in producers.items()
        }
        specs = list(self.maps) if training else []
        self.dropouts = [self.maps[one] for one in specs if one.epilogue.dropout]
        norms: list[Any] = [one.norm for one in specs if one.norm is not None]
        self.batch_counts: list[Tensor] = [norm.num_batches_tracked for norm in norms]
        self._read: dict[tuple[FeatureMapSpec, int], TiledMaps] = {}
        # Rows of `kernels.reduce_blocks`: of every weight's first gradient, then of the second ones...
        self._block_gradients: list[list[list[int]]] = []
        self._weights = Weights(self.workspace, plan, flipped=training)
        classes = plan.head.layer.out_shape[0]
        self.scores = self.workspace.maps((classes, 1, 1))
        self.score_gradient = self.workspace.maps((classes, 1, 1))
        self.forward_launches = self._forward()
        self.backward_launches = self._backward() if training else []

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (models * N, classes) of images (models * N, C, H, W), network by network."""
        self.workspace.put(images, self.maps[self.plan.image].maps.values)
        self.run_forward()
        values: Tensor = self.scores.values.view(self.workspace.models, -1, self.scores.shape[0], WARP)
        return values.transpose(2, 3).flatten(1, 2)[:, : self.workspace.count].flatten(0, 1).clone()

    def run_forward(self) -> None:
        """From the image's maps to `scores`."""
        for feature_map in self.dropouts:
            feature_map.draw_dropout()
        if self.batch_counts:
            foreach_add_(self.batch_counts, 1)
        run(self.forward_launches)

    def run_backward(self) -> None:
        """From `score_gradient` to the gradients of all parameters."""
        run(self.backward_launches)

    # Launches of the forward pass.

    def _forward(self) -> list[Launch]:
        plan, workspace = self.plan, self.workspace
        for stage in plan.stages:
            target = self.maps[stage.target]
            for index, source in enumerate(stage.sources):
                if stage.convolutions:
                    (one,) = stage.convolutions
                    self._convolve(*one, self._input(source, one[0].padding), target.maps)
                else:
                    self.maps[source].launch_read(target.maps, adds=index > 0)
            target.launch_affine()
        layer, module = plan.head.layer, plan.head.convolution
        pool = pointwise.global_average_pool(workspace.dtype)
        if plan.head.averages_first:
            self.pooled = workspace.maps((plan.last.shape[0], 1, 1))
            self._pool(pool, self._input(plan.last, 0), self.pooled)
            self._convolve(layer, module, self.pooled, self.scores)
        else:
            self.pooled = workspace.maps(layer.out_shape)
            self._convolve(layer, module, self._input(plan.last, layer.padding), self.pooled)
            self._pool(pool, self.pooled, self.scores)
        return workspace.take_launches()

    def _input(self, source: FeatureMapSpec, pad: int) -> TiledMaps:
        """The maps after their epilogue, with zeros around."""
        feature_map = self.maps[source]
        if source.epilogue.is_identity and not pad:
            return feature_map.maps
        if (source, pad) not in self._read:
            self._read[source, pad] = self.workspace.maps(source.read_shape, pad)
            feature_map.launch_read(self._read[source, pad])
        return self._read[source, pad]

    def _pool(self, kernel: int, source: TiledMaps, target: TiledMaps) -> None:
        shape = (source if source.size != [1, 1] else target).shape
        self.workspace.launch([kernel, *source.arguments, *target.arguments, *shape], shape[0])

    def _convolve(
        self, layer: Layer, module: nn.Conv2d, source: TiledMaps, target: TiledMaps, backward: bool = False
    ) -> None:
        """``backward``: from the output's gradient, with zeros around and between, to the input's."""
        workspace, kernel, (height, width) = self.workspace, layer.kernel[0], target.size
        inputs, outputs, stride = layer.in_shape[0], layer.out_shape[0], layer.stride
        if backward:
            inputs, outputs, stride = outputs, inputs, 1
        weights = self._weights.arguments(layer, module, backward)
        data = [*source.padded_arguments, *target.arguments, *weights]
        chunks = workspace.row_chunks(height)
        if layer.groups > 1:
            address = convolution.depthwise(workspace.dtype, kernel, stride, backward)
            workspace.launch([address, *data, outputs, height, width], outputs, chunks)
            return
        pixels, across = equal_tiles(width, _PIXELS)
        channels_of_tile, tiles = equal_tiles(outputs, OUTPUTS)
        address = kernels.dense(workspace.dtype, kernel, stride, channels_of_tile, pixels)
        more = [inputs, outputs, height, width, tiles, across]
        workspace.launch([address, *data, *more], tiles * across, chunks)

    # Launches of the backward pass.

    def _backward(self) -> list[Launch]:
        plan, workspace = self.plan, self.workspace
        layer, module = plan.head.layer, plan.head.convolution
        pool_backward = pointwise.global_average_pool_backward(workspace.dtype)
        whole = workspace.maps(plan.last.read_shape)
        if plan.head.averages_first:
            self._weight_gradient(layer, module, self.pooled, self.score_gradient)
            gradient = workspace.maps(self.pooled.shape)
            self._convolve(layer, module, self.score_gradient, gradient, backward=True)
            self._pool(pool_backward, gradient, whole)
        else:
            gradient = workspace.gradient_maps(layer)
            self._pool(pool_backward, self.score_gradient, gradient)
            self._weight_gradient(layer, module, self._input(plan.last, layer.padding), gradient)
            self._convolve(layer, module, gradient, whole, backward=True)
        self.maps[plan.last].launch_backward(whole)
        for stage in reversed(plan.stages):
            self._stage_backward(stage)
        self._reduce_blocks()
        return workspace.take_launches()

    def _stage_backward(self, stage: Stage) -> None:
        assert self.gradients is not None
        gradient = self.maps[stage.target].launch_batchnorm_backward(self.gradients)
        sources = [self.maps[source] for source in stage.sources if source is not self.plan.image]
        if not stage.convolutions:
            for source in sources:
                source.launch_backward(gradient)
            return
        ((layer, module),) = stage.convolutions
        self._weight_gradient(layer, module, self._input(stage.sources[0], layer.padding), gradient)
        for source in sources:
            if source.epilogue.is_identity and source.readers == 1:
                self._convolve(layer, module, gradient, source.gradient, backward=True)
            else:
                into = self.workspace.maps(source.spec.read_shape)
                self._convolve(layer, module, gradient, into, backward=True)
                source.launch_backward(into)

    def _weight_gradient(
        self, layer: Layer, module: nn.Conv2d, source: TiledMaps, gradient: TiledMaps
    ) -> None:
        workspace, kernel, (height, width) = self.workspace, layer.kernel[0], gradient.size
        inputs, outputs = layer.in_shape[0], layer.out_shape[0]
        data = [*source.padded_arguments, *gradient.arguments]
        count = module.weight[0].numel() * outputs
        if layer.groups > 1:
            items = outputs * kernel
            chunks = workspace.chunks(items, height)
            address = convolution.depthwise_weight_gradient(workspace.dtype, kernel, layer.stride)
            more = [*self._block_sums(module.weight, count, chunks), outputs, height, width]
        else:
            most_outputs, most_inputs = _WEIGHT_GRADIENT_TILE[kernel]
            outputs_of_tile, tiles = equal_tiles(outputs, most_outputs)
            inputs_of_tile, across = equal_tiles(inputs, most_inputs)
            items = tiles * across
            chunks = workspace.chunks(items, height)
            address = kernels.dense_weight_gradient(
                workspace.dtype, kernel, layer.stride, outputs_of_tile, inputs_of_tile
            )
            sums = self._block_sums(module.weight, count, chunks)
            more = [*sums, inputs, outputs, height, width, tiles, across]
        workspace.launch([address, *data, *more], items, chunks)
        if module.bias is not None:
            chunks = workspace.chunks(outputs, height)
            more = [outputs, height, width, *self._block_sums(module.bias, outputs, chunks)]
            address = pointwise.channel_sums(workspace.dtype)
            workspace.launch([address, *gradient.arguments, *more], outputs, chunks)

    def _block_sums(self, parameter: Tensor, count: int, chunks: int) -> list[int]:
        """A kernel's arguments for the sums of all blocks, which `_reduce_blocks` adds up in the end."""
        assert self.gradients is not None
        workspace, into = self.workspace, self.gradients[parameter]
        sums = workspace.keep(workspace.dtype.zeros((workspace.tiles * chunks, count)))
        row = [sums.data_ptr(), into.data_ptr(), count * sums.element_size(), count]
        # A repeated block's gradient is added in a later launch.
        uses = sum(into.data_ptr() == one[1] for rows in self._block_gradients for one in rows)
        if uses == len(self._block_gradients):
            self._block_gradients.append([])
        self._block_gradients[uses].append([*row, len(sums) // workspace.models])
        return [sums.data_ptr(), count * sums.element_size()]

    def _reduce_blocks(self) -> None:
        workspace = self.workspace
        for uses, rows in enumerate(self._block_gradients):
            table = torch.tensor(rows, dtype=torch.int64, device=workspace.dtype.device)
            workspace.keep(table)
            items = max(count for *_, count, _ in rows)
            kernel = kernels.reduce_blocks(workspace.dtype, uses > 0)
            workspace.launch([kernel, table.data_ptr()], items, len(rows), per_model=True)
