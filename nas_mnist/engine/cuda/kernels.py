"""Convolutions as `writer` has them: what `convolve` does in other tiles.

Tiles are of equal size: where they do not fit, the last two overlap, and what is in both is computed twice.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from math import e, log, log2
from typing import Any

from llvmlite import ir

from ..convolve import Operand
from ..vectors import Kind, compile_kernel
from ..warping import EDGE, mixed
from ..writer import INDEX, Value, Writer


def tile(count: int, most: int) -> tuple[int, int]:
    """How large tiles are, and how many."""
    tiles = -(-count // most)
    return -(-count // tiles), tiles


def _first(w: Writer, number: Value, size: int, count: Value) -> Value:
    """Where a tile begins."""
    return w.smaller(w.mul(number, size), w.add(count, -size))


@cache
def take(kind: Kind) -> int:
    """Numbers from the addresses (int64) that stand in an array, a vector of them at a time."""

    def write(w: Writer) -> None:
        addresses, target, vectors = (w.argument() for _ in range(3))
        with w.spread(vectors) as (vector,):
            at = w.mul(vector, w.lanes)
            w.store(w.from_anywhere(addresses, at), target, at)

    return compile_kernel(write, kind)


@cache
def dense(kernel: int, stride: int, outputs: int, pixels: int, kind: Kind) -> int:
    """A convolution of all channels, in tiles of ``outputs`` channels, at most four, of ``pixels``.

    Weights lie as (tile, input, ky, kx, 4).
    """

    def write(w: Writer) -> None:
        source, target = Operand(w), Operand(w)
        weights, bias = w.of_copy(), w.of_copy()
        inputs, channels, height, width, tiles, across = (w.argument() for _ in range(6))
        with w.spread(across, tiles) as (number, tile):
            channel, pixel = _first(w, tile, outputs, channels), _first(w, number, pixels, width)
            starts = [w.one(bias, w.add(channel, output)) for output in range(outputs)]
            first = w.mul(tile, inputs)
            with w.rows(height) as row:
                sums = [[w.variable(start) for _ in range(pixels)] for start in starts]
                for one, beside in w.tiles(inputs, (4, 1) if kernel == 1 else (1,)):
                    for extra, ky in product(range(beside), range(kernel)):
                        given = w.add(one, extra)
                        line = source.at(given, w.add(w.mul(row, stride), ky), w.mul(pixel, stride))
                        reads = [
                            source.load(w.add(line, place * w.lanes))
                            for place in range((pixels - 1) * stride + kernel)
                        ]
                        at = w.mul(w.add(first, given), 4 * kernel**2)
                        for kx in range(kernel):
                            factors = w.four(weights, w.add(at, 4 * (ky * kernel + kx)))
                            for output, place in product(range(outputs), range(pixels)):
                                product_ = w.times(reads[place * stride + kx], factors[output])
                                w.increase(sums[output][place], product_)
                for output, place in product(range(outputs), range(pixels)):
                    to = target.at(w.add(channel, output), row, w.add(pixel, place))
                    target.store(w.get(sums[output][place]), to)

    return compile_kernel(write, kind)


@cache
def depthwise(kernel: int, stride: int, turned: bool, kind: Kind) -> int:
    """A convolution of every channel by itself.

    ``turned``: with weights turned by half a turn, as the way back reads them.
    """

    def write(w: Writer) -> None:
        source, target = Operand(w), Operand(w)
        weights, bias = w.of_copy(), w.of_copy()
        channels, height, width = (w.argument() for _ in range(3))
        with w.spread(channels) as (channel,):
            of = w.mul(channel, kernel**2)
            in_order = [w.one(weights, w.add(of, place)) for place in range(kernel**2)]
            factors = dict(
                zip(product(range(kernel), repeat=2), in_order[:: -1 if turned else 1], strict=True)
            )
            start = w.one(bias, channel)
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

    def write(w: Any) -> None:
        table = w.argument()
        row = w.mul(w.chunk, 5)
        source, target, apart, count, parts = (w.read_whole(table, w.add(row, at)) for at in range(5))
        target, first = w.add(target, w.mul(w.copy, apart)), w.mul(w.copy, w.mul(parts, count))
        with w.spread(count) as (place,):
            total = w.total(parts, lambda part: w.load(source, w.add(first, w.mul(part, count), place)))
            w.store(w.plus(total, w.load(target, place)) if adds else total, target, place)

    return compile_kernel(write, kind, lanes=1)


@cache
def pictures(kind: Kind) -> int:
    """The images of a step, mapped and normalised: what `warp.Warp` makes, a lane each.

    Of every network ``count`` images; a group that is not full has its last one again.
    """

    def write(w: Any) -> None:
        target = Operand(w)
        images, picked, lines, normal = (w.argument() for _ in range(4))
        channels, height, width, count = (w.argument() for _ in range(4))
        wide, tall = w.add(width, sum(EDGE)), w.add(height, sum(EDGE))
        number = _images(w, count)
        position = w.gathered(INDEX, picked, number)
        own = w.times_and_plus(position, w.mul(channels, w.mul(wide, tall)), None, 0)
        numbers = [
            w.gathered(w.number, lines, w.times_and_plus(number, 6, None, place)) for place in range(6)
        ]
        first, right, down = numbers[:2], numbers[2:4], numbers[4:]
        factor, constant = w.one(normal), w.one(normal, 1)
        limits = [w.number_of(width), w.number_of(height)]
        with w.spread(channels) as (channel,), w.rows(height) as y:
            line = [w.plus(one, w.times(w.number_of(y), by)) for one, by in zip(first, down, strict=True)]
            corner = w.add(w.mul(w.mul(channel, wide), tall), w.mul(wide, EDGE[0]), EDGE[0])
            start = w.times_and_plus(own, 1, None, corner)

            def made(x: Value) -> ir.Value:
                places = [
                    w.plus(one, w.times(w.number_of(x), by)) for one, by in zip(line, right, strict=True)
                ]
                return w.plus(w.times(mixed(w, images, places, limits, wide, start), factor), constant)

            for begin, pixels in w.tiles(width, w.beside):
                xs = [w.add(begin, place) for place in range(pixels)]
                for x, value in [(x, made(x)) for x in xs]:
                    target.store(value, target.at(channel, y, x))

    return compile_kernel(write, kind)


def _images(w: Any, count: Value) -> ir.Value:
    """The numbers of a group's images among all, of which every network has ``count``."""
    number = w.least(w.count_from(w.mul(w.group_of_copy, w.lanes)), w.add(count, -1))
    return w.times_and_plus(number, 1, None, w.mul(w.copy, count))


