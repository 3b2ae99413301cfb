"""What runs between the convolutions on a CPU: loops that numba compiles to vector instructions.

Everything is a numpy array. Maps are (N, H, W * C): an image's row is one long row of numbers in which the
channels of a pixel lie side by side, so that loops are long whatever the number of channels is. They are
uint16 (the bits of bfloat16 numbers), float32 or float64. All else, and all computing, is float32 (float64
for maps of float64). What belongs to a channel is repeated along a row: (W * C,).

A chain of layers after a convolution is ``y = act(x * factor + shift)``, or ``y = act(x) * factor + shift``
where the normalisation comes ``after`` the activation; then channel dropout, then pooling by two. All
activations that are offered here have one form (`Gate`): ``act(t) = t * clip(slope * t + offset, floor, 1)``.
The backward passes read x alone and compute the rest again: arithmetic is nearly free, and reading and
writing maps is what takes time.

Arguments that come again and again: ``keep`` (N, C), what dropout multiplies with, or (0, C) for none;
``affine`` (2, W * C), factor and shift; ``gate`` (4,), slope, offset, floor and 1; ``pool``, one of three
constants below.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import binding, ir
from numba import extending, njit, prange, types

NO_POOL, MAX_POOL, AVERAGE_POOL = 0, 1, 2
_STEP = 1e30  # a slope that makes a step of the gate
_VECTOR = 8  # numbers that `_copy_vector` copies; what is too much is overwritten, or goes into padding

# Sums in any order, and multiplications fused with additions; infinities and NaNs stay what they are.
# Compiled code is kept beside this file, and made anew when this file changes.
_compiled = njit(cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
# Numba takes the OpenMP library that torch has loaded, so that both use the same threads.
_in_parallel = njit(cache=True, parallel=True)
_intrinsic: Any = extending.intrinsic
_overload: Any = extending.overload


class Gate(NamedTuple):
    """An activation ``t * clip(slope * t + offset, floor, 1)``."""

    slope: float
    offset: float
    floor: float


GATES = {  # by the class in torch.nn
    "Identity": Gate(0.0, 1.0, 1.0),
    "ReLU": Gate(_STEP, 0.0, 0.0),
    "LeakyReLU": Gate(_STEP, 0.0, 0.01),
    "Hardswish": Gate(1 / 6, 0.5, 0.0),
}


@_intrinsic
def _widened(_: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = builder.zext(arguments[0], ir.IntType(32))
        return builder.bitcast(builder.shl(wide, ir.Constant(ir.IntType(32), 16)), ir.FloatType())

    return types.float32(types.uint16), generate


class _BFloat16(ir.Type):
    """LLVM's type, for which llvmlite has no name."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat16)

    def __hash__(self) -> int:
        return hash(_BFloat16)


def _rounded_by_hardware(_: Any, number: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.fptrunc(arguments[0], _BFloat16()), ir.IntType(16))

    return types.uint16(types.float32), generate


