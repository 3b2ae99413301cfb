"""Convolutions on a CPU, forward and back: loops over maps whose images lie side by side.

Maps are groups of `LANES` images: (groups, C, H, W, LANES). So every number of a loop is a vector of as many
images, whatever the number of channels and the size of a map, and a weight is one number for all of them.
Everything is float32 (float64 to check gradients). Every function here gives the address of a kernel; its
arguments stand in its code, in their order.

A tile is what a kernel computes at once, in registers: a few output channels of a few pixels, so that every
number that is loaded is used several times.
"""

from __future__ import annotations

from functools import cache
from itertools import product

from llvmlite import ir

from .vectors import LANES, Kind, compile_kernel
from .writer import Value, Writer

OUTPUTS = 4  # channels of a dense convolution's tile
# Of its tile; the widest that fits comes first. Where vectors are long there are 32 registers, else 16.
_PIXELS = (4, 2, 1) if LANES == 16 else (2, 1)
_ALONE = (4, 2, 1)  # pixels of a depthwise convolution's tile


class Operand:
    """Maps among a kernel's arguments: an address, and the distances of groups, channels, rows and pixels."""

    def __init__(self, write: Writer) -> None:
        self.write = write
        self.start = write.argument()
        self.groups, self.channels, self.rows, self.pixels = (write.argument() for _ in range(4))
        self.start_of_group = write.mul(write.group, self.groups)

    def at(self, channel: Value, row: Value, pixel: Value = 0) -> Value:
        write = self.write
        return write.add(
            self.start_of_group,
            *(write.mul(channel, self.channels), write.mul(row, self.rows), write.mul(pixel, self.pixels)),
        )

    def load(self, at: Value) -> ir.Value:
        return self.write.load(self.start, at)

    def store(self, value: ir.Value, at: Value) -> None:
        self.write.store(value, self.start, at)


