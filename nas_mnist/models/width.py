"""Widths that fill a budget: an architecture made as wide as it allows."""

from __future__ import annotations

from .architecture import Architecture, Block, Conv, Pool, Repeat, Residual, Separable
from .cost import Budget, cost_of

MAX_CHANNELS = 1024  # of an architecture's block
_HALVINGS = 14  # of the interval in which the largest factor lies: to within 1 in 10,000


def widest(architecture: Architecture, budget: Budget) -> Architecture:
    """The architecture with all widths multiplied by the largest number at which it fits the budget.

    Costs grow with that number, so it is found by halving an interval, counting exactly. Where even one
    channel everywhere is too much, that network is returned.
    """
    best = scaled(architecture, 0.0)
    if not budget.fits(cost_of(best)):
        return best
    low, high = 0.0, 1.0
    while high < MAX_CHANNELS and budget.fits(cost_of(candidate := scaled(architecture, high))):
        best, low, high = candidate, high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        candidate = scaled(architecture, middle)
        if budget.fits(cost_of(candidate)):
            best, low = candidate, middle
        else:
            high = middle
    return best


def scaled(architecture: Architecture, factor: float) -> Architecture:
    """The architecture with all widths multiplied by ``factor`` and rounded, each at least one channel."""
    blocks = tuple(_scaled(block, factor) for block in architecture.blocks)
    kept = {
        "input_shape": architecture.input_shape,
        "classes": architecture.classes,
        "head": architecture.head,
    }
    return Architecture.make({**kept, "blocks": blocks})


def _scaled(block: Block, factor: float) -> Block:
    match block:
        case Pool() | Repeat():
            return block
        case Residual():
            return block.model_copy(update={"body": tuple(_unit(unit, factor) for unit in block.body)})
        case _:
            return _unit(block, factor)


def _unit(unit: Conv | Separable, factor: float) -> Conv | Separable:
    channels = min(max(round(unit.channels * factor), 1), MAX_CHANNELS)
    return unit.model_copy(update={"channels": channels})
