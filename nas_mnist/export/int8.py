"""An int8 network in integers alone: its numbers, and a run of it that equals the C export bit for bit.

Weights are symmetric int8 with one scale a channel, outputs asymmetric int8 with one scale and zero point
(Jacob et al. 2018, arxiv.org/abs/1712.05877). In between a value is an int16 with ``exponent`` fractional
bits: activations and additions are computed there and rounded once. A real factor is an int16 multiplier and
a shift to the right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.layers import IMAGE
from ..models.program import GATE_TABLES, Call, Memory, last_reads

INT8, INT16 = (-128, 127), (-32768, 32767)
GATE_LIMIT = 8  # the table of a gate covers arguments from -8 to 8
GATE_EXPONENTS = 4, 12  # fractional bits that the arithmetic of the gates allows
MAX_EXPONENT = 24


class Factor(NamedTuple):
    """``value * multiplier / 2**shift``, rounded to the nearest."""

    multiplier: int  # int16
    shift: int  # 1 to 62

    @classmethod
    def of(cls, real: float) -> Factor:
        """The nearest factor to a real number."""
        fraction, exponent = math.frexp(real)
        shift = 15 - exponent
        if shift > 46:  # the product of an int32 would vanish
            return cls(0, 1)
        if shift < 1:
            return cls(max(INT16[0], min(INT16[1], round(real * 2))), 1)
        multiplier = round(fraction * 2**15)
        if abs(multiplier) == 2**15:
            multiplier = multiplier // 2 if shift > 1 else int(math.copysign(INT16[1], multiplier))
            shift = max(shift - 1, 1)
        return cls(multiplier, shift)


NO_FACTOR = Factor(0, 1)


@dataclass(frozen=True)
class Quantised:
    """The scale and zero point of an output: ``real = scale * (int8 - zero)``."""

    scale: float
    zero: int

    @classmethod
    def of(cls, low: float, high: float) -> Quantised:
        """For values from ``low`` to ``high``; zero itself has a code."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max(high - low, 1e-8) / 255
        return cls(scale, max(INT8[0], min(INT8[1], round(INT8[0] - low / scale))))

    def round(self, maps: Tensor) -> Tensor:
        """Real values as the nearest code's."""
        codes = torch.clamp(torch.round(maps / self.scale) + self.zero, *INT8)
        return (codes - self.zero) * self.scale


@dataclass(frozen=True)
class ChannelTable:
    """A factor and a bias (int16) for every channel."""

    multipliers: tuple[int, ...]
    shifts: tuple[int, ...]
    biases: tuple[int, ...]

    @classmethod
    def of(cls, factors: Sequence[float], biases: Sequence[float], unit: float) -> ChannelTable:
        """Real factors and biases; the result is in units of ``unit``."""
        found = [Factor.of(factor / unit) for factor in factors]
        rounded = (max(INT16[0], min(INT16[1], round(bias / unit))) for bias in biases)
        return cls(tuple(one.multiplier for one in found), tuple(one.shift for one in found), tuple(rounded))


@dataclass(frozen=True)
class Int8Call:
    """The numbers of one call."""

    call: Call
    zero: int  # of the input
    output: Quantised
    exponent: int = 0
    weights: np.ndarray | None = None  # int8 (out, in / groups, height, width); shared ones are one array
    table: ChannelTable | None = None
    after: ChannelTable | None = None
    added: Factor = NO_FACTOR  # of the output that is added
    added_zero: int = 0
    out: Factor = NO_FACTOR


@dataclass(frozen=True)
class Int8Network:
    """Everything that the C export writes."""

    calls: tuple[Int8Call, ...]
    memory: Memory
    flash: int  # bytes

    @property
    def gates(self) -> list[str]:
        """The activations that need a table."""
        used = {name for one in self.calls for name in (one.call.activation, one.call.last_activation)}
        return [name for name in GATE_TABLES if name in used]

    def scores(self, images: Tensor) -> Tensor:
        """Class scores (N, classes) int64 of uint8 images (N, C, H, W), in units of ``2**-exponent``."""
        made = {IMAGE: images.long() - 128}
        last_read = last_reads([one.call for one in self.calls])
        for number, one in enumerate(self.calls):
            made[number] = _run(one, made)
            made = {read: maps for read, maps in made.items() if last_read.get(read, number + 1) > number}
        return made[len(self.calls) - 1]


