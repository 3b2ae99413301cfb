"""Maps on CUDA with what happens to them until they are read: what `operations.Outcome` is on a CPU."""

from __future__ import annotations

import weakref
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from .. import between, parameters
from ..maps import Maps
from ..stages import Stored
from .writer import WARP

if TYPE_CHECKING:
    from .body import Body


class Outcome:
    """`Stored` maps of all images, their normalisation and dropout, and their gradient."""

    def __init__(self, body: Body, stored: Stored) -> None:
        self.body: Body = weakref.proxy(body)  # which would else stay until Python looks for cycles
        self.stored, self.post = stored, stored.post
        kind, groups, self.channels = body.kind, body.groups, stored.shape[0]
        wide = kind.wide()
        self.maps = body.maps(stored.shape)
        self.backs = 0  # launches that take a reader's gradient, so far
        # As in `operations.Outcome`, by network.
        self.affine = kind.zeros((body.copies, 3, self.channels))
        self.change = kind.zeros((body.copies, 2, self.channels))
        self.kept = wide.zeros((body.copies, 4, self.channels))
        self.keep = kind.zeros((groups if self.post.dropout else 0, self.channels, WARP))
        norm: Any = stored.norm
        if norm is not None:
            values = body.count * self.maps.size[0] * self.maps.size[1]  # a channel
            numbers = [values, values / max(values - 1, 1), norm.momentum, norm.eps]
            self.numbers = torch.tensor(numbers, dtype=torch.float64, device=kind.device)
            if body.gradients is not None:
                body.tracked.append(norm.num_batches_tracked)
        if self.post.dropout:
            self.keep.fill_(1)
            if body.gradients is not None:
                body.dropouts.append(self)

    def drop(self) -> None:
        """Draw which maps are kept, and how much they grow."""
        assert self.stored.dropout is not None
        stay = 1 - self.stored.dropout.p
        self.keep.bernoulli_(stay).div_(stay)

    @cached_property
    def gradient(self) -> Maps:
        """That of the normalisation's output; without a normalisation, that of the maps, in its place."""
        return self.body.maps(self.stored.shape) if self.post.norm else self.body.place_of(self.stored)

    @property
    def _chain(self) -> list[int]:
        apart = self.affine[0].numel() * self.affine.element_size()
        return [self.affine.data_ptr(), apart, self.keep.data_ptr(), self.channels]

    def read(self, target: Maps, adds: bool = False) -> None:
        """Write what readers see, or add it."""
        kernel = between.forward(self.post, adds, self.body.kind)
        arguments = [*self.maps.arguments, *target.arguments, *self._chain, *target.size]
        self.body.launch(kernel, arguments, self.channels, self.body.rows(target.size[0]))

    def normalise(self) -> None:
        """Find factor and shift, by the images, or in evaluation by the running statistics."""
        if not self.post.norm:
            return
        body, by_batch = self.body, self.body.gradients is not None
        if by_batch:
            chunks = body.chunks(self.channels, self.maps.size[0])
            self._new_sums(chunks)
            kernel = between.statistics(self.post, body.kind)
            more = [*self.maps.size, *self._part, body.there.data_ptr()]
            body.launch(kernel, [*self.maps.arguments, *self._chain, *more], self.channels, chunks)
        norm: Any = self.stored.norm
        where = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        arguments = self._summed if by_batch else [self.channels, 0, self.numbers.data_ptr(), 0, 0]
        for one in (*where, self.affine, self.kept):
            arguments += [one.data_ptr(), one.numel() // body.copies * one.element_size()]
        body.launch(parameters.normalise(by_batch, body.kind), arguments, self.channels, per_copy=True)

    def _new_sums(self, chunks: int, readers: int = 1) -> None:
        self.sums = self.body.kind.wide().zeros((self.body.groups * chunks, readers, 2, self.channels))
        self.body.memory.append(self.sums)

    @property
    def _part(self) -> list[int]:
        return [self.sums.data_ptr(), self.sums[0].numel() * self.sums.element_size()]

    @property
    def _summed(self) -> list[int]:
        a_copy = self.sums.shape[0] * self.sums.shape[1] // self.body.copies
        apart = a_copy * 2 * self.channels * self.sums.element_size()
        return [self.channels, a_copy, self.numbers.data_ptr(), self.sums.data_ptr(), apart]

    def back(self, gradient: Maps) -> None:
        """Take the gradient of what a reader saw; every reader but the first one adds."""
        body = self.body
        height = gradient.size[0]
        chunks = body.chunks(self.channels, height) if self.post.norm else body.rows(height)
        part = [0, 0]
        if self.post.norm:
            if not self.backs:
                self._new_sums(chunks, body.readers[self.stored])
            start, apart = self._part
            part = [start + self.backs * 2 * self.channels * self.sums.element_size(), apart]
        adds = self.backs > 0
        self.backs += 1
        kernel = between.backward(self.post, adds, body.kind)
        maps = [*gradient.arguments, *self.maps.arguments, *self.gradient.arguments]
        body.launch(kernel, [*maps, *self._chain, *gradient.size, *part], self.channels, chunks)

    def through(self) -> Maps:
        """The gradient of the maps, with the zeros that its reader needs, when all readers are through."""
        if not self.post.norm:
            return self.gradient
        body, norm = self.body, self.stored.norm
        assert body.gradients is not None and norm is not None
        place, arguments = body.place_of(self.stored), self._summed
        into = [body.gradients[one] for one in (norm.weight, norm.bias)]
        for one in (self.kept, self.change, *into):
            arguments += [one.data_ptr(), one.numel() // body.copies * one.element_size()]
        body.launch(parameters.gradients(True, body.kind), arguments, self.channels, per_copy=True)
        kernel = between.through_norm(self.post, body.kind)
        maps = [*self.gradient.arguments, *self.maps.arguments, *place.arguments]
        change = [self.change.data_ptr(), self.change[0].numel() * self.change.element_size()]
        more = [*place.size, *change, body.there.data_ptr()]
        body.launch(kernel, [*maps, *self._chain, *more], self.channels, body.rows(place.size[0]))
        return place
