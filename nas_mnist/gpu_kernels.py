"""Convolutions as `gpu_writer` has them: what `convolve` does in other tiles.

Weights are read as torch has them. Tiles are of equal size: where they do not fit, the last two overlap, and
what is in both is computed twice.
"""

from __future__ import annotations

from functools import cache
from itertools import product

from .convolve import Operand
from .vectors import Kind, compile_kernel
from .writer import Value, Writer


def tile(count: int, most: int) -> tuple[int, int]:
    """How large tiles are, and how many."""
    tiles = -(-count // most)
    return -(-count // tiles), tiles


def _first(w: Writer, number: Value, size: int, count: Value) -> Value:
    """Where a tile begins."""
    return w.smaller(w.mul(number, size), w.add(count, -size))


class _Weights:
    """A convolution's weights among a kernel's arguments: an address, and distances."""

    def __init__(self, w: Writer) -> None:
        self.w = w
        self.start, self.apart = w.of_copy(), [w.argument() for _ in range(4)]  # output, input, ky, kx
        self.bias = w.of_copy()

    def at(self, *places: Value) -> Value:
        """Of output, input, ky and kx."""
        return self.w.add(*(self.w.mul(place, by) for place, by in zip(places, self.apart, strict=True)))


@cache
def dense(kernel: int, stride: int, outputs: int, pixels: int, kind: Kind) -> int:
    """A convolution of all channels, in tiles of ``outputs`` channels of ``pixels``."""

    def write(w: Writer) -> None:
        source, target, weights = Operand(w), Operand(w), _Weights(w)
        inputs, channels, height, width, tiles, across = (w.argument() for _ in range(6))
        with w.spread(tiles, across) as (tile, beside):
            channel, pixel = _first(w, tile, outputs, channels), _first(w, beside, pixels, width)
            starts = [w.one(weights.bias, w.add(channel, output)) for output in range(outputs)]
            with w.rows(height) as row:
                sums = [[w.variable(start) for _ in range(pixels)] for start in starts]
                with w.loop(kernel) as ky, w.loop(inputs) as one:
                    line = source.at(one, w.add(w.mul(row, stride), ky), w.mul(pixel, stride))
                    reads = [
                        source.load(w.add(line, place * w.lanes))
                        for place in range((pixels - 1) * stride + kernel)
                    ]
                    at = weights.at(channel, one, ky, 0)
                    for kx, output in product(range(kernel), range(outputs)):
                        factor = w.one(weights.start, w.add(at, weights.at(output, 0, 0, kx)))
                        for place in range(pixels):
                            read = reads[place * stride + kx]
                            w.increase(sums[output][place], w.times(read, factor))
                for output, place in product(range(outputs), range(pixels)):
                    to = target.at(w.add(channel, output), row, w.add(pixel, place))
                    target.store(w.get(sums[output][place]), to)

    return compile_kernel(write, kind)


@cache
def depthwise(kernel: int, stride: int, kind: Kind) -> int:
    """A convolution of every channel by itself; weights as in `dense`, without inputs."""

    def write(w: Writer) -> None:
        source, target, weights = Operand(w), Operand(w), _Weights(w)
        channels, height, width = (w.argument() for _ in range(3))
        with w.spread(channels) as (channel,):
            places = product(range(kernel), repeat=2)
            factors = {at: w.one(weights.start, weights.at(channel, 0, *at)) for at in places}
            start = w.one(weights.bias, channel)
            with w.rows(height) as row:
                for pixel, pixels in w.tiles(width, w.beside):
                    sums = [w.variable(start) for _ in range(pixels)]
                    for ky in range(kernel):
                        line = source.at(channel, w.add(w.mul(row, stride), ky), w.mul(pixel, stride))
                        reads = [
                            source.load(w.add(line, place * w.lanes))
                            for place in range((pixels - 1) * stride + kernel)
                        ]
                        for kx, place in product(range(kernel), range(pixels)):
                            read = reads[place * stride + kx]
                            w.increase(sums[place], w.times(read, factors[ky, kx]))
                    for place in range(pixels):
                        target.store(w.get(sums[place]), target.at(channel, row, w.add(pixel, place)))

    return compile_kernel(write, kind)


@cache
def dense_gradient(kernel: int, stride: int, outputs: int, beside: int, kind: Kind) -> int:
    """A part's share in the gradient of a dense convolution's weights, (outputs, inputs, ky, kx).

    In tiles of ``outputs`` times ``beside`` input channels.
    """

    def write(w: Writer) -> None:
        source, gradient = Operand(w), Operand(w)
        into = w.of_part()
        inputs, channels, height, width, tiles, across = (w.argument() for _ in range(6))
        places = list(product(range(outputs), range(beside), range(kernel), range(kernel)))
        with w.spread(tiles, across) as (tile, other):
            channel, one = _first(w, tile, outputs, channels), _first(w, other, beside, inputs)
            sums = {place: w.variable(w.zero) for place in places}
            with w.rows(height) as row:
                for pixel, pixels in w.tiles(width, w.beside):
                    d = [
                        [
                            gradient.load(gradient.at(w.add(channel, output), row, w.add(pixel, place)))
                            for place in range(pixels)
                        ]
                        for output in range(outputs)
                    ]
                    for extra, ky in product(range(beside), range(kernel)):
                        at = w.add(w.mul(row, stride), ky)
                        line = source.at(w.add(one, extra), at, w.mul(pixel, stride))
                        reads = [
                            source.load(w.add(line, place * w.lanes))
                            for place in range((pixels - 1) * stride + kernel)
                        ]
                        for output, kx, place in product(range(outputs), range(kernel), range(pixels)):
                            read = reads[place * stride + kx]
                            w.increase(sums[output, extra, ky, kx], w.times(read, d[output][place]))
            for (output, extra, ky, kx), variable in sums.items():
                filter_ = w.add(w.mul(w.add(channel, output), inputs), one, extra)
                w.add_up(w.get(variable), into, w.add(w.mul(filter_, kernel**2), ky * kernel + kx))

    return compile_kernel(write, kind)


@cache
def collect(adds: bool, kind: Kind) -> int:
    """The sums of all parts, for several gradients at once; ``adds``: to what is there.

    ``table`` (int64) has a row for each: the parts' sums (copies, parts, count), where they go, how far
    copies are apart there in bytes, the count, and the parts.
    """

    def write(w: Writer) -> None:
        table = w.argument()
        row = w.mul(w.chunk, 5)
        source, target, apart, count, parts = (w.read_whole(table, w.add(row, at)) for at in range(5))
        target = w.add(target, w.mul(w.copy, apart))
        first = w.mul(w.copy, w.mul(parts, count))
        with w.spread(count) as (place,):
            total = w.total(parts, lambda part: w.load(source, w.add(first, w.mul(part, count), place)))
            w.store(w.plus(total, w.load(target, place)) if adds else total, target, place)

    return compile_kernel(write, kind, lanes=1)
