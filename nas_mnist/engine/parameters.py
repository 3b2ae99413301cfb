"""Kernels over a layer's few numbers: weights put in order, a normalisation's factors, and their gradients.

They run once, not for groups of images, number by number; the sums of a normalisation are float64. Every
function here gives the address of a kernel; its arguments stand in its code, in their order.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from llvmlite import ir

from .vectors import Kind, compile_kernel, number_of
from .writer import Value, Writer

_WIDE = np.dtype(np.float64)


def _wide(kind: Kind) -> Kind:
    """The kind for float64."""
    return _WIDE if isinstance(kind, np.dtype) else kind.wide()


@cache
def take(kind: Kind) -> int:
    """To every place of the target the number of the source that ``order`` (int64) names for it."""

    def write(w: Writer) -> None:
        source, target, order, count = (w.argument() for _ in range(4))
        with w.loop(count) as place:
            w.store(w.load(source, w.read_whole(order, place)), target, place)

    return compile_kernel(write, kind, lanes=1)


@cache
def put(adds: bool, kind: Kind) -> int:
    """To the places of the target that ``order`` (int64) names the sums over threads (threads, count).

    ``adds``: they are added to what is there.
    """

    def write(w: Writer) -> None:
        source, target, order, count, threads = (w.argument() for _ in range(5))
        with w.loop(count) as place:
            total, into = _total(w, source, threads, count, place), w.read_whole(order, place)
            w.store(w.plus(total, w.load(target, into)) if adds else total, target, into)

    return compile_kernel(write, kind, lanes=1)


@cache
def normalise(by_batch: bool, kind: Kind) -> int:
    """From sums (threads, 2, C) to factor, shift and centre (3, C), and to what `gradients` needs (4, C).

    ``by_batch``: of the batch's statistics, and the running ones (C,) move towards them; else by those.
    ``numbers``, as ``sums`` and what is kept float64: values a channel, the factor of an unbiased variance,
    momentum, epsilon.
    """

    def write(w: Writer) -> None:
        channels, threads, numbers, sums = w.argument(), w.argument(), w.argument(), w.of_copy()
        weight, bias, running_mean, running_variance, affine, kept = (w.of_copy() for _ in range(6))
        values, unbiased, momentum, epsilon = (w.load(numbers, place) for place in range(4))
        number = number_of(kind)
        with w.spread(channels) as (channel,):
            second_row = w.add(channels, channel)
            third_row = w.add(channels, second_row)
            mean, variance = (
                w.load_of(number, running_mean, channel),
                w.load_of(number, running_variance, channel),
            )
            if by_batch:
                width = w.mul(channels, 2)
                apart = w.over(_total(w, sums, threads, width, channel), values)
                square = w.over(_total(w, sums, threads, width, second_row), values)
                newest = w.plus(w.load_of(number, affine, third_row), apart)
                spread = w.largest(w.minus(square, w.times(apart, apart)), w.zero)
                for place, old, new in (
                    (running_mean, mean, newest),
                    (running_variance, variance, w.times(spread, unbiased)),
                ):
                    w.store_of(number, w.plus(old, w.times(momentum, w.minus(new, old))), place, channel)
                mean, variance = newest, spread
            inverse = w.over(w.constant(1.0), w.root(w.plus(variance, epsilon)))
            factor = w.times(w.load_of(number, weight, channel), inverse)
            w.store_of(number, factor, affine, channel)
            w.store_of(
                number, w.minus(w.load_of(number, bias, channel), w.times(mean, factor)), affine, second_row
            )
            w.store_of(number, mean, affine, third_row)
            off = w.minus(mean, w.load_of(number, affine, third_row))  # what rounding took from the centre
            for row, value in enumerate((mean, off, inverse, factor)):
                w.store(value, kept, w.add(w.mul(channels, row), channel))

    return compile_kernel(write, _wide(kind), lanes=1)


@cache
def gradients(by_batch: bool, kind: Kind) -> int:
    """Those of a normalisation's weight and bias, (C,) each, and of what it read (2, C), from sums.

    The sums (threads, 2, C) and what is ``kept`` and ``numbers`` are those of `normalise`. (Ioffe and Szegedy
    2015, arxiv.org/abs/1502.03167, section 3.)
    """

    def write(w: Writer) -> None:
        channels, threads, numbers = w.argument(), w.argument(), w.argument()
        sums, kept, through, into_weight, into_bias = (w.of_copy() for _ in range(5))
        values, width, number = w.load(numbers), w.mul(channels, 2), number_of(kind)
        with w.spread(channels) as (channel,):
            second_row = w.add(channels, channel)
            mean, off, inverse, factor = (
                w.load(kept, w.add(w.mul(channels, row), channel)) for row in range(4)
            )
            bias = _total(w, sums, threads, width, channel)
            second = _total(w, sums, threads, width, second_row)
            weight = w.times(w.minus(second, w.times(off, bias)), inverse)
            linear = constant = w.zero
            if by_batch:  # mean and variance depend on the maps
                share = w.over(factor, values)
                linear = w.minus(w.zero, w.times(w.times(share, inverse), weight))
                constant = w.minus(w.minus(w.zero, w.times(share, bias)), w.times(mean, linear))
            w.store_of(number, linear, through, channel)
            w.store_of(number, constant, through, second_row)
            w.store_of(number, weight, into_weight, channel)
            w.store_of(number, bias, into_bias, channel)

    return compile_kernel(write, _wide(kind), lanes=1)


def _total(w: Writer, source: Value, threads: Value, width: Value, place: Value) -> ir.Value:
    """Of one number of all threads' (threads, ``width``)."""
    return w.total(threads, lambda thread: w.load(source, w.add(w.mul(thread, width), place)))
