"""What runs between convolutions: loops over maps whose images lie side by side (`convolve`).

They are a CPU's, and by `cuda.writer` CUDA's, too; there, sums are not added to what is there, for every part
of the work has a place of its own for them.

A chain of layers after a convolution is ``act(y * factor + shift)``, or ``act(y) * factor + shift`` where
the normalisation comes ``after`` the activation; then channel dropout, then pooling by two (`Post`). Backward
passes read y alone and compute the rest again: arithmetic is nearly free, and reading and writing memory is
what takes time. Every function here gives the address of a kernel; its arguments stand in its code, in
their order.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from llvmlite import ir

from .convolve import Operand
from .vectors import Kind, compile_kernel
from .writer import Value, Writer

NO_POOL, MAX_POOL, AVERAGE_POOL = 0, 1, 2


class Gate(NamedTuple):
    """An activation ``t * clip(slope * t + offset, floor, 1)``; ReLU has instructions of its own."""

    slope: float
    offset: float
    floor: float


GATES = {  # by the class in torch.nn
    "ReLU": Gate(np.inf, 0.0, 0.0),
    "LeakyReLU": Gate(1e30, 0.0, 0.01),
    "Hardswish": Gate(1 / 6, 0.5, 0.0),
}


@dataclass(frozen=True)
class Post:
    """What happens to a convolution's output before the next one reads it."""

    norm: bool = False
    after: bool = False  # the normalisation comes after the activation
    activation: str | None = None  # the class in torch.nn
    dropout: bool = False
    pool: int = NO_POOL

    @property
    def nothing(self) -> bool:
        """Whether it changes nothing."""
        return self == NOTHING


NOTHING = Post()


