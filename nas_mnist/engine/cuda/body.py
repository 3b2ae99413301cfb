"""A network forward and back on CUDA, as launches of kernels of our own (`writer`).

What is computed is what `engine` computes on a CPU, stage by stage, in float32: here every kernel does one
thing for all images, and what a later one reads is stored. Networks of one architecture may run side by side,
each with weights and images of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...core.errors import InputError
from ...models.layers import Layer
from .. import between, convolve
from ..maps import Maps
from ..stages import Stage, Stored
from . import kernels
from .kernels import tile
from .launch import Launch, Warps, run
from .outcome import Outcome
from .writer import WARP

_WARPS = 4_096  # as many at once fill a large device
_PARTS = 65_535  # of a launch, at most
_OUTPUTS, _PIXELS = 4, 7  # of a dense convolution's tile, at most
_OF_GRADIENT = {1: (8, 8), 3: (4, 1), 5: (2, 1), 7: (1, 1)}  # outputs and inputs, by the kernel's size


class Plan(NamedTuple):
    """What a network's layers are."""

    image: Stored
    stages: Sequence[Stage]  # before the head, in the order in which they run
    last: Stored  # what the head reads
    averaged: bool  # whether the head convolves the mean of every map, else it averages what it convolves
    head: tuple[Layer, nn.Conv2d]


