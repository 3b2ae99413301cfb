"""The networks whose training is measured: two of the zoo, and three shapes of other kinds."""

from __future__ import annotations

from typing import Any

from ..models.architecture import Architecture
from ..models.zoo import load


def _conv(channels: int) -> dict[str, Any]:
    return {"kind": "conv", "channels": channels}


def _separable(channels: int, **fields: Any) -> dict[str, Any]:
    return {"kind": "separable", "channels": channels, **fields}


_POOL = {"kind": "pool"}
FROM_ZOO = ("reference", "mnist-1k")
BLOCKS = {  # by name
    "narrow": [_conv(4), _conv(8), _POOL, _conv(12), _conv(12), _POOL, _conv(12)],
    "separable": [
        *(_conv(16), _separable(32), _separable(32), _POOL),
        *(_separable(48), _separable(48), _separable(48), _POOL, _separable(64), _separable(64)),
    ],
    "strided": [
        *(_conv(8), _separable(24), _separable(40, stride=2), _separable(48, kernel=5)),
        *(_separable(64, kernel=5, stride=2), _separable(64)),
    ],
}


def benchmark_networks() -> dict[str, Architecture]:
    """The networks by name, in the order in which they are trained."""
    zoo = {name: load(name).architecture for name in FROM_ZOO}
    return zoo | {name: Architecture.make({"blocks": blocks}) for name, blocks in BLOCKS.items()}
