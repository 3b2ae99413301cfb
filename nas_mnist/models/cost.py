"""What a candidate costs, by arithmetic alone, and whether that fits the budget.

* parameters: the values that training changes, the same number as ``sum(p.numel() for p in parameters())``;
* multiply-adds (MACs): one for each weight and each position where it is applied, for one image;
  normalisation, activation, pooling and biases are not counted (the convention of fvcore and torch's
  flop counter, which reports twice this number);
* peak activation memory: the most bytes that live at one time while one image runs through the network
  with 4-byte values. Normalisation, activation and dropout work in place, as does the addition of a
  residual block, wherever nobody needs their input afterwards;
* receptive field: the height (= width, with square kernels) of the patch of the image that one value
  before the global average depends on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from .architecture import Architecture
from .layers import ELEMENTWISE, IMAGE, Layer

# What a search may look for: by the name of the aim, the cost that accuracy is weighed against.
AIMS = {"accuracy": None, "params": "n_params", "macs": "macs", "memory": "peak_memory"}
COST_NAMES = {"n_params": "parameters", "macs": "multiply-adds", "peak_memory": "bytes of peak memory"}
BYTES_PER_VALUE = 4  # float32
_IN_PLACE = ELEMENTWISE | {"Add"}


def weighed_against(objective: str | None) -> str | None:
    """The cost that accuracy is weighed against; None for accuracy alone, which studies store as None."""
    return AIMS[objective or "accuracy"]


@dataclass(frozen=True, slots=True)
class Cost:
    """The price of one candidate."""

    params: int
    macs: int  # for one image
    peak_memory: int  # bytes of activations, one image, float32
    receptive_field: int  # pixels


@dataclass(frozen=True, slots=True)
class Budget:
    """What a candidate may cost, all limits together; None: no limit."""

    max_params: int
    max_macs: int | None = None  # for one image
    max_memory: int | None = None  # bytes of activations, one image, float32

    @property
    def limits(self) -> dict[str, int]:
        """Those that there are, by what is limited."""
        limits = zip(COST_NAMES.values(), (self.max_params, self.max_macs, self.max_memory), strict=True)
        return {what: limit for what, limit in limits if limit is not None}

    def limited(self, cost: Cost) -> dict[str, int]:
        """What a candidate has of all that is limited."""
        has = dict(zip(COST_NAMES.values(), (cost.params, cost.macs, cost.peak_memory), strict=True))
        return {what: has[what] for what in self.limits}

    def excess(self, cost: Cost) -> dict[str, int]:
        """By how much a candidate is over each limit, by what is limited; 0 or less: it fits."""
        return {what: has - self.limits[what] for what, has in self.limited(cost).items()}

    def fits(self, cost: Cost) -> bool:
        """Whether a candidate is within every limit."""
        return all(excess <= 0 for excess in self.excess(cost).values())

    def share(self, share: float) -> Budget:
        """The same with this share of the parameters (0 to 1)."""
        return replace(self, max_params=int(share * self.max_params))

    def __str__(self) -> str:
        """The limits in words."""
        return ", ".join(f"{limit:,} {what}" for what, limit in self.limits.items())


def cost_of(architecture: Architecture) -> Cost:
    """The exact cost of an architecture, without building it."""
    layers = architecture.layers
    return Cost(
        params=sum(layer.params for layer in layers),
        macs=sum(layer.macs for layer in layers),
        peak_memory=_peak_memory(layers, prod(architecture.input_shape)),
        receptive_field=_receptive_field(layers),
    )


def _peak_memory(layers: Sequence[Layer], image_values: int) -> int:
    last_use = {source: position for position, layer in enumerate(layers) for source in layer.inputs}
    sizes = {IMAGE: image_values}
    live = peak = image_values
    for position, layer in enumerate(layers):
        channels, height, width = layer.out_shape
        size = sizes[position] = channels * height * width
        freed = 0
        for source in layer.inputs:
            if last_use[source] == position:
                freed += sizes[source]
        if not (freed and layer.kind in _IN_PLACE):
            peak = max(peak, live + size)
        live += size - freed
    return peak * BYTES_PER_VALUE


def _receptive_field(layers: Sequence[Layer]) -> int:
    seen = {IMAGE: (1, 1)}  # position -> pixels seen by one value, pixels between two neighbours
    widest = 1
    for position, layer in enumerate(layers):
        inputs = layer.inputs
        field, jump = seen[inputs[0]] if len(inputs) == 1 else max(seen[source] for source in inputs)
        kernel = max(layer.kernel)
        is_global = layer.kind == "AvgPool2d" and layer.out_shape[1:] == (1, 1)
        if (kernel > 1 or layer.stride > 1) and not is_global:
            field += (kernel - 1) * jump
            jump *= layer.stride
            widest = max(widest, field)
        seen[position] = (field, jump)
    return widest