def _rounded_by_hand(_: Any, number: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        bits = builder.bitcast(arguments[0], word)
        above = builder.lshr(bits, ir.Constant(word, 16))
        odd = builder.and_(above, ir.Constant(word, 1))  # ties go to even
        nearest = builder.add(builder.add(bits, ir.Constant(word, 0x7FFF)), odd)
        quiet = builder.or_(above, ir.Constant(word, 0x40))
        not_a_number = builder.fcmp_unordered("uno", arguments[0], arguments[0])
        rounded = builder.select(not_a_number, quiet, builder.lshr(nearest, ir.Constant(word, 16)))
        return builder.trunc(rounded, ir.IntType(16))

    return types.uint16(types.float32), generate


# Without such an instruction LLVM calls a function that is in no library of ours.
ROUNDS_IN_HARDWARE = bool(binding.get_host_cpu_features().get("avx512bf16"))
_rounded: Any = _intrinsic(_rounded_by_hardware if ROUNDS_IN_HARDWARE else _rounded_by_hand)


def _load(number: Any) -> Any:
    """A map's number as float32 or float64."""


def _store(maps: Any, image: Any, line: Any, i: Any, number: Any) -> Any:
    """Put a float32 or float64 into maps; as bfloat16 it is rounded to the nearest, ties to even."""


@_overload(_load, inline="always")
def _load_as(number: Any) -> Any:
    def exact(number: Any) -> Any:
        return number

    def widened(number: Any) -> Any:
        return _widened(number)

    return widened if number == types.uint16 else exact


@_overload(_store, inline="always")
def _store_as(maps: Any, image: Any, line: Any, i: Any, number: Any) -> Any:
    def exact(maps: Any, image: Any, line: Any, i: Any, number: Any) -> None:
        maps[image, line, i] = number

    def rounded(maps: Any, image: Any, line: Any, i: Any, number: Any) -> None:
        maps[image, line, i] = _rounded(number)

    return rounded if maps.dtype == types.uint16 else exact


@_intrinsic
def _copy_vector(_: Any, target: Any, at: Any, source: Any, start: Any) -> Any:
    """Copy `_VECTOR` numbers, without the checks that an index of numpy's brings."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.VectorType(context.get_data_type(target.dtype), _VECTOR).as_pointer()
        to_array, to_index, from_array, from_index = arguments
        places = []
        for kind, array, index in ((target, to_array, to_index), (source, from_array, from_index)):
            data = context.make_array(kind)(context, builder, array).data
            places.append(builder.bitcast(builder.gep(data, [index]), vector))
        builder.store(builder.load(places[1], align=4), places[0], align=4)
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp), generate


@_compiled
def sums(x: Any, gate: Any, after: bool, total: Any) -> None:
    """Add to ``total`` (2, W * C), float64, the sums of x and x ** 2; of act(x) where ``after``."""
    slope, offset, floor, one = gate[0], gate[1], gate[2], gate[3]
    count, height, width = x.shape
    first, second = np.full(width, one), np.full(width, one)
    for image in range(count):
        first[:] = 0
        second[:] = 0
        for line in range(height):
            if after:
                for i in range(width):
                    t = _load(x[image, line, i])
                    value = t * min(max(slope * t + offset, floor), one)
                    first[i] += value
                    second[i] += value * value
            else:
                for i in range(width):
                    value = _load(x[image, line, i])
                    first[i] += value
                    second[i] += value * value
        for i in range(width):
            total[0, i] += first[i]
            total[1, i] += second[i]


@_compiled
def forward(x: Any, keep: Any, y: Any, affine: Any, after: bool, gate: Any, pool: int, channels: int) -> None:
    """Write y (N, H, W * C), halved where it is pooled, an odd edge dropped."""
    count, height, size = y.shape
    upper, lower, left, right, mask = _rows(x.shape[2], gate)
    for image in range(count):
        _repeat(keep, image, mask)
        for line in range(height):
            if pool:
                _values(x, image, 2 * line, affine, after, gate, upper)
                _values(x, image, 2 * line + 1, affine, after, gate, lower)
                _pool(upper, lower, left, right, pool, size, channels)
            else:
                _values(x, image, line, affine, after, gate, left)
            if len(keep):
                for i in range(size):
                    left[i] *= mask[i]
            for i in range(size):
                _store(y, image, line, i, left[i])


@_compiled
def backward(
    x: Any, keep: Any, gradient: Any, into: Any, affine: Any, after: bool, gate: Any, pool: int,
    channels: int, total: Any,
) -> None:  # fmt: skip
    """The way back to the normalisation: write the gradient of its output into ``into`` (N, H, W * C).

    ``gradient`` is that of y. Adds to ``total`` (2, W * C), float64, the sums of what is written, and
    of what is written times the normalisation's input: x, or act(x) where it comes ``after`` the
    activation. Where there is no normalisation, ``into`` becomes the gradient of x.
    """
    count, height, width = x.shape
    size = gradient.shape[2]
    upper, lower, best, left, right = _rows(width, gate)
    arrived, mask, first, second, _ = _rows(width, gate)
    for image in range(count):
        _repeat(keep, image, mask)
        first[:] = 0
        second[:] = 0
        for line in range(0, height, 2 if pool else 1):
            at = line // 2 if pool else line
            if at == gradient.shape[1]:  # an odd last line, which pooling drops
                upper[:] = 0
            elif pool:
                _read(gradient, image, at, len(keep) > 0, mask, arrived)
                if pool == MAX_POOL:
                    _values(x, image, line, affine, after, gate, upper)
                    _values(x, image, line + 1, affine, after, gate, lower)
                    _to_the_largest(arrived, upper, lower, best, left, right, width, size, channels)
                else:
                    _to_all(arrived, upper, lower, width, size, channels)
            else:
                _read(gradient, image, at, len(keep) > 0, mask, upper)
            _to_norm(x, image, line, upper, into, affine, after, gate, first, second)
            if pool and line + 1 < height:
                _to_norm(x, image, line + 1, lower, into, affine, after, gate, first, second)
        for i in range(width):
            total[0, i] += first[i]
            total[1, i] += second[i]


@_compiled
def backward_norm(x: Any, into: Any, affine: Any, after: bool, gate: Any, through: Any) -> None:
    """The rest of the way, in place: from what `backward` wrote to the gradient of x.

    ``through`` (2, W * C): the factor of the normalisation's input and the constant that the gradient
    through mean and variance adds.
    """
    slope, offset, floor, one = gate[0], gate[1], gate[2], gate[3]
    zero = one - one
    count, height, width = x.shape
    for image in range(count):
        for line in range(height):
            if after:
                for i in range(width):
                    t = _load(x[image, line, i])
                    raw = slope * t + offset
                    opening = min(max(raw, floor), one)
                    inside = slope * t if (floor < raw) & (raw < one) else zero
                    d = _load(into[image, line, i]) * affine[0, i]
                    d += t * opening * through[0, i] + through[1, i]
                    _store(into, image, line, i, d * (opening + inside))
            else:
                for i in range(width):
                    d = _load(into[image, line, i]) * affine[0, i]
                    d += _load(x[image, line, i]) * through[0, i] + through[1, i]
                    _store(into, image, line, i, d)


@_compiled
def _rows(width: int, gate: Any) -> Any:
    """Five rows to work on."""
    one = gate[3]
    size = width + _VECTOR
    return np.full(size, one), np.full(size, one), np.full(size, one), np.full(size, one), np.full(size, one)


@_compiled
def _repeat(keep: Any, image: int, mask: Any) -> None:
    """Repeat what dropout keeps of an image's channels along a row."""
    if len(keep):
        channels = keep.shape[1]
        for left in range(0, len(mask) - _VECTOR, channels):
            for channel in range(channels):
                mask[left + channel] = keep[image, channel]


@_compiled
def _values(x: Any, image: int, line: int, affine: Any, after: bool, gate: Any, values: Any) -> None:
    """One row of y before dropout and pooling."""
    slope, offset, floor, one = gate[0], gate[1], gate[2], gate[3]
    if after:
        for i in range(x.shape[2]):
            t = _load(x[image, line, i])
            values[i] = t * min(max(slope * t + offset, floor), one) * affine[0, i] + affine[1, i]
    else:
        for i in range(x.shape[2]):
            t = _load(x[image, line, i]) * affine[0, i] + affine[1, i]
            values[i] = t * min(max(slope * t + offset, floor), one)


@_compiled
def _to_norm(
    x: Any,
    image: int,
    line: int,
    d: Any,
    into: Any,
    affine: Any,
    after: bool,
    gate: Any,
    first: Any,
    second: Any,
) -> None:
    """One row's way back through the activation, where that comes after the normalisation."""
    slope, offset, floor, one = gate[0], gate[1], gate[2], gate[3]
    zero = one - one
    if after:
        for i in range(x.shape[2]):
            t = _load(x[image, line, i])
            first[i] += d[i]
            second[i] += d[i] * t * min(max(slope * t + offset, floor), one)
            _store(into, image, line, i, d[i])
    else:
        for i in range(x.shape[2]):
            value = _load(x[image, line, i])
            t = value * affine[0, i] + affine[1, i]
            raw = slope * t + offset
            inside = slope * t if (floor < raw) & (raw < one) else zero
            result = d[i] * (min(max(raw, floor), one) + inside)
            first[i] += result
            second[i] += result * value
            _store(into, image, line, i, result)


@_compiled
def _pool(upper: Any, lower: Any, left: Any, right: Any, pool: int, size: int, channels: int) -> None:
    """Pool two rows by two: the ``size`` results come into ``left``."""
    if pool == MAX_POOL:
        for i in range(len(upper)):
            upper[i] = max(upper[i], lower[i])
        _split(upper, left, right, size, channels)
        for i in range(size):
            left[i] = max(left[i], right[i])
    else:
        for i in range(len(upper)):
            upper[i] += lower[i]
        _split(upper, left, right, size, channels)
        for i in range(size):
            left[i] = (left[i] + right[i]) * np.float32(0.25)


@_compiled
def _to_the_largest(
    d: Any, upper: Any, lower: Any, best: Any, left: Any, right: Any, width: int, size: int, channels: int
) -> None:
    """Replace two rows that were max-pooled by what each value gets of the gradient ``d`` of the maxima.

    The largest of four gets everything; of equal ones, one of them.
    """
    zero = d[0] - d[0]
    for i in range(width):
        best[i] = max(upper[i], lower[i])
    _split(best, left, right, size, channels)
    for i in range(size):
        first = left[i] >= right[i]
        left[i] = d[i] if first else zero
        right[i] = zero if first else d[i]
    _join(left, right, best, width, size, channels)
    for i in range(width):
        above = upper[i] >= lower[i]
        upper[i] = best[i] if above else zero
        lower[i] = zero if above else best[i]


@_compiled
def _to_all(d: Any, upper: Any, lower: Any, width: int, size: int, channels: int) -> None:
    """Fill two rows that were average-pooled with what each value gets of the gradient ``d``."""
    for i in range(size):
        d[i] *= np.float32(0.25)
    _join(d, d, upper, width, size, channels)
    for i in range(width):
        lower[i] = upper[i]


@_compiled
def _split(row: Any, left: Any, right: Any, size: int, channels: int) -> None:
    """The left and the right ones of a row's pairs of pixels, ``size`` numbers of each."""
    for start in range(0, size, channels):
        for at in range(start, start + channels, _VECTOR):
            _copy_vector(left, at, row, start + at)
            _copy_vector(right, at, row, start + at + channels)


@_compiled
def _join(left: Any, right: Any, row: Any, width: int, size: int, channels: int) -> None:
    """The reverse of `_split`; an odd pixel at the end of the row gets 0."""
    for start in range(0, size, channels):
        for at in range(start, start + channels, _VECTOR):
            _copy_vector(row, start + at, left, at)
        for at in range(start, start + channels, _VECTOR):
            _copy_vector(row, start + at + channels, right, at)
    for i in range(2 * size, width):
        row[i] = 0


@_compiled
def _read(gradient: Any, image: int, line: int, masked: bool, mask: Any, row: Any) -> None:
    """A row of the gradient behind dropout as that before it."""
    for i in range(gradient.shape[2]):
        row[i] = _load(gradient[image, line, i])
    if masked:
        for i in range(gradient.shape[2]):
            row[i] *= mask[i]


@_in_parallel
def _sums_in_parts(parts: int, x: Any, gate: Any, after: bool, total: Any) -> None:
    for part in prange(parts):
        a, b = part * len(x) // parts, (part + 1) * len(x) // parts
        sums(x[a:b], gate, after, total[part])


@_in_parallel
def _forward_in_parts(
    parts: int, x: Any, keep: Any, y: Any, affine: Any, after: bool, gate: Any, pool: int, channels: int
) -> None:
    for part in prange(parts):
        a, b = part * len(x) // parts, (part + 1) * len(x) // parts
        forward(x[a:b], keep[a:b], y[a:b], affine, after, gate, pool, channels)


@_in_parallel
def _backward_in_parts(
    parts: int, x: Any, keep: Any, gradient: Any, into: Any, affine: Any, after: bool, gate: Any, pool: int,
    channels: int, total: Any,
) -> None:  # fmt: skip
    for part in prange(parts):
        a, b = part * len(x) // parts, (part + 1) * len(x) // parts
        backward(
            x[a:b], keep[a:b], gradient[a:b], into[a:b], affine, after, gate, pool, channels, total[part]
        )


@_in_parallel
def _backward_norm_in_parts(
    parts: int, x: Any, into: Any, affine: Any, after: bool, gate: Any, through: Any
) -> None:
    for part in prange(parts):
        a, b = part * len(x) // parts, (part + 1) * len(x) // parts
        backward_norm(x[a:b], into[a:b], affine, after, gate, through)


IN_PARTS: dict[
    Any, Any
] = {  # the same with the images shared by ``parts`` threads, each with its own part of ``total``
    sums: _sums_in_parts,
    forward: _forward_in_parts,
    backward: _backward_in_parts,
    backward_norm: _backward_norm_in_parts,
}