def gate_table(name: str) -> list[int]:
    """257 values (0 to 32,768) of ``activation(x) / x`` at x = -8, -8 + 1/16, ..., 8."""
    xs = [-GATE_LIMIT + step / 16 for step in range(257)]
    if name == "SiLU":
        return [round(32768 / (1 + math.exp(-x))) for x in xs]
    return [round(32768 * (1 + math.erf(x / math.sqrt(2))) / 2) for x in xs]


def _run(one: Int8Call, made: dict[int, Tensor]) -> Tensor:
    call, layer = one.call, one.call.layer
    source = made[call.source]
    if layer.kind == "MaxPool2d":
        return F.max_pool2d(source.double(), layer.kernel, layer.stride).long()
    centred = source - one.zero
    if layer.kind == "AvgPool2d":
        pooled = F.avg_pool2d(centred.double(), layer.kernel, layer.stride, divisor_override=1)
        return _store(pooled.round().long(), one)
    assert one.table is not None
    sums = _convolve(one, centred)
    if call.averaged:
        sums = sums.sum((2, 3), keepdim=True)
    maps = _activate(_per_channel(sums, one.table), call.activation, one.exponent)
    if one.after is not None:
        maps = _per_channel(maps, one.after)
    if call.other is not None:
        added = _scale(made[call.other] - one.added_zero, one.added.multiplier, one.added.shift)
        maps = (maps + added).clamp(*INT16)
    maps = _activate(maps, call.last_activation, one.exponent)
    if call.averaged:
        return maps.flatten(1)
    return _store(maps, one)


def _store(values: Tensor, one: Int8Call) -> Tensor:
    """Values as codes of the output."""
    return (_scale(values, one.out.multiplier, one.out.shift) + one.output.zero).clamp(*INT8)


def _convolve(one: Int8Call, centred: Tensor) -> Tensor:
    """The exact sums of products; floats hold integers up to 2**24 (float32) or 2**53 (float64)."""
    layer, weights = one.call.layer, torch.from_numpy(one.weights)
    largest = 255 * int(weights.abs().long().sum((1, 2, 3)).max())
    dtype = torch.float32 if largest < 1 << 24 else torch.float64
    sums = F.conv2d(
        centred.to(dtype), weights.to(dtype), None, layer.stride, layer.padding, groups=layer.groups
    )
    return sums.long()


def _scale(values: Tensor, multiplier: Tensor | int, shift: Tensor | int) -> Tensor:
    half = torch.as_tensor(1) << (torch.as_tensor(shift) - 1)
    return (values * multiplier + half) >> shift


def _per_channel(values: Tensor, table: ChannelTable) -> Tensor:
    multipliers, shifts, biases = (
        torch.tensor(numbers).view(-1, 1, 1) for numbers in (table.multipliers, table.shifts, table.biases)
    )
    return (_scale(values, multipliers, shifts) + biases).clamp(*INT16)


def _activate(values: Tensor, name: str, exponent: int) -> Tensor:
    """An activation of int16 values with ``exponent`` fractional bits."""
    if name == "ReLU":
        return values.clamp(min=0)
    if name == "LeakyReLU":
        return torch.where(values < 0, (values * 10486 + (1 << 19)) >> 20, values)  # 0.01
    if name == "Hardswish":
        gate = (values + (3 << exponent)).clamp(0, 6 << exponent)
        sixth = (((values * gate) >> exponent) * 10923 + (1 << 15)) >> 16
        return sixth.clamp(*INT16)
    if name in GATE_TABLES:
        table, fine = torch.tensor(gate_table(name)), exponent - 4  # 16 entries a unit
        place = (values + (GATE_LIMIT << exponent)).clamp(0, (2 * GATE_LIMIT << exponent) - 1)
        entry, rest = place >> fine, place & ((1 << fine) - 1)
        gate = table[entry] + (((table[entry + 1] - table[entry]) * rest) >> fine)
        return (values * gate + (1 << 14)) >> 15
    return values