def split(channels: int, most: int) -> list[int]:
    """Nearly equal parts, the larger ones first."""
    parts = -(-channels // most)
    return [channels // parts + (part < channels % parts) for part in range(parts)]


@cache
def dense(kernel: int, stride: int, kind: Kind) -> int:
    """A convolution of all channels; maps that it reads have their padding around them.

    Weights lie as (tile, ky, input, kx, output of the tile).
    """

    def write(w: Writer) -> None:
        source, target = Operand(w), Operand(w)
        weights, bias, inputs, height, width = (w.argument() for _ in range(5))
        first: Value = 0  # output channel
        for outputs in range(OUTPUTS, 0, -1):
            tiles = w.argument()  # of so many outputs
            with w.loop(tiles) as tile:
                channel = w.add(first, w.mul(tile, outputs))
                block = w.mul(w.mul(channel, inputs), kernel * kernel)
                with w.loop(height) as row:
                    for pixel, pixels in w.tiles(width, _PIXELS):
                        starts = [w.one(bias, w.add(channel, output)) for output in range(outputs)]
                        sums = [[w.variable(start) for _ in range(pixels)] for start in starts]
                        with w.loop(kernel) as ky, w.loop(inputs) as one:
                            line = source.at(one, w.add(w.mul(row, stride), ky), w.mul(pixel, stride))
                            at = w.add(block, w.mul(w.add(w.mul(ky, inputs), one), kernel * outputs))
                            for kx in range(kernel):
                                places = [w.add(at, kx * outputs + output) for output in range(outputs)]
                                factors = [w.one(weights, place) for place in places]
                                for place in range(pixels):
                                    read = source.load(w.add(line, (place * stride + kx) * LANES))
                                    for output in range(outputs):
                                        w.increase(sums[output][place], w.times(read, factors[output]))
                        for output, place in product(range(outputs), range(pixels)):
                            to = target.at(w.add(channel, output), row, w.add(pixel, place))
                            target.store(w.get(sums[output][place]), to)
            first = w.add(first, w.mul(tiles, outputs))

    return compile_kernel(write, kind)


@cache
def depthwise(kernel: int, stride: int, kind: Kind) -> int:
    """A convolution of every channel by itself; weights lie as (C, ky, kx)."""

    def write(w: Writer) -> None:
        source, target = Operand(w), Operand(w)
        weights, bias, channels, height, width = (w.argument() for _ in range(5))
        with w.loop(channels) as channel, w.loop(height) as row:
            for pixel, pixels in w.tiles(width, _ALONE):
                sums = [w.variable(w.one(bias, channel)) for _ in range(pixels)]
                for ky in range(kernel):
                    line = source.at(channel, w.add(w.mul(row, stride), ky), w.mul(pixel, stride))
                    for kx in range(kernel):
                        at = w.add(w.mul(channel, kernel * kernel), ky * kernel + kx)
                        factor = w.one(weights, at)
                        for place in range(pixels):
                            read = source.load(w.add(line, (place * stride + kx) * w.lanes))
                            w.increase(sums[place], w.times(read, factor))
                for place in range(pixels):
                    target.store(w.get(sums[place]), target.at(channel, row, w.add(pixel, place)))

    return compile_kernel(write, kind)


def gradient_outputs(kernel: int) -> int:
    """Output channels for which a tile of `dense_gradient` sums at once."""
    return {1: 4, 3: 3, 5: 2, 7: 1}[kernel]


@cache
def dense_gradient(kernel: int, stride: int, kind: Kind) -> int:
    """Adds to the gradient of a dense convolution's weights, from its input and its output's gradient."""
    most = gradient_outputs(kernel)

    def write(w: Writer) -> None:
        source, gradient = Operand(w), Operand(w)
        into, inputs, height, width = (w.argument() for _ in range(4))

        def tile(channel: Value, outputs: int, one: Value, beside: int, ky: Value) -> None:
            """Of so many outputs and of ``beside`` inputs."""
            sums = {key: w.variable(w.zero) for key in product(range(beside), range(kernel), range(outputs))}
            with w.loop(height) as row:
                lines = [
                    source.at(w.add(one, extra), w.add(w.mul(row, stride), ky)) for extra in range(beside)
                ]
                changes = [gradient.at(w.add(channel, output), row) for output in range(outputs)]
                for pixel, pixels in w.tiles(width, (2, 1)):
                    start = w.mul(pixel, stride * w.lanes)
                    for place in range(pixels):
                        d = [
                            gradient.load(w.add(change, w.mul(w.add(pixel, place), gradient.pixels)))
                            for change in changes
                        ]
                        for extra, kx in product(range(beside), range(kernel)):
                            read = source.load(w.add(lines[extra], start, (place * stride + kx) * w.lanes))
                            for output in range(outputs):
                                w.increase(sums[extra, kx, output], w.times(read, d[output]))
            block = w.mul(w.mul(channel, inputs), kernel * kernel)
            for (extra, kx, output), variable in sums.items():
                at = w.mul(w.add(w.mul(ky, inputs), one, extra), kernel * outputs)
                w.add_up(w.get(variable), into, w.add(block, at, kx * outputs + output))

        first: Value = 0
        for outputs in range(most, 0, -1):
            tiles = w.argument()
            with w.loop(tiles) as number:
                channel = w.add(first, w.mul(number, outputs))
                with w.loop(kernel) as ky:
                    for one, beside in w.tiles(inputs, (2, 1) if kernel == 1 else (1,)):
                        tile(channel, outputs, one, beside, ky)
            first = w.add(first, w.mul(tiles, outputs))

    return compile_kernel(write, kind)


@cache
def depthwise_gradient(kernel: int, stride: int, kind: Kind) -> int:
    """Adds to the gradient of a depthwise convolution's weights."""

    def write(w: Writer) -> None:
        source, gradient = Operand(w), Operand(w)
        into, channels, height, width = w.of_part(), w.argument(), w.argument(), w.argument()
        with w.spread(channels, kernel) as (channel, ky):
            sums = [w.variable(w.zero) for _ in range(kernel)]
            with w.rows(height) as row:
                line = source.at(channel, w.add(w.mul(row, stride), ky))
                change = gradient.at(channel, row)
                for pixel, pixels in w.tiles(width, _ALONE):
                    start = w.add(line, w.mul(pixel, stride * w.lanes))
                    for place in range(pixels):
                        d = gradient.load(w.add(change, w.mul(w.add(pixel, place), gradient.pixels)))
                        for kx in range(kernel):
                            read = source.load(w.add(start, (place * stride + kx) * w.lanes))
                            w.increase(sums[kx], w.times(read, d))
            for kx in range(kernel):
                at = w.add(w.mul(w.add(w.mul(channel, kernel), ky), kernel), kx)
                w.add_up(w.get(sums[kx]), into, at)

    return compile_kernel(write, kind)
