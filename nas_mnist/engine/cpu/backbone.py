"""The layers before the head on a CPU, forward and backward, as lists of calls of compiled kernels.

A stage (`stages`) runs for one batch tile after the other, so that everything that is not stored stays in the
nearest caches; several threads take a part of the tiles each. Between stages stand the sums of a
normalisation, which need all images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...core.compat import foreach_add_, foreach_zero_
from ..feature_map import FeatureMap
from ..kernels import pointwise
from ..kernels.compile import Call, CallList, DType
from ..maps import Array, TiledMaps, from_tiles, to_tiles
from ..stages import BackbonePlan, Stage
from .convolution import Convolution
from .threads import run_parallel


class Backbone:
    """A plan for one number of images, with the memory and the call lists for it."""

    def __init__(
        self,
        plan: BackbonePlan,
        count: int,
        dtype: DType,
        threads: int,
        gradients: Mapping[Tensor, Tensor] | None,
    ) -> None:
        """``gradients``: the places of the parameters' gradients; None: for evaluation."""
        self.plan, self.count, self.dtype = plan, count, dtype
        self.training = gradients is not None
        self.tiles = tiles = -(-count // dtype.lanes)
        self.mask = dtype.zeros((tiles, dtype.lanes))  # 1 where a lane has an image, else 0
        self.mask.view(-1)[:count] = 1
        specs = [plan.image, *(stage.target for stage in plan.stages)]
        self.maps = {
            spec: FeatureMap(spec, dtype, tiles, count, self.training, threads=threads) for spec in specs
        }
        self.convolutions = {
            stage: [Convolution(*one, dtype, threads) for one in stage.convolutions] for stage in plan.stages
        }
        shape = plan.last.read_shape
        if plan.head.averages_first:
            shape = (shape[0], 1, 1)
        self.out, self.out_gradient = TiledMaps(shape, dtype, tiles), TiledMaps(shape, dtype, tiles)
        self.normalised = {spec: one for spec, one in self.maps.items() if spec.norm is not None}
        self.affine = {spec: CallList([one.batchnorm_affine()]) for spec, one in self.normalised.items()}
        convolutions = [one for stage in plan.stages for one in self.convolutions[stage]]
        self.gather = CallList([call for one in convolutions for call in one.gather_calls()])
        if gradients is not None:
            self._prepare_backward(gradients, convolutions)
        self.calls = [_ThreadCalls(self, thread) for thread in range(threads)]

    def _prepare_backward(
        self, gradients: Mapping[Tensor, Tensor], convolutions: Sequence[Convolution]
    ) -> None:
        assert all(one.is_contiguous() for one in gradients.values())
        written: set[nn.Module] = set()  # a repeated block's gradient is added to that of the first use
        scatter: list[Call] = []
        for one in convolutions:
            scatter += one.scatter_calls(gradients, adds=one.module in written)
            written.add(one.module)
        self.scatter = CallList(scatter, gradients)
        self.norm_gradients = {
            spec: CallList([one.batchnorm_gradients(gradients)], gradients)
            for spec, one in self.normalised.items()
        }
        norms: list[Any] = [spec.norm for spec in self.normalised]
        self._batch_counts: list[Tensor] = [norm.num_batches_tracked for norm in norms]
        self._norm_sums = [one.sums for one in self.maps.values()]
        self._weight_sums = [sums for one in convolutions for sums in (one.gradients, one.bias_gradients)]

    def forward(self, images: Array) -> Array:
        """From images (N, C, H, W) to the input of the head (N, C', H', W')."""
        to_tiles(images, self.maps[self.plan.image].maps.values.numpy())
        if self.training:
            foreach_zero_(self._norm_sums)
            if self._batch_counts:
                foreach_add_(self._batch_counts, 1)
            self._draw_dropout()
        self.gather.run()
        for index, stage in enumerate(self.plan.stages):
            self._run([one.forward[index] for one in self.calls])
            if stage.target in self.affine:
                self.affine[stage.target].run()
        self._run([one.end for one in self.calls])
        return from_tiles(self.out.values.numpy(), self.count)

    def backward(self, gradient: Array) -> None:
        """From the gradient of the last `forward`'s result to the gradients of all parameters."""
        to_tiles(gradient, self.out_gradient.values.numpy())
        foreach_zero_([*self._norm_sums, *self._weight_sums])
        self._run([one.end_backward for one in self.calls])
        for index, stage in reversed(list(enumerate(self.plan.stages))):
            if stage.target in self.norm_gradients:
                self.norm_gradients[stage.target].run()
            self._run([one.backward[index] for one in self.calls])
        self.scatter.run()

    def _draw_dropout(self) -> None:
        for spec, one in self.maps.items():
            if spec.dropout is not None:
                p = spec.dropout.p
                kept = (torch.rand((self.count, one.channels)) >= p).numpy() / (1 - p)
                to_tiles(kept[..., None, None], one.dropout_factors.numpy()[:, :, None, None])

    def _run(self, calls: Sequence[CallList]) -> None:
        run_parallel(calls, self.tiles, self)


class _ThreadCalls:
    """One thread's call lists; memory that lasts for one tile only is the thread's own."""

    def __init__(self, backbone: Backbone, thread: int) -> None:
        self.backbone, self.thread = backbone, thread
        self.memory: list[TiledMaps] = []  # of the calls that are written now
        self.written: set[FeatureMap] = set()  # whose gradient an earlier call writes
        stages = backbone.plan.stages
        self.forward = [self._list(self._forward(stage)) for stage in stages]
        self.end = self._list(self._end())
        if backbone.training:
            # In the order in which they run: the first reader's gradient is written, the others are added.
            self.end_backward = self._list(self._end_backward())
            self.backward = [self._list(self._backward(stage)) for stage in reversed(stages)][::-1]

    def _list(self, calls: list[Call]) -> CallList:
        memory, self.memory = self.memory, []
        return CallList(calls, *memory)

    def _forward(self, stage: Stage) -> list[Call]:
        maps = self.backbone.maps
        target = maps[stage.target]
        if stage.convolutions:
            inputs, calls = self._inputs(stage)
            calls.append(self.backbone.convolutions[stage][-1].forward(inputs[-1], target.maps))
        else:
            calls = [
                maps[source].read(target.maps, adds=index > 0) for index, source in enumerate(stage.sources)
            ]
        if target.epilogue.norm and self.backbone.training:
            calls.append(target.batch_stats(self._sums(target), self.backbone.mask))
        return calls

    def _inputs(self, stage: Stage) -> tuple[list[TiledMaps], list[Call]]:
        """The input of each of a stage's convolutions, and the calls that make them."""
        source = self.backbone.maps[stage.sources[0]]
        first, *others = convolutions = self.backbone.convolutions[stage]
        if source.epilogue.is_identity and not first.pad:
            inputs, calls = [source.maps], []
        else:
            inputs = [self._tile(source.spec.read_shape, first.pad)]
            calls = [source.read(inputs[0])]
        for convolution, following in zip(convolutions, others, strict=False):
            inputs.append(self._tile(convolution.layer.out_shape, following.pad))
            calls.append(convolution.forward(*inputs[-2:]))
        return inputs, calls

    def _end(self) -> list[Call]:
        backbone = self.backbone
        last = backbone.maps[backbone.plan.last]
        if not backbone.plan.head.averages_first:
            return [last.read(backbone.out)]
        whole = self._tile(last.spec.read_shape)
        kernel = pointwise.global_average_pool(backbone.dtype)
        return [last.read(whole), self._pool(kernel, whole, backbone.out)]

    def _end_backward(self) -> list[Call]:
        backbone = self.backbone
        last = backbone.maps[backbone.plan.last]
        if not backbone.plan.head.averages_first:
            return [self._backward_of(last, backbone.out_gradient)]
        whole = self._tile(last.spec.read_shape)
        kernel = pointwise.global_average_pool_backward(backbone.dtype)
        return [self._pool(kernel, backbone.out_gradient, whole), self._backward_of(last, whole)]

    def _pool(self, kernel: int, source: TiledMaps, target: TiledMaps) -> Call:
        return [kernel, *source.arguments, *target.arguments, *self.backbone.plan.last.read_shape]

    def _backward(self, stage: Stage) -> list[Call]:
        backbone = self.backbone
        target, mask = backbone.maps[stage.target], backbone.mask
        sources = [backbone.maps[one] for one in stage.sources if one is not backbone.plan.image]
        if not stage.convolutions:
            gradient, calls = target.gradient, []
            if target.epilogue.norm:
                gradient = self._tile(stage.target.shape)
                calls = [target.batchnorm_backward(gradient, mask)]
            return calls + [self._backward_of(source, gradient) for source in sources]
        inputs, calls = self._inputs(stage)
        convolutions = backbone.convolutions[stage]
        gradient = self._keep(convolutions[-1].gradient_tile())
        calls.append(target.batchnorm_backward(gradient, mask))
        for index in reversed(range(1, len(convolutions))):
            calls += convolutions[index].weight_gradient(inputs[index], gradient, self.thread)
            into = self._keep(convolutions[index - 1].gradient_tile())
            calls.append(convolutions[index].backward(gradient, into))
            gradient = into
        calls += convolutions[0].weight_gradient(inputs[0], gradient, self.thread)
        for source in sources:
            into = self._tile(source.spec.read_shape)
            calls += [convolutions[0].backward(gradient, into), self._backward_of(source, into)]
        return calls

    def _backward_of(self, feature_map: FeatureMap, gradient: TiledMaps) -> Call:
        adds = feature_map in self.written
        self.written.add(feature_map)
        return feature_map.take_gradient(gradient, self._sums(feature_map), adds)

    def _sums(self, feature_map: FeatureMap) -> list[int]:
        return [feature_map.sums[self.thread].data_ptr()]

    def _tile(self, shape: Sequence[int], pad: int = 0) -> TiledMaps:
        return self._keep(TiledMaps(shape, self.backbone.dtype, before=pad, after=(pad, pad)))

    def _keep(self, maps: TiledMaps) -> TiledMaps:
        self.memory.append(maps)
        return maps
