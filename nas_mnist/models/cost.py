"""Costs of an architecture by arithmetic alone, and the budget they are held against.

* parameters: trained values, equal to ``sum(p.numel() for p in network.parameters())``;
* multiply-adds (MACs): one for each weight and each position where it is applied, for one image.
  Normalisation, activation, pooling and biases are not counted. This is fvcore's convention; torch's flop
  counter reports twice this number;
* flash: bytes of all tables of the int8 network that ``export --to c`` writes: weights, scales, biases. The
  code comes on top;
* RAM: bytes of the static buffer of that program, the image included. The stack comes on top;
* peak activation memory: the most bytes that live at one time while one float32 image runs through the
  network. Normalisation, activation, dropout and the addition of a residual block work in place where
  their input is not read again;
* receptive field: the height of the image patch that one value before the global average depends on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from .architecture import Architecture
from .layers import ELEMENTWISE, IMAGE, Layer
from .program import flash_bytes, fuse, plan_memory

# Objectives of a search, and the cost that each minimises beside the accuracy.
OBJECTIVES = {"accuracy": None, "params": "n_params", "macs": "macs", "flash": "flash", "ram": "ram"}
OLD_OBJECTIVES = {"memory": "peak_memory"}  # of studies of earlier versions
COST_NAMES = {  # by the name of the cost, as studies store it
    "n_params": "parameters",
    "macs": "multiply-adds",
    "flash": "bytes of flash",
    "ram": "bytes of RAM",
    "peak_memory": "bytes of peak memory",
}
BYTES_PER_VALUE = 4  # float32
_IN_PLACE = ELEMENTWISE | {"Add"}


def cost_metric_of(objective: str | None) -> str | None:
    """The cost that an objective minimises beside the accuracy; None: accuracy alone, stored as None."""
    return (OBJECTIVES | OLD_OBJECTIVES)[objective or "accuracy"]


@dataclass(frozen=True, slots=True)
class Cost:
    """The costs of one candidate."""

    params: int
    macs: int  # for one image
    peak_memory: int  # bytes of activations, one image, float32
    receptive_field: int  # pixels
    flash: int  # bytes of the int8 tables
    ram: int  # bytes of the int8 buffer, one image


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits that a candidate must keep, all together; None: no limit."""

    max_params: int
    max_macs: int | None = None  # for one image
    max_flash: int | None = None  # bytes of the int8 tables
    max_ram: int | None = None  # bytes of the int8 buffer, one image
    max_memory: int | None = None  # bytes of activations, one image, float32; of earlier versions

    @property
    def limits(self) -> dict[str, int]:
        """The limits that are set, by the name of the cost."""
        limits = (self.max_params, self.max_macs, self.max_flash, self.max_ram, self.max_memory)
        named = zip(COST_NAMES.values(), limits, strict=True)
        return {name: limit for name, limit in named if limit is not None}

    def usage(self, cost: Cost) -> dict[str, int]:
        """The costs that have a limit, by name."""
        values = (cost.params, cost.macs, cost.flash, cost.ram, cost.peak_memory)
        costs = dict(zip(COST_NAMES.values(), values, strict=True))
        return {name: costs[name] for name in self.limits}

    def excess(self, cost: Cost) -> dict[str, int]:
        """Cost minus limit, by name; 0 or less fits."""
        return {name: value - self.limits[name] for name, value in self.usage(cost).items()}

    def fits(self, cost: Cost) -> bool:
        """Whether a candidate is within every limit."""
        return all(excess <= 0 for excess in self.excess(cost).values())

    def with_share(self, share: float) -> Budget:
        """The same budget with a share of the parameters (0 to 1)."""
        return replace(self, max_params=int(share * self.max_params))

    def with_max_macs(self, max_macs: int | None) -> Budget:
        """The same budget with at most ``max_macs`` multiply-adds; None: unchanged."""
        limits = [one for one in (self.max_macs, max_macs) if one is not None]
        return replace(self, max_macs=min(limits, default=None))

    def __str__(self) -> str:
        """The limits in words: ``20,000 parameters``."""
        return ", ".join(f"{limit:,} {name}" for name, limit in self.limits.items())


def cost_of(architecture: Architecture) -> Cost:
    """The exact cost of an architecture, without building it."""
    layers, calls = architecture.layers, fuse(architecture.layers)
    return Cost(
        params=sum(layer.params for layer in layers),
        macs=sum(layer.macs for layer in layers),
        peak_memory=_peak_memory(layers, prod(architecture.input_shape)),
        receptive_field=_receptive_field(layers),
        flash=flash_bytes(calls),
        ram=plan_memory(calls, prod(architecture.input_shape)).size,
    )


def _peak_memory(layers: Sequence[Layer], image_values: int) -> int:
    last_read = {source: position for position, layer in enumerate(layers) for source in layer.inputs}
    sizes = {IMAGE: image_values}  # by position: values of the output
    live = peak = image_values
    for position, layer in enumerate(layers):
        size = sizes[position] = prod(layer.out_shape)
        freed = sum(sizes[source] for source in layer.inputs if last_read[source] == position)
        if not (freed and layer.kind in _IN_PLACE):
            peak = max(peak, live + size)
        live += size - freed
    return peak * BYTES_PER_VALUE


def _receptive_field(layers: Sequence[Layer]) -> int:
    fields = {IMAGE: (1, 1)}  # by position: the field of one value, the distance of two neighbours; pixels
    largest = 1
    for position, layer in enumerate(layers):
        field, jump = max(fields[source] for source in layer.inputs)  # of a sum, the larger arm
        kernel = max(layer.kernel)
        if (kernel > 1 or layer.stride > 1) and not (layer.path == "head" and layer.kind == "AvgPool2d"):
            field += (kernel - 1) * jump
            jump *= layer.stride
            largest = max(largest, field)
        fields[position] = (field, jump)
    return largest
