"""Kernels between convolutions: pixel by pixel, with sums over maps, and pooling.

The CPU and CUDA (`cuda.writer`) share these kernels. On CUDA a block writes its own sums instead of adding to
them. Backward passes read a convolution's output ``y`` alone and compute the rest again, because arithmetic
is faster here than memory. Sums are per block. Image masks (tiles, lanes) are 1 for an image, 0 for an empty
lane.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce

from .compile import compiled
from .epilogue import MAX_POOL, Epilogue, PointwiseChain, max_pool_gradients, pool_window
from .values import Index, Int, Vector
from .writer import MapPointer, Writer


def _pixels(w: Writer, height: Int, width: Int) -> Iterator[tuple[Index, list[Index]]]:
    """Loops over a block's rows. Gives a row, and neighbouring pixels that are computed together."""
    with w.rows(height) as row:
        for first, count in w.unrolled_loops(width, w.unroll):
            yield row, [first + i for i in range(count)]


def _values(w: Writer, source: MapPointer, channel: Index, height: Int, width: Int) -> Iterator[Vector]:
    """All pixels of a block's rows."""
    for row, pixels in _pixels(w, height, width):
        for pixel in pixels:
            yield source.load(source.at(channel, row, pixel))


def _write_map(
    w: Writer, target: MapPointer, channel: Index, size: tuple[Int, Int], of: Callable[[Index, Index], Vector]
) -> None:
    """Write ``of(row, pixel)`` to all pixels."""
    for row, pixels in _pixels(w, *size):
        for pixel, value in [(pixel, of(row, pixel)) for pixel in pixels]:
            target.store(value, target.at(channel, row, pixel))


@compiled()
def forward(w: Writer, epilogue: Epilogue, adds: bool) -> None:
    """Writes the chain's output to a map, or ``adds`` it to the map. Pooling leaves out an odd edge.

    Arguments: map y; map of the output; chain; height and width of the output.
    """
    source, target, chain = MapPointer(w), MapPointer(w), PointwiseChain(w, epilogue)
    size = w.argument(), w.argument()
    with w.parallel_for(chain.channels) as (channel,):
        chain.begin(channel)

        def output(row: Index, pixel: Index) -> Vector:
            if epilogue.pool:
                window = pool_window(source, channel, row, pixel)
                values = [chain.value(source.load(place)) for place in window]
                if epilogue.pool == MAX_POOL:
                    value = reduce(w.maximum, values)
                else:
                    value = ((values[0] + values[1]) + (values[2] + values[3])) * 0.25
            else:
                value = chain.value(source.load(source.at(channel, row, pixel)))
            value = chain.drop(value)
            return target.load(target.at(channel, row, pixel)) + value if adds else value

        _write_map(w, target, channel, size, output)


@compiled()
def backward(w: Writer, epilogue: Epilogue, adds: bool) -> None:
    """Writes the gradient of the normalisation's output, or ``adds`` it; sums are for `batchnorm_gradients`.

    Arguments: map of the gradient of `forward`'s output; map y; map of the result; chain; height and width of
    the first map; sums (2, C), float64, of the result, and of the result times the normalisation's input less
    the centre.
    """
    gradient, source, target = MapPointer(w), MapPointer(w), MapPointer(w)
    chain = PointwiseChain(w, epilogue)
    height, width, sums = w.argument(), w.argument(), w.per_block_ptr()
    with w.parallel_for(chain.channels) as (channel,):
        chain.begin(channel)
        total, product = w.variable(), w.variable()

        def result(y: Vector, d: Vector, place: Index) -> tuple[Vector, Index]:
            d = chain.norm_output_gradient(y, d)
            if epilogue.norm:
                total.add(d)
                product.add(d * (chain.norm_input(y) - chain.centre))
            return target.load(place) + d if adds else d, place

        def results(row: Index, pixel: Index) -> list[tuple[Vector, Index]]:
            d = chain.drop(gradient.load(gradient.at(channel, row, pixel)))
            if not epilogue.pool:
                y = source.load(source.at(channel, row, pixel))
                return [result(y, d, target.at(channel, row, pixel))]
            window = [source.load(place) for place in pool_window(source, channel, row, pixel)]
            if epilogue.pool == MAX_POOL:
                gradients = max_pool_gradients(w, [chain.value(y) for y in window], d)
            else:
                gradients = [d * 0.25] * 4
            places = pool_window(target, channel, row, pixel)
            return [result(*one) for one in zip(window, gradients, places, strict=True)]

        for row, pixels in _pixels(w, height, width):
            for value, place in [one for pixel in pixels for one in results(row, pixel)]:
                target.store(value, place)
        if epilogue.norm:
            w.reduce_into(total.get(), sums, channel, float64=True)
            w.reduce_into(product.get(), sums, chain.channels + channel, float64=True)


