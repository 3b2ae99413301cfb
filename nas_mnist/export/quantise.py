"""From a folded network to int8: ranges from training images, a short fine-tuning, the integers."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from math import prod

import numpy as np
import torch
from torch import Tensor

from ..models.layers import IMAGE
from ..models.program import GATE_TABLES, flash_bytes, plan_memory
from .folded import FoldedNetwork, equalise
from .int8 import (
    GATE_EXPONENTS,
    MAX_EXPONENT,
    ChannelTable,
    Factor,
    Int8Call,
    Int8Network,
    Quantised,
)

CALIBRATION_IMAGES = 512
_CLIPS = [1 - step / 40 for step in range(20)]  # shares of the range that are tried
_HEADROOM = 1.5  # values beyond those of the calibration images that an int16 still holds
_GATED = {"Hardswish", *GATE_TABLES}


class Ranges:
    """The quantisation of the image and of every output, and the largest value inside each call."""

    def __init__(self, network: FoldedNetwork, pixels: Tensor) -> None:
        """Measure them on ``pixels`` (N, C, H, W), 0 to 255."""
        self.network = network
        self.outputs: dict[int, Quantised] = {}  # by call
        self.largest: dict[int, float] = {}
        self._measure(pixels)

    @torch.no_grad()
    def _measure(self, pixels: Tensor) -> None:
        network = self.network
        normalizer = network.normalizer
        self.outputs[IMAGE] = Quantised(1 / normalizer.std, max(-128, min(127, round(normalizer.mean) - 128)))
        made = {IMAGE: normalizer(pixels)}
        for number, call in enumerate(network.calls):
            values = network.run(number, made)
            made[number] = values[-1]
            if call.layer.kind == "MaxPool2d":
                self.outputs[number] = self.outputs[call.source]
                continue
            self.outputs[number] = _best_range(values[-1])
            if call.layer.kind == "Conv2d":
                own = network.of(number)
                seen = [own.bias, *values]
                self.largest[number] = max(float(value.abs().max()) for value in seen)


def _best_range(maps: Tensor) -> Quantised:
    """The range with the least mean squared error."""
    low, high = float(maps.min()), float(maps.max())
    sample = maps.flatten()[:: max(maps.numel() // 50_000, 1)]
    tried = [Quantised.of(low * clip, high * clip) for clip in _CLIPS] + [
        Quantised.of(low, high * clip) for clip in _CLIPS
    ]
    return min(tried, key=lambda one: float(((one.round(sample) - sample) ** 2).mean()))


def weight_scales(weight: Tensor) -> Tensor:
    """The scale of every output channel (out, 1, 1, 1)."""
    return weight.detach().abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12) / 127


@torch.no_grad()
def to_integers(network: FoldedNetwork, ranges: Ranges) -> Int8Network:
    """The integers of a network."""
    integers = {
        owner: _codes(weight) for owner, weight in ((int(key), one) for key, one in network.weights.items())
    }
    calls = []
    for number, call in enumerate(network.calls):
        source, output = ranges.outputs[call.source], ranges.outputs[number]
        one = Int8Call(call, source.zero, output)
        if call.layer.kind == "AvgPool2d":
            one = replace(one, out=Factor.of(source.scale / output.scale / prod(call.layer.kernel)))
        elif call.layer.kind == "Conv2d":
            one = _convolution(network, number, one, ranges)
            one = replace(one, weights=integers[network.owners[number]])
        calls.append(one)
    memory = plan_memory(network.calls, prod(network.architecture.input_shape))
    return Int8Network(tuple(calls), memory, flash_bytes(network.calls))


def _codes(weight: Tensor) -> np.ndarray:
    """The int8 weights."""
    codes: np.ndarray = torch.round(weight / weight_scales(weight)).clamp(-127, 127).to(torch.int8).numpy()
    return codes


def _convolution(network: FoldedNetwork, number: int, one: Int8Call, ranges: Ranges) -> Int8Call:
    """The tables of a convolution."""
    call, own = one.call, network.of(number)
    source = ranges.outputs[call.source]
    exponent = _exponent(ranges.largest[number], {call.activation, call.last_activation})
    unit = 2.0**-exponent
    weight = network.weight(number)
    scales = weight_scales(weight).flatten() * own.scale * source.scale
    bias: Tensor = own.bias
    if call.source == IMAGE:  # the mean of the pixels is no whole number
        normalizer = network.normalizer
        offset = (source.zero + 128 - normalizer.mean) / normalizer.std
        bias = bias + offset * own.scale * weight.sum((1, 2, 3))
    positions = prod(call.layer.out_shape[1:]) if call.averaged else 1
    after = None
    if own.after_scale is not None and own.after_bias is not None:
        after = ChannelTable.of((own.after_scale * unit).tolist(), own.after_bias.tolist(), unit)
    added, added_zero = Factor(0, 1), 0
    if call.other is not None:
        other = ranges.outputs[call.other]
        added, added_zero = Factor.of(other.scale / unit), other.zero
    return replace(
        one,
        exponent=exponent,
        table=ChannelTable.of((scales / positions).tolist(), bias.tolist(), unit),
        after=after,
        added=added,
        added_zero=added_zero,
        out=Factor.of(unit / one.output.scale),
    )


def _exponent(largest: float, activations: set[str]) -> int:
    """The most fractional bits with which an int16 holds the values of a call."""
    bits = math.floor(math.log2(32767 / max(_HEADROOM * largest, 1e-9)))
    low, high = GATE_EXPONENTS if activations & _GATED else (0, MAX_EXPONENT)
    return max(low, min(high, bits))


def quantise(network: FoldedNetwork, images: Tensor) -> Int8Network:
    """The int8 network of a folded one, calibrated on training images (N, C, H, W) uint8."""
    network = copy.deepcopy(network)
    pixels = sample(images, CALIBRATION_IMAGES).float()
    equalise(network, pixels)
    return to_integers(network, Ranges(network, pixels))


def sample(images: Tensor, count: int) -> Tensor:
    """At most ``count`` of the images, always the same."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order[:count]]
