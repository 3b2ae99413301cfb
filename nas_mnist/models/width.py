"""Width multipliers: all channels of an architecture times one number (Howard et al. 2017).

The term is that of MobileNets, arxiv.org/abs/1704.04861.
"""

from __future__ import annotations

from .architecture import Architecture
from .blocks import MAX_CHANNELS, Block, Conv, Part, Residual, Separable, Sequence
from .cost import Budget, cost_of

_HALVINGS = 14  # of the interval that holds the multiplier: to within 1 in 10,000


def fit_width_multiplier(architecture: Architecture, budget: Budget) -> Architecture:
    """The architecture with the largest width multiplier that fits the budget.

    Costs grow with the multiplier, so bisection finds it, with exact counts. If one channel everywhere
    is too much, that smallest network is returned.
    """
    best = scale_widths(architecture, 0.0)
    if not budget.fits(cost_of(best)):
        return best
    low, high = 0.0, 1.0
    while high < MAX_CHANNELS and budget.fits(cost_of(candidate := scale_widths(architecture, high))):
        best, low, high = candidate, high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        candidate = scale_widths(architecture, middle)
        if budget.fits(cost_of(candidate)):
            best, low = candidate, middle
        else:
            high = middle
    return best


def scale_widths(architecture: Architecture, multiplier: float) -> Architecture:
    """The architecture with all channels times ``multiplier``, rounded, at least one each."""
    return Architecture.make(
        {
            "input_shape": architecture.input_shape,
            "classes": architecture.classes,
            "head": architecture.head,
            "blocks": tuple(_scale_block(block, multiplier) for block in architecture.blocks),
        }
    )


def _scale_block(block: Block, multiplier: float) -> Block:
    if isinstance(block, Residual | Sequence):
        return block.model_copy(update={"body": tuple(_scale_part(part, multiplier) for part in block.body)})
    return _scale_part(block, multiplier) if isinstance(block, Conv | Separable) else block


def _scale_part(part: Part, multiplier: float) -> Part:
    if not isinstance(part, Conv | Separable):
        return part  # as many channels as its input
    channels = min(max(round(part.channels * multiplier), 1), MAX_CHANNELS)
    return part.model_copy(update={"channels": channels})
