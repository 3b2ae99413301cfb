"""Kernels over the few numbers of a layer: weights in another order, and a normalisation's numbers.

They run once, not for every batch tile, number by number. Those of a normalisation compute in float64;
numbers are ``narrow`` in the tensors of the network and in the rows scale, shift and centre, and float64 in
``sums`` (threads or blocks, 2, C) and ``numbers`` (4,): values per channel, the factor of an unbiased
variance, momentum and epsilon.
"""

from __future__ import annotations

import torch

from .compile import compiled
from .values import Index, Int, Vector
from .writer import Writer


def _sum_of(w: Writer, sums: Int, parts: Int, width: Int, place: Int) -> Vector:
    """The sum of one column of (parts, width)."""
    return w.sum_over(parts, lambda part: w.load(sums, part * width + place))


@compiled(lanes=1)
def gather(w: Writer) -> None:
    """``target[i] = source[order[i]]``.

    Arguments: source; target (N,); order (N,), int64; N.
    """
    source, target, order, count = (w.argument() for _ in range(4))
    with w.loop(count) as place:
        w.store(w.load(source, w.load_index(order, place)), target, place)


@compiled(lanes=1)
def scatter_sum(w: Writer, adds: bool) -> None:
    """``target[order[i]] = source[:, i].sum()``, or ``adds`` the sum to the target.

    Arguments: source (threads, N); target; order (N,), int64; N; threads.
    """
    source, target, order, count, threads = (w.argument() for _ in range(5))
    with w.loop(count) as place:
        total, at = _sum_of(w, source, threads, count, place), w.load_index(order, place)
        w.store(total + w.load(target, at) if adds else total, target, at)


@compiled(lanes=1)
def batchnorm_affine(w: Writer, by_batch: bool, narrow: torch.dtype) -> None:
    """A normalisation as ``x * scale + shift``.

    ``by_batch``: by the batch's mean and variance, which also update the running ones; else by the running
    ones.

    Arguments: C; threads; numbers; sums (per model) of `batch_stats`; per model: weight, bias, running mean
    and running variance (C,); the rows scale, shift and centre (3, C), which are written, after the sums'
    centre was read; and for `batchnorm_gradients` the rows mean, centre error, inverse deviation and scale
    (4, C), float64.
    """
    channels, threads, numbers, sums = w.argument(), w.argument(), w.argument(), w.per_model_ptr()
    weight, bias, running_mean, running_variance, affine, kept = (w.per_model_ptr() for _ in range(6))
    values, unbiased, momentum, epsilon = (w.load(numbers, place) for place in range(4))

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


@compiled(lanes=1)
def batchnorm_gradients(w: Writer, narrow: torch.dtype) -> None:
    """The gradients of a normalisation's weight and bias, and two numbers for `batchnorm_backward`.

    Source: Ioffe and Szegedy 2015, arxiv.org/abs/1502.03167, section 3.

    Arguments: C; threads; numbers; per model: sums of `backward`; the four rows that `batchnorm_affine` kept;
    the rows linear and constant (2, C), which are written; gradients of weight and bias (C,), which are
    written.
    """
    channels, threads, numbers = w.argument(), w.argument(), w.argument()
    sums, kept, through, weight_gradient, bias_gradient = (w.per_model_ptr() for _ in range(5))
    values = w.load(numbers)
    with w.parallel_for(channels) as (channel,):
        second_row = channels + channel
        mean, centre_error, inverse, scale = (w.load(kept, channels * row + channel) for row in range(4))
        bias = _sum_of(w, sums, threads, channels * 2, channel)
        product = _sum_of(w, sums, threads, channels * 2, second_row)
        weight = (product - centre_error * bias) * inverse
        factor = scale / values  # mean and variance depend on the maps
        linear = -(factor * inverse * weight)
        w.store_as(narrow, linear, through, channel)
        w.store_as(narrow, -(factor * bias) - mean * linear, through, second_row)
        w.store_as(narrow, weight, weight_gradient, channel)
        w.store_as(narrow, bias, bias_gradient, channel)
