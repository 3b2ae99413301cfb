"""The layers before the head on a CPU, forward and back, as programs of compiled kernels.

A stage (`stages`) runs for one group of images after the other, so that all that is not stored stays in the
processor's nearest caches; several threads take a part of the groups each. Between stages stand the sums
of a normalisation, which need all images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from . import between
from .maps import Array, Maps, from_groups, to_groups, zeros
from .operations import Convolution, Outcome, Row
from .stages import Stage, Stored
from .threads import run
from .vectors import LANES, Program

_EITHER = (False, True)  # whether a normalisation takes the statistics of the batch


class Plan(NamedTuple):
    """What a network's layers before the head are."""

    image: Stored
    stages: Sequence[Stage]  # in the order in which they run
    last: Stored  # what the head reads
    averaged: bool  # whether it reads the mean of every map only


class Body:
    """A plan for one number of images, with the memory and the programs for it."""

    def __init__(
        self,
        plan: Plan,
        parameters: Sequence[Tensor],
        count: int,
        kind: np.dtype[Any],
        threads: int,
        back: bool,
        gradients: Sequence[Array] | None = None,
    ) -> None:
        """Of ``kind`` float32 or float64; ``back``: there will be a way back, to the ``parameters``.

        ``gradients``: where it writes theirs, else into memory of its own.
        """
        self.plan, self.parameters, self.count, self.kind = plan, parameters, count, kind
        self.passes = 0  # forward ones, so far
        self.groups = groups = -(-count // LANES)
        self.there = zeros((groups, LANES), kind)  # 1 where there is an image, else 0
        self.there.reshape(-1)[:count] = 1
        stored = [plan.image, *(stage.target for stage in plan.stages)]
        self.outcomes = {one: Outcome(one, groups, kind, threads, count) for one in stored}
        self.convolutions = {
            stage: [Convolution(*one, kind, threads) for one in stage.convolutions] for stage in plan.stages
        }
        channels, *size = plan.last.read_shape
        shape = (channels, 1, 1) if plan.averaged else plan.last.read_shape
        self.out, self.out_gradient = Maps(shape, kind, groups), Maps(shape, kind, groups)
        self.share = np.array([1 / (size[0] * size[1])], kind)  # of a pixel in the mean
        self.gradients = gradients or [zeros(one.shape, kind) for one in parameters]
        assert all(place.flags.c_contiguous for place in self.gradients)  # its flat view is no copy
        into = {one: place.ravel() for one, place in zip(parameters, self.gradients, strict=True)}
        convolutions = [one for stage in plan.stages for one in self.convolutions[stage]]
        self.taking = Program([row for one in convolutions for row in one.taken()])
        written: set[nn.Module] = set()  # whose gradient an earlier row writes; a repeat's is added
        putting: list[Row] = []
        for one in convolutions if back else []:
            putting += one.put(into, adds=one.module in written)
            written.add(one.module)
        self.putting = Program(putting)
        self.norms = {
            one: [_Norm(Program([made.normalised(by)]), Program([made.put(into, by)])) for by in _EITHER]
            for one, made in self.outcomes.items()
            if one.norm is not None
        }
        self.in_use: dict[Stored, _Norm] = {}
        self.programs = [_Rows(self, number).programs(back) for number in range(threads)]

    def forward(self, images: Array) -> Array:
        """From images (N, C, H, W) to what the head reads, (N, C', H', W')."""
        self.passes += 1
        to_groups(images, self.outcomes[self.plan.image].maps.values)
        for outcome in self.outcomes.values():
            outcome.begin()
        self.taking.run()
        for at, stage in enumerate(self.plan.stages):
            norm: Any = stage.target.norm
            by_batch = norm is not None and norm.training
            run([(one.summing if by_batch else one.plain)[at] for one in self.programs], self.groups, self)
            if norm is not None:
                self.in_use[stage.target] = self.norms[stage.target][by_batch]
                self.in_use[stage.target].forward.run()
            if by_batch:
                norm.num_batches_tracked.numpy()[...] += 1  # in place, and quicker than by torch
        run([one.end for one in self.programs], self.groups, self)
        return from_groups(self.out.values, self.count)

    def backward(self, gradient: Array) -> None:
        """From the gradient of what `forward` gave to those of all parameters, put into `gradients`."""
        to_groups(gradient, self.out_gradient.values)
        for outcome in self.outcomes.values():
            outcome.begin_back()
        for convolutions in self.convolutions.values():
            for convolution in convolutions:
                convolution.begin_back()
        run([one.end_backward for one in self.programs], self.groups, self)
        for at, stage in reversed(list(enumerate(self.plan.stages))):
            if stage.target.norm is not None:
                self.in_use[stage.target].backward.run()
            run([one.backward[at] for one in self.programs], self.groups, self)
        self.putting.run()


class _Norm(NamedTuple):
    """What a normalisation does with the sums of all images."""

    forward: Program
    backward: Program


class _Programs(NamedTuple):
    """One thread's."""

    plain: list[Program]  # forward, by stage
    summing: list[Program]  # the same with the sums of normalisations
    end: Program
    end_backward: Program
    backward: list[Program]  # by stage


class _Rows:
    """Writes one thread's programs; their memory for what lasts for one group only is the thread's own."""

    def __init__(self, body: Body, number: int) -> None:
        self.body, self.number = body, number
        self.memory: list[Maps] = []  # of the rows that are written now
        self.written: set[Outcome] = set()  # whose gradient an earlier row writes

    def programs(self, back: bool) -> _Programs:
        """All of them; what they point to, apart from their own memory, is the body's."""
        stages = self.body.plan.stages
        plain = [self._program(self._forward(stage, False)) for stage in stages]
        summing = [self._program(self._forward(stage, True)) for stage in stages]
        end = self._program(self._end())
        if not back:
            return _Programs(plain, summing, end, Program([]), [])
        # In the order in which they run, for the first reader's gradient is written, and others are added.
        end_backward = self._program(self._end_backward())
        backward = [self._program(self._backward(stage)) for stage in reversed(stages)]
        return _Programs(plain, summing, end, end_backward, backward[::-1])

    def _program(self, rows: list[Row]) -> Program:
        memory, self.memory = self.memory, []
        return Program(rows, *memory)

    def _forward(self, stage: Stage, sums: bool) -> list[Row]:
        outcomes = self.body.outcomes
        target = outcomes[stage.target]
        if stage.convolutions:
            inputs, rows = self._inputs(stage)
            rows.append(self.body.convolutions[stage][-1].forward(inputs[-1], target.maps))
        else:
            rows = [
                outcomes[source].read(target.maps, adds=place > 0)
                for place, source in enumerate(stage.sources)
            ]
        return [*rows, target.summed(self.number, self.body.there)] if sums and target.post.norm else rows

    def _inputs(self, stage: Stage) -> tuple[list[Maps], list[Row]]:
        """What each of a stage's convolutions reads, and how it comes there."""
        source = self.body.outcomes[stage.sources[0]]
        first, *others = convolutions = self.body.convolutions[stage]
        if source.post.nothing and not first.pad:
            inputs, rows = [source.maps], []
        else:
            inputs = [self._maps(source.stored.read_shape, first.pad)]
            rows = [source.read(inputs[0])]
        for convolution, following in zip(convolutions, others, strict=False):
            inputs.append(self._maps(convolution.layer.out_shape, following.pad))
            rows.append(convolution.forward(*inputs[-2:]))
        return inputs, rows

    def _end(self) -> list[Row]:
        body = self.body
        last = body.outcomes[body.plan.last]
        if not body.plan.averaged:
            return [last.read(body.out)]
        whole = self._maps(last.stored.read_shape)
        return [last.read(whole), self._to_or_from_mean(between.mean(body.kind), whole, body.out)]

    def _end_backward(self) -> list[Row]:
        body = self.body
        last = body.outcomes[body.plan.last]
        if not body.plan.averaged:
            return [self._back(last, body.out_gradient)]
        whole = self._maps(last.stored.read_shape)
        row = self._to_or_from_mean(between.from_mean(body.kind), body.out_gradient, whole)
        return [row, self._back(last, whole)]

    def _to_or_from_mean(self, kernel: int, source: Maps, target: Maps) -> Row:
        channels, *size = self.body.plan.last.read_shape
        more = [channels, *size, self.body.share.ctypes.data]
        return [kernel, *source.arguments, *target.arguments, *more]

    def _backward(self, stage: Stage) -> list[Row]:
        outcomes, there = self.body.outcomes, self.body.there
        target = outcomes[stage.target]
        sources = [outcomes[source] for source in stage.sources if source is not self.body.plan.image]
        if not stage.convolutions:
            gradient, rows = target.gradient, []
            if target.post.norm:
                gradient = self._maps(stage.target.shape)
                rows = [target.through_norm(gradient, there)]
            return rows + [self._back(source, gradient) for source in sources]
        inputs, rows = self._inputs(stage)
        convolutions = self.body.convolutions[stage]
        gradient = self._keep(convolutions[-1].place_for_gradient())
        rows.append(target.through_norm(gradient, there))
        for place in reversed(range(1, len(convolutions))):
            rows += convolutions[place].weight_gradient(inputs[place], gradient, self.number)
            into = self._keep(convolutions[place - 1].place_for_gradient())
            rows.append(convolutions[place].backward(gradient, into))
            gradient = into
        rows += convolutions[0].weight_gradient(inputs[0], gradient, self.number)
        for source in sources:
            into = self._maps(source.stored.read_shape)
            rows += [convolutions[0].backward(gradient, into), self._back(source, into)]
        return rows

    def _back(self, outcome: Outcome, gradient: Maps) -> Row:
        adds = outcome in self.written
        self.written.add(outcome)
        return outcome.back(gradient, self.number, adds)

    def _maps(self, shape: Sequence[int], pad: int = 0) -> Maps:
        return self._keep(Maps(shape, self.body.kind, before=pad, behind=(pad, pad)))

    def _keep(self, maps: Maps) -> Maps:
        self.memory.append(maps)
        return maps
