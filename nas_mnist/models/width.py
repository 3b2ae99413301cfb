"""Width multipliers: all channels of an architecture times one number (Howard et al. 2017).

The term is that of MobileNets, arxiv.org/abs/1704.04861.
"""

from __future__ import annotations

import contextlib

from ..core.errors import InputError
from .architecture import Architecture
from .blocks import MAX_CHANNELS, Block, Conv, Part, Repeat, Residual, Separable, Sequence
from .cost import Budget, cost_of

_HALVINGS = 14  # of the interval that holds the multiplier: to within 1 in 10,000


def fit_width_multiplier(architecture: Architecture, budget: Budget) -> Architecture:
    """The architecture with the largest width multiplier that fits the budget.

    Costs grow with the multiplier, so bisection finds it, with exact counts. If one channel everywhere
    is too much, that smallest network is returned. Where RAM is limited the first, large maps fill it: then
    the blocks behind each down-sampling are fitted again, with a multiplier of their own.
    """
    best = _fit(architecture, budget)
    if budget.max_ram is None or not budget.fits(cost_of(best)):
        return best
    for number, block in enumerate(architecture.blocks[:-1]):
        if _shrinks(block):
            with contextlib.suppress(InputError):  # a repeat behind it needs the width before it
                best = _fit(architecture, budget, best.blocks[: number + 1])
    return best


def _fit(architecture: Architecture, budget: Budget, kept: tuple[Block, ...] = ()) -> Architecture:
    """As `fit_width_multiplier`, for the blocks behind those that are ``kept``."""
    best = scale_widths(architecture, 0.0, kept)
    if not budget.fits(cost_of(best)):
        return best
    low, high = 0.0, 1.0
    while high < MAX_CHANNELS and budget.fits(cost_of(candidate := scale_widths(architecture, high, kept))):
        best, low, high = candidate, high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        candidate = scale_widths(architecture, middle, kept)
        if budget.fits(cost_of(candidate)):
            best, low = candidate, middle
        else:
            high = middle
    return best


def scale_widths(architecture: Architecture, multiplier: float, kept: tuple[Block, ...] = ()) -> Architecture:
    """The architecture with all channels times ``multiplier``, rounded, at least one each.

    Its first blocks are those that are ``kept``.
    """
    scaled = (_scale_block(block, multiplier) for block in architecture.blocks[len(kept) :])
    return Architecture.make(
        {
            "input_shape": architecture.input_shape,
            "classes": architecture.classes,
            "head": architecture.head,
            "blocks": (*kept, *scaled),
        }
    )


def _shrinks(block: Block) -> bool:
    """Whether a block makes maps smaller."""
    if isinstance(block, Residual | Sequence):
        return any(part.stride > 1 for part in block.body)
    return not isinstance(block, Repeat) and block.stride > 1


def _scale_block(block: Block, multiplier: float) -> Block:
    if isinstance(block, Residual | Sequence):
        return block.model_copy(update={"body": tuple(_scale_part(part, multiplier) for part in block.body)})
    return _scale_part(block, multiplier) if isinstance(block, Conv | Separable) else block


def _scale_part(part: Part, multiplier: float) -> Part:
    if not isinstance(part, Conv | Separable):
        return part  # as many channels as its input
    channels = min(max(round(part.channels * multiplier), 1), MAX_CHANNELS)
    return part.model_copy(update={"channels": channels})
