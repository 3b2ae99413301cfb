"""Kernels over the few numbers of a layer: weights in another order, and a normalisation's numbers.

They run once, not for every batch tile, number by number. A normalisation's sums are float64. Every function
returns the address of a kernel. Numbers have the kernel's ``dtype``, if not said otherwise.

Of a normalisation there are ``sums`` (threads or blocks, 2, C), float64, and ``numbers`` (4,), float64:
values per channel, the factor of an unbiased variance, momentum and epsilon.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from .compile import DType, compile_kernel, numpy_dtype
from .values import Index, Int, Vector
from .writer import Writer

_FLOAT64 = np.dtype(np.float64)


def _float64(dtype: DType) -> DType:
    """The same machine's float64."""
    return _FLOAT64 if isinstance(dtype, np.dtype) else dtype.as_float64()


def _sum_of(w: Writer, sums: Int, parts: Int, width: Int, place: Int) -> Vector:
    """The sum of one column of (parts, width)."""
    return w.sum_over(parts, lambda part: w.load(sums, part * width + place))


@cache
def gather(dtype: DType) -> int:
    """``target[i] = source[order[i]]``.

    Arguments: source; target (N,); order (N,), int64; N.
    """

    def write(w: Writer) -> None:
        source, target, order, count = (w.argument() for _ in range(4))
        with w.loop(count) as place:
            w.store(w.load(source, w.load_index(order, place)), target, place)

    return compile_kernel(write, dtype, lanes=1)


@cache
def scatter_sum(adds: bool, dtype: DType) -> int:
    """``target[order[i]] = source[:, i].sum()``, or ``adds`` the sum to the target.

    Arguments: source (threads, N); target; order (N,), int64; N; threads.
    """

    def write(w: Writer) -> None:
        source, target, order, count, threads = (w.argument() for _ in range(5))
        with w.loop(count) as place:
            total, at = _sum_of(w, source, threads, count, place), w.load_index(order, place)
            w.store(total + w.load(target, at) if adds else total, target, at)

    return compile_kernel(write, dtype, lanes=1)


@cache
def batchnorm_affine(by_batch: bool, dtype: DType) -> int:
    """A normalisation as ``x * scale + shift``.

    ``by_batch``: by the batch's mean and variance, which also update the running ones; else by the running
    ones.

    Arguments: C; threads; numbers; sums (per model) of `batch_stats`; per model: weight, bias, running mean
    and running variance (C,); the rows scale, shift and centre (3, C), which are written, after the sums'
    centre was read; and for `batchnorm_gradients` the rows mean, centre error, inverse deviation and scale
    (4, C), float64.
    """

    def write(w: Writer) -> None:
        channels, threads, numbers, sums = w.argument(), w.argument(), w.argument(), w.per_model_ptr()
        weight, bias, running_mean, running_variance, affine, kept = (w.per_model_ptr() for _ in range(6))
        values, unbiased, momentum, epsilon = (w.load(numbers, place) for place in range(4))
        narrow = numpy_dtype(dtype)

        def move(running: Index, channel: Index, old: Vector, new: Vector) -> None:
            w.store_as(narrow, old + momentum * (new - old), running, channel)

        with w.parallel_for(channels) as (channel,):
            second_row = channels + channel
            third_row = channels + second_row
            mean = w.load_as(narrow, running_mean, channel)
            variance = w.load_as(narrow, running_variance, channel)
            if by_batch:
                # The mean less the centre.
                offset = _sum_of(w, sums, threads, channels * 2, channel) / values
                square = _sum_of(w, sums, threads, channels * 2, second_row) / values
                batch_mean = w.load_as(narrow, affine, third_row) + offset
                batch_variance = w.maximum(square - offset * offset, w.vector(0.0))
                move(running_mean, channel, mean, batch_mean)
                move(running_variance, channel, variance, batch_variance * unbiased)
                mean, variance = batch_mean, batch_variance
            inverse = 1.0 / w.sqrt(variance + epsilon)
            scale = w.load_as(narrow, weight, channel) * inverse
            w.store_as(narrow, scale, affine, channel)
            w.store_as(narrow, w.load_as(narrow, bias, channel) - mean * scale, affine, second_row)
            w.store_as(narrow, mean, affine, third_row)
            centre_error = mean - w.load_as(narrow, affine, third_row)  # by rounding
            for row, value in enumerate((mean, centre_error, inverse, scale)):
                w.store(value, kept, channels * row + channel)

    return compile_kernel(write, _float64(dtype), lanes=1)


@cache
def batchnorm_gradients(by_batch: bool, dtype: DType) -> int:
    """The gradients of a normalisation's weight and bias, and two numbers for `batchnorm_backward`.

    Source: Ioffe and Szegedy 2015, arxiv.org/abs/1502.03167, section 3.

    Arguments: C; threads; numbers; per model: sums of `backward`; the four rows that `batchnorm_affine` kept;
    the rows linear and constant (2, C), which are written; gradients of weight and bias (C,), which are
    written.
    """

    def write(w: Writer) -> None:
        channels, threads, numbers = w.argument(), w.argument(), w.argument()
        sums, kept, through, weight_gradient, bias_gradient = (w.per_model_ptr() for _ in range(5))
        values, narrow = w.load(numbers), numpy_dtype(dtype)
        with w.parallel_for(channels) as (channel,):
            second_row = channels + channel
            mean, centre_error, inverse, scale = (w.load(kept, channels * row + channel) for row in range(4))
            bias = _sum_of(w, sums, threads, channels * 2, channel)
            product = _sum_of(w, sums, threads, channels * 2, second_row)
            weight = (product - centre_error * bias) * inverse
            linear = constant = w.vector(0.0)
            if by_batch:  # mean and variance depend on the maps
                factor = scale / values
                linear = -(factor * inverse * weight)
                constant = -(factor * bias) - mean * linear
            w.store_as(narrow, linear, through, channel)
            w.store_as(narrow, constant, through, second_row)
            w.store_as(narrow, weight, weight_gradient, channel)
            w.store_as(narrow, bias, bias_gradient, channel)

    return compile_kernel(write, _float64(dtype), lanes=1)
