"""From what is drawn for a stage to its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..models.architecture import Block, Conv, Pool, Repeat, Residual, Separable
from .sampling import Draws


def stage_blocks(drawn: Draws, widths: Sequence[int], before: Sequence[Block], image: int) -> list[Block]:
    """What a stage is, of which all of `StageSpace`'s keys but the ``widths`` are ``drawn`` or the network's.

    ``before``: all blocks before it, behind an ``image`` of so many channels.
    """
    blocks: list[Block] = []
    if drawn["transition"]:
        blocks.append(
            Conv(channels=drawn["transition"], kernel=1, bias=drawn["bias"], norm="none", activation="none")
        )
    for number, channels in enumerate(widths, 1):
        last = number == len(widths)
        stride = 2 if last and drawn["downsample"] == "stride" else 1
        blocks.append(_block(drawn, channels, stride))
    if drawn["repeats"]:
        blocks += _repeats(drawn, [*before, *blocks], image)
    if drawn["downsample"] in ("max", "average"):
        blocks.append(Pool(method=drawn["downsample"]))
    return blocks


def weighted(blocks: Sequence[Block]) -> list[Conv | Separable]:
    """Those with weights of their own; of a residual block the part that gives it its width."""
    found = [block for block in blocks if not isinstance(block, Pool | Repeat)]
    return [block.body[-1] if isinstance(block, Residual) else block for block in found]


def _repeats(drawn: Draws, before: Sequence[Block], image: int) -> list[Block]:
    """The further blocks behind those of a stage."""
    units = weighted(before)
    widths = [image, *(unit.channels for unit in units)]
    repeatable = widths[-2:] == widths[-1:] * 2 and units[-1].stride == 1
    first = [] if repeatable else [_block(drawn, widths[-1], 1)]
    return [*first, *[Repeat()] * (int(drawn["repeats"]) - len(first))]


def _block(drawn: Draws, channels: int, stride: int) -> Conv | Separable | Residual:
    keys: dict[str, Any] = {name: drawn[name] for name in ("bias", "norm", "activation", "dropout")}
    kind = str(drawn["block"])
    padding = "same" if kind.startswith("residual") else drawn["padding"]  # so that shortcut and body meet
    keys |= {"channels": channels, "stride": stride, "kernel": drawn["kernel"], "padding": padding}
    unit = Separable(middle=drawn["middle"], **keys) if kind.endswith("separable") else Conv(**keys)
    return Residual(body=(unit,)) if kind.startswith("residual") else unit