class _Chain:
    """One channel's way through a `Post`, in a kernel."""

    def __init__(self, w: Writer, post: Post) -> None:
        self.w, self.post = w, post
        self.affine, self.keep = w.of_copy(), w.argument()
        self.channels = w.argument()
        self.gate = None if post.activation is None else GATES[post.activation]

    def begin(self, channel: Value) -> None:
        """Read what belongs to a channel."""
        w = self.w
        if self.post.norm:
            self.factor = w.one(self.affine, channel)
            self.shift = w.one(self.affine, w.add(self.channels, channel))
            self.centre = w.one(self.affine, w.add(self.channels, self.channels, channel))
        if self.post.dropout:
            at = w.mul(w.add(w.mul(w.group, self.channels), channel), w.lanes)
            self.kept = w.load(self.keep, at)

    def normalised(self, value: ir.Value) -> ir.Value:
        if not self.post.norm:
            return value
        return self.w.plus(self.w.times(value, self.factor), self.shift)

    def activated(self, t: ir.Value) -> ir.Value:
        w = self.w
        if self.gate is None:
            return t
        if self.gate.slope == np.inf:
            return w.choose(t, "<", w.zero, w.zero, t)  # NaN stays
        return w.times(t, self._opening(t)[1])

    def slope(self, t: ir.Value, d: ir.Value) -> ir.Value:
        """``d`` times the activation's derivative."""
        w = self.w
        if self.gate is None:
            return d
        if self.gate.slope == np.inf:
            return w.choose(t, ">", w.zero, d, w.zero)
        raw, opening = self._opening(t)
        one, floor = w.constant(1.0), w.constant(self.gate.floor)
        inside = w.choose(raw, ">", floor, w.times(t, w.constant(self.gate.slope)), w.zero)
        inside = w.choose(raw, "<", one, inside, w.zero)
        return w.times(d, w.plus(opening, inside))

    def _opening(self, t: ir.Value) -> tuple[ir.Value, ir.Value]:
        w = self.w
        assert self.gate is not None
        slope, offset, floor, one = (w.constant(value) for value in (*self.gate, 1.0))
        raw = w.plus(w.times(t, slope), offset)
        above = w.choose(raw, ">", floor, raw, floor)
        return raw, w.choose(above, "<", one, above, one)

    def value(self, y: ir.Value) -> ir.Value:
        """Before dropout and pooling."""
        if self.post.after:
            return self.normalised(self.activated(y))
        return self.activated(self.normalised(y))

    def dropped(self, value: ir.Value) -> ir.Value:
        return self.w.times(value, self.kept) if self.post.dropout else value

    def to_norm(self, y: ir.Value, d: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The gradient of the normalisation's output, and what the normalisation read."""
        if self.post.after:
            return d, self.activated(y)
        return self.slope(self.normalised(y), d), y


def _four(w: Writer, maps: Operand, channel: Value, row: Value, pixel: Value) -> list[Value]:
    """Where the four values lie that are pooled into one."""
    start = maps.at(channel, w.mul(row, 2), w.mul(pixel, 2))
    return [
        w.add(start, w.mul(down, maps.rows), w.mul(right, maps.pixels)) for down in (0, 1) for right in (0, 1)
    ]


def _largest(w: Writer, values: list[ir.Value]) -> ir.Value:
    best = values[0]
    for value in values[1:]:
        best = w.largest(best, value)
    return best


def _to_the_largest(w: Writer, values: list[ir.Value], d: ir.Value) -> list[ir.Value]:
    """The largest gets everything; of equal ones the first."""
    best, left, parts = _largest(w, values), d, []
    for value in values:
        parts.append(w.choose(value, "==", best, left, w.zero))
        left = w.choose(value, "==", best, w.zero, left)
    return parts


@cache
def forward(post: Post, adds: bool, kind: Kind) -> int:
    """From y to what the next layer reads, or ``adds`` it to what is there; an odd edge is not pooled."""

    def write(w: Writer) -> None:
        source, target, chain = Operand(w), Operand(w), _Chain(w, post)
        height, width = w.argument(), w.argument()  # of what is written
        with w.spread(chain.channels) as (channel,):
            chain.begin(channel)

            def made(row: Value, pixel: Value) -> ir.Value:
                if post.pool:
                    places = _four(w, source, channel, row, pixel)
                    values = [chain.value(source.load(place)) for place in places]
                    if post.pool == MAX_POOL:
                        value = _largest(w, values)
                    else:
                        total = w.plus(w.plus(values[0], values[1]), w.plus(values[2], values[3]))
                        value = w.times(total, w.constant(0.25))
                else:
                    value = chain.value(source.load(source.at(channel, row, pixel)))
                value = chain.dropped(value)
                return w.plus(target.load(target.at(channel, row, pixel)), value) if adds else value

            with w.rows(height) as row:
                for first, count in w.tiles(width, w.beside):
                    pixels = [w.add(first, place) for place in range(count)]
                    for pixel, value in [(pixel, made(row, pixel)) for pixel in pixels]:
                        target.store(value, target.at(channel, row, pixel))

    return compile_kernel(write, kind)


@cache
def backward(post: Post, adds: bool, kind: Kind) -> int:
    """From the gradient of what `forward` wrote to that of the normalisation's output, with their sums.

    The sums (2, C), float64, are of what is written and of that times what the normalisation read, less a
    centre.
    """

    def write(w: Writer) -> None:
        gradient, source, into = Operand(w), Operand(w), Operand(w)
        chain = _Chain(w, post)
        height, width, sums = w.argument(), w.argument(), w.of_part()  # of the gradient that is read
        with w.spread(chain.channels) as (channel,):
            chain.begin(channel)
            first, second = w.variable(w.zero), w.variable(w.zero)

            def back(y: ir.Value, d: ir.Value, to: Value) -> tuple[ir.Value, Value]:
                result, read = chain.to_norm(y, d)
                if post.norm:
                    w.increase(first, result)
                    w.increase(second, w.times(result, w.minus(read, chain.centre)))
                return w.plus(into.load(to), result) if adds else result, to

            def made(row: Value, pixel: Value) -> list[tuple[ir.Value, Value]]:
                d = chain.dropped(gradient.load(gradient.at(channel, row, pixel)))
                if not post.pool:
                    y = source.load(source.at(channel, row, pixel))
                    return [back(y, d, into.at(channel, row, pixel))]
                loaded = [source.load(place) for place in _four(w, source, channel, row, pixel)]
                if post.pool == MAX_POOL:
                    parts = _to_the_largest(w, [chain.value(y) for y in loaded], d)
                else:
                    parts = [w.times(d, w.constant(0.25))] * 4
                places = _four(w, into, channel, row, pixel)
                return [back(*of) for of in zip(loaded, parts, places, strict=True)]

            with w.rows(height) as row:
                for start, count in w.tiles(width, w.beside):
                    found = [made(row, w.add(start, place)) for place in range(count)]
                    for value, to in itertools.chain.from_iterable(found):
                        into.store(value, to)
            if post.norm:
                w.add_up_wide(w.get(first), sums, channel)
                w.add_up_wide(w.get(second), sums, w.add(chain.channels, channel))

    return compile_kernel(write, kind)


@cache
def through_norm(post: Post, kind: Kind) -> int:
    """The rest of the way: from what `backward` wrote to the gradient of y, zero where there is no image.

    ``through`` (2, C): the factor of what the normalisation read, and the constant, that the gradient
    through mean and variance adds. ``there`` (groups, LANES): 1 for an image, 0 for none.
    """

    def write(w: Writer) -> None:
        gradient, source, target = Operand(w), Operand(w), Operand(w)
        chain = _Chain(w, post)
        height, width, through, there = w.argument(), w.argument(), w.of_copy(), w.argument()
        images = w.load(there, w.mul(w.group, w.lanes))
        with w.spread(chain.channels) as (channel,):
            chain.begin(channel)
            if post.norm:
                linear = w.one(through, channel)
                constant = w.one(through, w.add(chain.channels, channel))

            def made(row: Value, pixel: Value) -> ir.Value:
                d = gradient.load(gradient.at(channel, row, pixel))
                if post.norm:
                    y = source.load(source.at(channel, row, pixel))
                    read = chain.activated(y) if post.after else y
                    d = w.plus(w.plus(w.times(d, chain.factor), w.times(read, linear)), constant)
                    if post.after:
                        d = chain.slope(y, d)
                    d = w.times(d, images)
                return d

            with w.rows(height) as row:
                for first, count in w.tiles(width, w.beside):
                    pixels = [w.add(first, place) for place in range(count)]
                    for pixel, d in [(pixel, made(row, pixel)) for pixel in pixels]:
                        target.store(d, target.at(channel, row, pixel))

    return compile_kernel(write, kind)


@cache
def statistics(post: Post, kind: Kind) -> int:
    """Adds to sums (2, C), float64: of what a normalisation reads less a centre, and of the squares."""

    def write(w: Writer) -> None:
        source, chain = Operand(w), _Chain(w, post)
        height, width, sums, there = w.argument(), w.argument(), w.of_part(), w.argument()
        images = w.load(there, w.mul(w.group, w.lanes))
        with w.spread(chain.channels) as (channel,):
            chain.begin(channel)
            first, second = w.variable(w.zero), w.variable(w.zero)
            with w.rows(height) as row:
                for start, count in w.tiles(width, w.beside):
                    for place in range(count):
                        y = source.load(source.at(channel, row, w.add(start, place)))
                        read = chain.activated(y) if post.after else y
                        value = w.times(w.minus(read, chain.centre), images)
                        w.increase(first, value)
                        w.increase(second, w.times(value, value))
            w.add_up_wide(w.get(first), sums, channel)
            w.add_up_wide(w.get(second), sums, w.add(chain.channels, channel))

    return compile_kernel(write, kind)


@cache
def totals(kind: Kind) -> int:
    """Adds to sums (C,) those of all values: the gradient of a bias."""

    def write(w: Writer) -> None:
        source = Operand(w)
        channels, height, width, sums = w.argument(), w.argument(), w.argument(), w.of_part()
        with w.spread(channels) as (channel,):
            total = w.variable(w.zero)
            with w.rows(height) as row:
                for first, count in w.tiles(width, w.beside):
                    for place in range(count):
                        w.increase(total, source.load(source.at(channel, row, w.add(first, place))))
            w.add_up(w.get(total), sums, channel)

    return compile_kernel(write, kind)


@cache
def mean(kind: Kind) -> int:
    """The mean of a map's pixels, (C, 1, 1)."""

    def write(w: Writer) -> None:
        source, target = Operand(w), Operand(w)
        channels, height, width, share = (w.argument() for _ in range(4))  # share: address of 1 / (H * W)
        with w.spread(channels) as (channel,):
            total = w.variable(w.zero)
            with w.loop(height) as row:
                for first, count in w.tiles(width, w.beside):
                    for place in range(count):
                        w.increase(total, source.load(source.at(channel, row, w.add(first, place))))
            target.store(w.times(w.get(total), w.one(share)), target.at(channel, 0))

    return compile_kernel(write, kind)


@cache
def from_mean(kind: Kind) -> int:
    """What `mean`'s gradient is for every pixel."""

    def write(w: Writer) -> None:
        source, target = Operand(w), Operand(w)
        channels, height, width, share = (w.argument() for _ in range(4))
        with w.spread(channels) as (channel,):
            value = w.times(source.load(source.at(channel, 0)), w.one(share))
            with w.loop(height) as row, w.loop(width) as pixel:
                target.store(value, target.at(channel, row, pixel))

    return compile_kernel(write, kind)