@compiled()
def batchnorm_backward(w: Writer, epilogue: Epilogue) -> None:
    """Writes the gradient of y from `backward`'s result; it is 0 for empty lanes.

    Arguments: map of `backward`'s result; map y; map of y's gradient; chain; height and width; per model the
    rows linear and constant (2, C) of `batchnorm_gradients`; image mask.
    """
    gradient, source, target = MapPointer(w), MapPointer(w), MapPointer(w)
    chain = PointwiseChain(w, epilogue)
    size, through, mask = (w.argument(), w.argument()), w.per_model_ptr(), w.argument()
    images = w.load(mask, w.batch_tile * w.lanes)
    with w.parallel_for(chain.channels) as (channel,):
        chain.begin(channel)
        if epilogue.norm:
            linear = w.load_splat(through, channel)
            constant = w.load_splat(through, chain.channels + channel)

        def y_gradient(row: Index, pixel: Index) -> Vector:
            d = gradient.load(gradient.at(channel, row, pixel))
            if not epilogue.norm:
                return d
            y = source.load(source.at(channel, row, pixel))
            d = d * chain.scale + chain.norm_input(y) * linear + constant
            return (chain.activation_gradient(y, d) if epilogue.norm_after else d) * images

        _write_map(w, target, channel, size, y_gradient)


@compiled()
def batch_stats(w: Writer, epilogue: Epilogue) -> None:
    """Adds the sums of the normalisation's input, less the centre, and of its squares.

    Arguments: map y; chain; height and width; sums (2, C), float64; image mask.
    """
    source, chain = MapPointer(w), PointwiseChain(w, epilogue)
    height, width, sums, mask = w.argument(), w.argument(), w.per_block_ptr(), w.argument()
    images = w.load(mask, w.batch_tile * w.lanes)
    with w.parallel_for(chain.channels) as (channel,):
        chain.begin(channel)
        total, squares = w.variable(), w.variable()
        for y in _values(w, source, channel, height, width):
            value = (chain.norm_input(y) - chain.centre) * images
            total.add(value)
            squares.add(value * value)
        w.reduce_into(total.get(), sums, channel, float64=True)
        w.reduce_into(squares.get(), sums, chain.channels + channel, float64=True)


@compiled()
def channel_sums(w: Writer) -> None:
    """Adds the sums of channels: the gradient of a bias.

    Arguments: map; C; height and width; sums (C,).
    """
    source = MapPointer(w)
    channels, height, width, sums = w.argument(), w.argument(), w.argument(), w.per_block_ptr()
    with w.parallel_for(channels) as (channel,):
        total = w.variable()
        for value in _values(w, source, channel, height, width):
            total.add(value)
        w.reduce_into(total.get(), sums, channel)


@compiled()
def global_average_pool(w: Writer) -> None:
    """The mean of all pixels.

    Arguments: map (C, H, W); map of the means (C, 1, 1); C; H; W.
    """
    source, target = MapPointer(w), MapPointer(w)
    channels, height, width = (w.argument() for _ in range(3))
    share = 1.0 / w.to_float(height * width)
    with w.parallel_for(channels) as (channel,):
        total = w.variable()
        with w.loop(height) as row:
            for first, count in w.unrolled_loops(width, w.unroll):
                for i in range(count):
                    total.add(source.load(source.at(channel, row, first + i)))
        target.store(total.get() * share, target.at(channel, 0))


@compiled()
def global_average_pool_backward(w: Writer) -> None:
    """The gradient of `global_average_pool`'s input.

    Arguments: map of the means' gradient (C, 1, 1); map of the result (C, H, W); C; H; W.
    """
    source, target = MapPointer(w), MapPointer(w)
    channels, height, width = (w.argument() for _ in range(3))
    share = 1.0 / w.to_float(height * width)
    with w.parallel_for(channels) as (channel,):
        value = source.load(source.at(channel, 0)) * share
        with w.loop(height) as row, w.loop(width) as pixel:
            target.store(value, target.at(channel, row, pixel))