class Body:
    """A plan for one number of images a network, with the memory and the launches for it."""

    def __init__(
        self,
        plan: Plan,
        count: int,
        copies: int,
        kind: Warps,
        gradients: Mapping[Tensor, Tensor] | None,
    ) -> None:
        """``gradients``: where the parameters' are written; None: in evaluation, there is no way back."""
        self.plan, self.count, self.copies, self.kind = plan, count, copies, kind
        self.passes = 0  # forward ones, so far
        self.gradients = gradients
        a_copy = -(-count // WARP)
        self.groups = copies * a_copy
        self.there = kind.zeros((self.groups, WARP))  # 1 where there is an image, else 0
        self.there.view(copies, -1)[:, :count] = 1
        self.outcomes: dict[Stored, Outcome] = {}
        self.writing: list[Launch] = []  # the launches that are made now
        self.read: dict[tuple[Stored, int], Maps] = {}
        self.collected: list[list[list[int]]] = []  # rows of `collect`: of first gradients, of second...
        self.memory: list[Any] = []
        self.dropouts: list[Outcome] = []
        self.tracked: list[Tensor] = []  # how many batches normalisations have seen
        for stored in (plan.image, *(stage.target for stage in plan.stages)):
            self.outcomes[stored] = Outcome(self, stored)
        self.convolutions = [plan.head, *(one for stage in plan.stages for one in stage.convolutions)]
        self.taken = self._take()
        classes = plan.head[0].out_shape[0]
        self.scores, self.out_gradient = self.maps((classes, 1, 1)), self.maps((classes, 1, 1))
        self.forward_launches = self._forward()
        self.backward_launches = [] if gradients is None else self._backward()

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (copies * N, classes) of images (copies * N, C, H, W), network by network."""
        self._put(images, self.outcomes[self.plan.image].maps.values)
        self.run_forward()
        values: Tensor = self.scores.values.view(self.copies, -1, self.scores.shape[0], WARP)
        return values.transpose(2, 3).flatten(1, 2)[:, : self.count].flatten(0, 1).clone()

    def backward(self, gradient: Tensor) -> None:
        """From the gradient of what `forward` gave to those of all parameters."""
        self._put(gradient[..., None, None], self.out_gradient.values)
        self.run_backward()

    def run_forward(self) -> None:
        """From the image's maps to `scores`."""
        self.passes += 1
        for outcome in self.dropouts:
            outcome.drop()
        if self.tracked:
            torch._foreach_add_(self.tracked, 1)
        run(self.forward_launches)

    def run_backward(self) -> None:
        """From `out_gradient` to the gradients of all parameters."""
        run(self.backward_launches)

    def _put(self, images: Tensor, into: Tensor) -> None:
        """Put (copies * N, C, H, W) into (groups, C, H, W, WARP)."""
        images = images.unflatten(0, (self.copies, -1))
        into = into.unflatten(0, (self.copies, -1))
        whole, rest = divmod(self.count, WARP)
        together = images[:, : whole * WARP].unflatten(1, (whole, WARP))
        into[:, :whole].copy_(together.permute(0, 1, 3, 4, 5, 2))
        if rest:
            into[:, whole, ..., :rest].copy_(images[:, whole * WARP :].permute(0, 2, 3, 4, 1))

    # Launches.

    def launch(
        self, kernel: int, arguments: Sequence[int], items: int, chunks: int = 1, per_copy: bool = False
    ) -> None:
        """One more, for every group of images, or once for every network."""
        groups = self.copies if per_copy else self.groups
        if groups * chunks > _PARTS:
            raise InputError(f"batch_size: {self.count:,} images of this size (use fewer)")
        self.writing.append(Launch(self.kind, kernel, arguments, items, groups, chunks, self.copies))

    def maps(self, shape: Sequence[int], pad: int = 0) -> Maps:
        made = Maps(shape, self.kind, self.groups, before=pad, behind=(pad, pad))
        self.memory.append(made)
        return made

    def chunks(self, items: int, rows: int) -> int:
        """Into how many parts rows are divided, where every part ends with sums over its images."""
        return min(self.rows(rows), max(1, _WARPS // max(1, items * self.groups)))

    def rows(self, height: int) -> int:
        """Into how many parts rows are divided where parts have nothing to do with each other."""
        return max(1, min(height, _PARTS // self.groups))

    def _written(self) -> list[Launch]:
        made, self.writing = self.writing, []
        return made

    def _forward(self) -> list[Launch]:
        plan = self.plan
        for stage in plan.stages:
            target = self.outcomes[stage.target]
            for place, source in enumerate(stage.sources):
                if stage.convolutions:
                    (convolution,) = stage.convolutions
                    source_maps = self._reading(source, convolution[0].padding)
                    self._convolve(*convolution, source_maps, target.maps)
                else:
                    self.outcomes[source].read(target.maps, adds=place > 0)
            target.normalise()
        layer, module = plan.head
        if plan.averaged:
            whole = self._reading(plan.last, 0)
            self.mean = self.maps((plan.last.shape[0], 1, 1))
            self._to_or_from_mean(between.mean(self.kind), whole, self.mean)
            self._convolve(layer, module, self.mean, self.scores)
        else:
            self.mean = self.maps(layer.out_shape)
            self._convolve(layer, module, self._reading(plan.last, layer.padding), self.mean)
            self._to_or_from_mean(between.mean(self.kind), self.mean, self.scores)
        return self._written()

    def _reading(self, source: Stored, pad: int) -> Maps:
        """What readers see, with zeros around."""
        outcome = self.outcomes[source]
        if source.post.nothing and not pad:
            return outcome.maps
        if (source, pad) not in self.read:
            self.read[source, pad] = self.maps(source.read_shape, pad)
            outcome.read(self.read[source, pad])
        return self.read[source, pad]

    def _to_or_from_mean(self, kernel: int, source: Maps, target: Maps) -> None:
        maps = source if source.size != [1, 1] else target
        channels, *size = maps.shape
        share = self.kind.zeros((1,)).fill_(1 / (size[0] * size[1]))
        self.memory.append(share)
        more = [channels, *size, share.data_ptr()]
        self.launch(kernel, [*source.arguments, *target.arguments, *more], channels)

    def _convolve(self, layer: Layer, module: nn.Conv2d, source: Maps, target: Maps) -> None:
        weights = self._weights(layer, module)
        channels = layer.in_shape[0], layer.out_shape[0]
        self._dense_or_not(layer, layer.stride, False, source.from_the_edge, target, weights, channels)

    def _back(self, layer: Layer, module: nn.Conv2d, gradient: Maps, target: Maps) -> None:
        """From the output's gradient, with zeros around and between, to the input's."""
        weights = self._weights(layer, module, turned=True)
        channels = layer.out_shape[0], layer.in_shape[0]
        self._dense_or_not(layer, 1, True, gradient.from_the_edge, target, weights, channels)

    def _dense_or_not(
        self,
        layer: Layer,
        stride: int,
        turned: bool,
        source: list[int],
        target: Maps,
        weights: list[int],
        of: tuple[int, int],
    ) -> None:
        kernel, (height, width), (inputs, channels) = layer.kernel[0], target.size, of
        data = [*source, *target.arguments, *weights]
        if layer.groups > 1:
            made = kernels.depthwise(kernel, stride, turned, self.kind)
            self.launch(made, [*data, channels, height, width], channels, self.rows(height))
            return
        pixels, across = tile(width, _PIXELS)
        outputs, tiles = tile(channels, _OUTPUTS)
        made = kernels.dense(kernel, stride, outputs, pixels, self.kind)
        more = [inputs, channels, height, width, tiles, across]
        self.launch(made, [*data, *more], tiles * across, self.rows(height))

    def _weights(self, layer: Layer, module: nn.Conv2d, turned: bool = False) -> list[int]:
        """As kernels take them, and biases."""
        weight, size = module.weight, module.weight.element_size()
        assert weight.is_contiguous()
        bias = [self._no_bias.data_ptr(), 0]
        if module.bias is not None and not turned:
            bias = [module.bias.data_ptr(), layer.out_shape[0] * size]
        if layer.groups > 1:
            return [weight.data_ptr(), weight.numel() // self.copies * size, *bias]
        taken = self.taken[module, turned]
        return [taken.data_ptr(), taken.numel() // self.copies * size, *bias]

    def _take(self) -> dict[tuple[nn.Module, bool], Tensor]:
        """Weights as `kernels.dense` reads them; every forward pass takes them anew."""
        found: dict[tuple[nn.Module, bool], Tensor] = {}  # their addresses
        for layer, module in self.convolutions:
            for turned in (False,) if self.gradients is None else (False, True):
                if layer.groups == 1 and (module, turned) not in found:
                    found[module, turned] = self._in_tiles(module.weight, turned)
        sizes = [one.numel() for one in found.values()]
        missing = -sum(sizes) % WARP
        addresses = torch.cat([*found.values(), next(iter(found.values()))[:1].expand(missing)])
        taken = self.kind.zeros((len(addresses),))
        self.memory += [addresses, taken]
        arguments = [addresses.data_ptr(), taken.data_ptr(), len(addresses) // WARP]
        self.writing.append(Launch(self.kind, kernels.take(self.kind), arguments, arguments[-1], 1))
        return dict(zip(found, taken[: sum(sizes)].split(sizes), strict=True))

    def _in_tiles(self, weight: Tensor, turned: bool) -> Tensor:
        """Addresses of weights in the order (copy, tile, input, ky, kx, 4); what is too much is not used.

        ``turned``: by half a turn, and outputs are inputs, as the way back reads them.
        """
        count = torch.arange(weight.numel(), device=weight.device)
        places = count.view(self.copies, -1, *weight.shape[1:]) * weight.element_size() + weight.data_ptr()
        if turned:
            places = places.flip(3, 4).transpose(1, 2)
        outputs, tiles = tile(places.shape[1], _OUTPUTS)
        starts = [min(number * outputs, places.shape[1] - outputs) for number in range(tiles)]
        parts = [places[:, start : start + outputs].permute(0, 2, 3, 4, 1) for start in starts]
        together = torch.stack(parts, dim=1)
        padded = together[..., :1].repeat_interleave(_OUTPUTS, dim=-1)
        padded[..., :outputs] = together
        return padded.flatten()

    @cached_property
    def _no_bias(self) -> Tensor:
        return self.kind.zeros((max(max(one.in_shape[0], one.out_shape[0]) for one, _ in self.convolutions),))

    # The way back.

    def _backward(self) -> list[Launch]:
        plan, (layer, module) = self.plan, self.plan.head
        last = self.outcomes[plan.last]
        spread = between.from_mean(self.kind)
        whole = self.maps(plan.last.read_shape)
        if plan.averaged:
            self._weight_gradient(layer, module, self.mean, self.out_gradient)
            changes = self.maps(self.mean.shape)
            self._back(layer, module, self.out_gradient, changes)
            self._to_or_from_mean(spread, changes, whole)
        else:
            changes = self._place_for_gradient(layer)
            self._to_or_from_mean(spread, self.out_gradient, changes)
            self._weight_gradient(layer, module, self._reading(plan.last, layer.padding), changes)
            self._back(layer, module, changes, whole)
        last.back(whole)
        for stage in reversed(plan.stages):
            self._stage_back(stage)
        self._collect()
        return self._written()

    def _stage_back(self, stage: Stage) -> None:
        target = self.outcomes[stage.target]
        sources = [source for source in stage.sources if source is not self.plan.image]
        if not stage.convolutions:
            gradient = target.through()
            for source in sources:
                self.outcomes[source].back(gradient)
            return
        ((layer, module),) = stage.convolutions
        gradient = target.through()
        self._weight_gradient(layer, module, self._reading(stage.sources[0], layer.padding), gradient)
        for source in sources:
            outcome = self.outcomes[source]
            if source.post.nothing and self.readers[source] == 1:
                self._back(layer, module, gradient, outcome.gradient)
            else:
                into = self.maps(source.read_shape)
                self._back(layer, module, gradient, into)
                outcome.back(into)

    @cached_property
    def readers(self) -> dict[Stored, int]:
        """How many stages read what is stored; the head is one."""
        read = [self.plan.last, *(source for stage in self.plan.stages for source in stage.sources)]
        return {one: read.count(one) for one in read}

    def _place_for_gradient(self, layer: Layer) -> Maps:
        """Room for a convolution's output's gradient, with the zeros that the way back reads."""
        before = layer.kernel[0] - 1 - layer.padding
        sizes = zip(layer.in_shape[1:], layer.out_shape[1:], strict=True)
        height, width = (into + layer.padding - ((out - 1) * layer.stride + 1) for into, out in sizes)
        made = Maps(
            layer.out_shape, self.kind, self.groups, before=before, behind=(height, width), apart=layer.stride
        )
        self.memory.append(made)
        return made

    def place_of(self, stored: Stored) -> Maps:
        """Room for the gradient of maps, where the stage that made them finds it."""
        stage = next(stage for stage in self.plan.stages if stage.target is stored)
        convolutions = [layer for layer, _ in stage.convolutions]
        return self._place_for_gradient(convolutions[0]) if convolutions else self.maps(stored.shape)

    def _weight_gradient(self, layer: Layer, module: nn.Conv2d, source: Maps, gradient: Maps) -> None:
        kernel, (height, width) = layer.kernel[0], gradient.size
        inputs, channels = layer.in_shape[0], layer.out_shape[0]
        data = [*source.from_the_edge, *gradient.arguments]
        count = module.weight[0].numel() * channels
        if layer.groups > 1:
            items = channels * kernel
            chunks = self.chunks(items, height)
            made = convolve.depthwise_gradient(kernel, layer.stride, self.kind)
            more = [*self._sums(module.weight, count, chunks), channels, height, width]
            self.launch(made, [*data, *more], items, chunks)
        else:
            most, most_beside = _OF_GRADIENT[kernel]
            outputs, tiles = tile(channels, most)
            beside, across = tile(inputs, most_beside)
            chunks = self.chunks(tiles * across, height)
            made = kernels.dense_gradient(kernel, layer.stride, outputs, beside, self.kind)
            sums = self._sums(module.weight, count, chunks)
            more = [*sums, inputs, channels, height, width, tiles, across]
            self.launch(made, [*data, *more], tiles * across, chunks)
        if module.bias is not None:
            chunks = self.chunks(channels, height)
            more = [channels, height, width, *self._sums(module.bias, channels, chunks)]
            self.launch(between.totals(self.kind), [*gradient.arguments, *more], channels, chunks)

    def _sums(self, parameter: Tensor, count: int, chunks: int) -> list[int]:
        """Room for all parts' shares in a parameter's gradient, which is collected in the end."""
        assert self.gradients is not None
        made = self.kind.zeros((self.groups * chunks, count))
        self.memory.append(made)
        into = self.gradients[parameter]
        row = [made.data_ptr(), into.data_ptr(), count * made.element_size(), count]
        before = sum(into.data_ptr() == one[1] for rows in self.collected for one in rows)
        if before == len(self.collected):
            self.collected.append([])
        self.collected[before].append([*row, len(made) // self.copies])
        return [made.data_ptr(), count * made.element_size()]

    def _collect(self) -> None:
        for before, rows in enumerate(self.collected):
            table = torch.tensor(rows, dtype=torch.int64, device=self.kind.device)
            self.memory.append(table)
            items = max(count for *_, count, _ in rows)
            kernel = kernels.collect(before > 0, self.kind)
            self.launch(kernel, [table.data_ptr()], items, len(rows), per_copy=True)