@cache
def cross_entropy(kind: Kind) -> int:
    """The loss of scores (classes, 1, 1), a part's share in the mean of its network's, and its gradient.

    ``numbers``: what every class is asked for, what the label is besides, and an image's share in the mean.
    """

    def write(w: Any) -> None:
        source, target = Operand(w), Operand(w)
        labels, classes, count, numbers, there, losses = (*(w.argument() for _ in range(5)), w.of_part())
        label = w.number_of(w.gathered(INDEX, labels, _images(w, count)))
        every, more, share = (w.one(numbers, place) for place in range(3))
        share = w.times(share, w.load(there, w.mul(w.group, w.lanes)))
        with w.spread(1):
            most = w.variable(source.load(source.at(0, 0)))
            with w.loop(classes) as one:
                w.put(most, w.largest(w.get(most), source.load(source.at(one, 0))))
            total, wanted = w.variable(w.zero), w.variable(w.zero)

            def parts(one: Value) -> tuple[ir.Value, ir.Value, ir.Value]:
                score = w.minus(source.load(source.at(one, 0)), w.get(most))
                of_label = w.choose(label, "==", w.number_of(one), more, w.zero)
                return score, w.power_of_two(w.times(score, w.constant(log2(e)))), w.plus(every, of_label)

            with w.loop(classes) as one:
                score, power, asked = parts(one)
                w.increase(total, power)
                w.increase(wanted, w.times(score, asked))
            logarithm = w.times(w.binary_logarithm(w.get(total)), w.constant(log(2)))
            w.add_up(w.times(w.minus(logarithm, w.get(wanted)), share), losses)
            inverse = w.over(w.constant(1.0), w.get(total))
            with w.loop(classes) as one:
                _, power, asked = parts(one)
                change = w.minus(w.times(power, inverse), asked)
                target.store(w.times(change, share), target.at(one, 0))

    return compile_kernel(write, kind)


@cache
def descend(nesterov: bool, kind: Kind) -> int:
    """What `optimizers.SGD` does, a vector of numbers at a time; ``rates`` are those of all steps."""

    def write(w: Writer) -> None:
        trained, gradient, average, decay, momentum, rates, done, vectors = (w.argument() for _ in range(8))
        keep, rate = w.one(momentum), w.one(rates, w.read_whole(done, 0))
        with w.spread(vectors) as (vector,):
            at = w.mul(vector, w.lanes)
            weights = w.load(trained, at)
            change = w.plus(w.load(gradient, at), w.times(weights, w.load(decay, at)))
            mean = w.plus(w.times(w.load(average, at), keep), change)
            w.store(mean, average, at)
            ahead = w.plus(change, w.times(mean, keep)) if nesterov else mean
            w.store(w.minus(weights, w.times(ahead, rate)), trained, at)

    return compile_kernel(write, kind)


@cache
def follow(kind: Kind) -> int:
    """Moves averaged numbers towards the newest ones; ``shares`` are those of all steps."""

    def write(w: Writer) -> None:
        averaged, newest, shares, done, vectors = (w.argument() for _ in range(5))
        share = w.one(shares, w.read_whole(done, 0))
        with w.spread(vectors) as (vector,):
            at = w.mul(vector, w.lanes)
            before = w.load(averaged, at)
            w.store(w.plus(before, w.times(w.minus(w.load(newest, at), before), share)), averaged, at)

    return compile_kernel(write, kind)
