"""From the parameters of a stage to its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..models.blocks import Block, Conv, Pool, Repeat, Residual, Separable, WeightedBlock
from .sampling import Params


def stage_blocks(params: Params, widths: Sequence[int], before: Sequence[Block], image: int) -> list[Block]:
    """The blocks of one stage.

    Args:
        params: the keys of `StageSpace` without ``channels``, filled up with those of `NetworkSpace`.
        widths: output channels of each block.
        before: all blocks of the earlier stages.
        image: channels of the image.
    """
    blocks: list[Block] = []
    if params["transition"]:
        blocks.append(
            Conv(channels=params["transition"], kernel=1, bias=params["bias"], norm="none", activation="none")
        )
    for number, channels in enumerate(widths, 1):
        last = number == len(widths)
        stride = 2 if last and params["downsample"] == "stride" else 1
        blocks.append(_block(params, channels, stride))
    if params["repeats"]:
        blocks += _repeats(params, [*before, *blocks], image)
    if params["downsample"] in ("max", "average"):
        blocks.append(Pool(method=params["downsample"]))
    return blocks


def last_convolutions(blocks: Sequence[Block]) -> list[Conv | Separable]:
    """For each block with weights, the convolution that sets its output channels and stride."""
    weighted = [block for block in blocks if not isinstance(block, Pool | Repeat)]
    return [block.body[-1] if isinstance(block, Residual) else block for block in weighted]


def _repeats(params: Params, before: Sequence[Block], image: int) -> list[Block]:
    """The repeats behind the blocks so far; the first has weights of its own if none can be shared."""
    convolutions = last_convolutions(before)
    widths = [image, *(convolution.channels for convolution in convolutions)]
    # A block can be repeated if it reads as many channels as it writes and keeps the size of the map.
    repeatable = widths[-2:] == widths[-1:] * 2 and convolutions[-1].stride == 1
    first = [] if repeatable else [_block(params, widths[-1], 1)]
    return [*first, *[Repeat()] * (int(params["repeats"]) - len(first))]


def _block(params: Params, channels: int, stride: int) -> WeightedBlock:
    fields: dict[str, Any] = {name: params[name] for name in ("bias", "norm", "activation", "dropout")}
    kind = str(params["block"])
    residual = kind.startswith("residual")
    padding = "same" if residual else params["padding"]  # 'valid' would make the body smaller than its input
    fields |= {"channels": channels, "stride": stride, "kernel": params["kernel"], "padding": padding}
    separable = kind.endswith("separable")
    block = Separable(middle=params["middle"], **fields) if separable else Conv(**fields)
    return Residual(body=(block,)) if residual else block
