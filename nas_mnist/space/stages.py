"""From the parameters of a stage to its blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from ..models.blocks import (
    MAX_CHANNELS,
    Block,
    Conv,
    Depthwise,
    Part,
    Pool,
    Repeat,
    Residual,
    Separable,
    WeightedBlock,
)
from ..models.blocks import Sequence as Chain
from .own_blocks import OwnBlock
from .sampling import Params

_FIELDS = ("bias", "norm", "activation", "dropout")  # of every convolution; drawn for a stage or a network


def stage_blocks(
    params: Params,
    widths: Sequence[int],
    before: Sequence[Block],
    image: int,
    own: Mapping[str, OwnBlock],
) -> list[Block]:
    """The blocks of one stage.

    Args:
        params: the keys of `StageSpace` without ``channels``, filled up with those of `NetworkSpace`.
        widths: output channels of each block.
        before: all blocks of the earlier stages.
        image: channels of the image.
        own: the space's own blocks, by name.
    """
    blocks: list[Block] = []
    if params["transition"]:
        blocks.append(
            Conv(channels=params["transition"], kernel=1, bias=params["bias"], norm="none", activation="none")
        )
    for number, channels in enumerate(widths, 1):
        stride = 2 if number == len(widths) and params["downsample"] == "stride" else 1
        blocks.append(_block(params, _widths([*before, *blocks], image)[-1], channels, stride, own))
    if params["repeats"]:
        blocks += _repeats(params, [*before, *blocks], image, own)
    if params["downsample"] in ("max", "average"):
        blocks.append(Pool(method=params["downsample"]))
    return blocks


def _parts(block: WeightedBlock) -> Sequence[Part]:
    """The convolutions of a block."""
    return block.body if isinstance(block, Residual | Chain) else (block,)


def _widths(blocks: Sequence[Block], image: int) -> list[int]:
    """The channels of the image and of the output of every block with weights."""
    widths = [image]
    for block in blocks:
        if not isinstance(block, Pool | Repeat):
            made = [part.channels for part in _parts(block) if not isinstance(part, Depthwise)]
            widths.append(made[-1] if made else widths[-1])
    return widths


def _repeats(params: Params, before: Sequence[Block], image: int, own: Mapping[str, OwnBlock]) -> list[Block]:
    """The repeats behind the blocks so far; the first has weights of its own if none can be shared."""
    widths = _widths(before, image)
    weighted = [block for block in before if not isinstance(block, Pool | Repeat)]
    # A block can be repeated if it reads as many channels as it writes and keeps the size of the map.
    keeps = widths[-2:] == widths[-1:] * 2
    repeatable = keeps and prod(part.stride for part in _parts(weighted[-1])) == 1
    first = [] if repeatable else [_block(params, widths[-1], widths[-1], 1, own)]
    return [*first, *[Repeat()] * (int(params["repeats"]) - len(first))]


def _block(
    params: Params, inputs: int, channels: int, stride: int, own: Mapping[str, OwnBlock]
) -> WeightedBlock:
    """One block from ``inputs`` to ``channels`` channels."""
    kind = str(params["block"])
    fields: dict[str, Any] = {name: params[name] for name in (*_FIELDS, "kernel")}
    if kind in own:
        fields["padding"] = "same" if own[kind].shortcut else params["padding"]
        return own[kind].block(channels, stride, fields, bool(params["middle"]))
    if kind == "inverted":
        return _inverted(fields, inputs, channels, stride, int(params["expansion"]))
    residual = kind.startswith("residual")
    fields["padding"] = "same" if residual else params["padding"]  # 'valid' would make the body smaller
    fields |= {"channels": channels, "stride": stride}
    separable = kind.endswith("separable")
    block = Separable(middle=params["middle"], **fields) if separable else Conv(**fields)
    return Residual(body=(block,)) if residual else block


def _inverted(
    fields: dict[str, Any], inputs: int, channels: int, stride: int, expansion: int
) -> Residual | Chain:
    """An inverted residual block (Sandler et al. 2018, arxiv.org/abs/1801.04381).

    A 1x1 expansion, a depthwise convolution, a linear 1x1 projection; a shortcut where input and output
    have the same shape.
    """
    pointwise = {**fields, "kernel": 1, "dropout": 0.0}
    body = (
        Conv(channels=min(expansion * inputs, MAX_CHANNELS), **pointwise),
        Depthwise(stride=stride, **fields | {"dropout": 0.0}),
        Conv(channels=channels, **pointwise | {"activation": "none", "dropout": fields["dropout"]}),
    )
    return Residual(body=body) if (inputs, stride) == (channels, 1) else Chain(body=body)
