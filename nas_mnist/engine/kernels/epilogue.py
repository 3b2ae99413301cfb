"""The layers between two convolutions, as one chain that kernels compute pixel by pixel.

A chain is ``activation(y * scale + shift)``, or ``activation(y) * scale + shift`` where the normalisation
comes after the activation; then channel dropout, then 2x2 pooling.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np

from .values import Index, Int, Vector
from .writer import MapPointer, Writer

NO_POOL, MAX_POOL, AVERAGE_POOL = 0, 1, 2


class Gate(NamedTuple):
    """An activation ``t * clip(slope * t + offset, floor, 1)``; ReLU has instructions of its own."""

    slope: float
    offset: float
    floor: float


GATES = {  # by the class in torch.nn
    "ReLU": Gate(np.inf, 0.0, 0.0),
    "LeakyReLU": Gate(1e30, 0.0, 0.01),
    "Hardswish": Gate(1 / 6, 0.5, 0.0),
}


@dataclass(frozen=True)
class Epilogue:
    """The layers between a convolution's output and its next reader."""

    norm: bool = False
    norm_after: bool = False  # the normalisation comes after the activation
    activation: str | None = None  # the class in torch.nn
    dropout: bool = False
    pool: int = NO_POOL

    @property
    def is_identity(self) -> bool:
        return self == IDENTITY


IDENTITY = Epilogue()


class PointwiseChain:
    """An `Epilogue` in a kernel, for one channel at a time.

    Its arguments: per model the rows scale, shift and centre (3, C); dropout's factors (tiles, C, lanes); C.
    """

    def __init__(self, w: Writer, epilogue: Epilogue) -> None:
        self.w, self.epilogue = w, epilogue
        self.affine, self.dropout, self.channels = w.per_model_ptr(), w.argument(), w.argument()
        self.gate = None if epilogue.activation is None else GATES[epilogue.activation]

    def begin(self, channel: Index) -> None:
        """Load the numbers of a channel."""
        w = self.w
        if self.epilogue.norm:
            self.scale, self.shift, self.centre = (
                w.load_splat(self.affine, self.channels * row + channel) for row in range(3)
            )
        if self.epilogue.dropout:
            self.kept = w.load(self.dropout, (w.batch_tile * self.channels + channel) * w.lanes)

    def normalise(self, value: Vector) -> Vector:
        return value * self.scale + self.shift if self.epilogue.norm else value

    def activate(self, t: Vector) -> Vector:
        if self.gate is None:
            return t
        if self.gate.slope == np.inf:
            return self.w.select(t < 0.0, 0.0, t)  # NaN stays
        return t * self._opening(t)[1]

    def activation_gradient(self, t: Vector, d: Vector) -> Vector:
        """``d`` times the activation's derivative."""
        w = self.w
        if self.gate is None:
            return d
        if self.gate.slope == np.inf:
            return w.select(t > 0.0, d, 0.0)
        raw, opening = self._opening(t)
        inside = w.select(raw > self.gate.floor, t * self.gate.slope, 0.0)
        return d * (opening + w.select(raw < 1.0, inside, 0.0))

    def _opening(self, t: Vector) -> tuple[Vector, Vector]:
        """The gate before and after it is clipped."""
        assert self.gate is not None
        raw = t * self.gate.slope + self.gate.offset
        return raw, self.w.clip(raw, self.gate.floor, 1.0)

    def value(self, y: Vector) -> Vector:
        """The chain's output before dropout and pooling."""
        if self.epilogue.norm_after:
            return self.normalise(self.activate(y))
        return self.activate(self.normalise(y))

    def drop(self, value: Vector) -> Vector:
        return value * self.kept if self.epilogue.dropout else value

    def norm_input(self, y: Vector) -> Vector:
        """The numbers that the normalisation reads."""
        return self.activate(y) if self.epilogue.norm_after else y

    def norm_output_gradient(self, y: Vector, d: Vector) -> Vector:
        """The gradient of the normalisation's output, from that of the chain's output before dropout."""
        return d if self.epilogue.norm_after else self.activation_gradient(self.normalise(y), d)


def pool_window(maps: MapPointer, channel: Int, row: Int, pixel: Int) -> list[Index]:
    """The offsets of the four pixels that are pooled into one."""
    start = maps.at(channel, row * 2, pixel * 2)
    return [start + down * maps.row_stride + right * maps.pixel_stride for down in (0, 1) for right in (0, 1)]


def max_pool_gradients(w: Writer, values: list[Vector], d: Vector) -> list[Vector]:
    """The gradients of pooled values: all of ``d`` for the largest, of equal ones for the first."""
    largest, left, gradients = reduce(w.maximum, values), d, []
    for value in values:
        gradients.append(w.select(value.equals(largest), left, 0.0))
        left = w.select(value.equals(largest), 0.0, left)
    return gradients
