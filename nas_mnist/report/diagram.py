"""The diagram of an architecture: one row per block, from the image at the top to the scores at the bottom.

The bar on the left is the block's output: its width is the width of the maps, its thickness grows with the
number of channels. The bar on the right is the block's share of the parameters.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from math import log2
from textwrap import shorten
from typing import NamedTuple

from matplotlib.figure import Figure

from ..models.architecture import Architecture
from ..models.blocks import Part, Pool, Repeat, Residual, Sequence, WeightedBlock
from ..models.cost import cost_of
from ..models.layers import ACTIVATIONS, Shape
from .style import BLUE, GREEN, GREY, INK, ORANGE, RED, SOFT, new_axes, styled

_COLOURS = {
    "conv": BLUE,
    "separable": GREEN,
    "depthwise": GREEN,
    "sequence": GREEN,
    "residual": ORANGE,
    "pool": GREY,
    "head": RED,
    "image": INK,
}
_MAPS, _TEXT, _PARAMS = 1.1, 2.4, 8.4  # x of the three columns: centre of the bars, start of text, of shares
_ROW = 0.46  # inches per block
_TITLE, _DETAILS = 8.5, 7.5  # points


class DiagramRow(NamedTuple):
    """One row of the diagram."""

    kind: str
    title: str
    details: str
    shape: Shape  # of the output
    params: int


def diagram_rows(architecture: Architecture) -> list[DiagramRow]:
    """The rows of the image, of every block and of the head."""
    rows = [DiagramRow("image", "image", "", architecture.input_shape, 0)]
    last: WeightedBlock | None = None  # a repeat uses its weights
    for position, block in enumerate(architecture.blocks):
        shape, params = _output_and_params(architecture, f"blocks[{position}]")
        if isinstance(block, Pool):
            title = f"{block.method} pooling {block.kernel}×{block.kernel}"
            rows.append(DiagramRow(block.kind, title, _stride(block), shape, params))
            continue
        last = last if isinstance(block, Repeat) else block
        assert last is not None  # an architecture that exists never begins with a repeat
        units = last.body if isinstance(last, Residual | Sequence) else [last]
        title = "residual: " * isinstance(last, Residual) + _titles(units)
        details = "shared weights, " * isinstance(block, Repeat) + _details(units[-1])
        rows.append(DiagramRow(last.kind, title, details, shape, params))
    head = architecture.head
    steps = [f"{head.kernel}×{head.kernel} to {architecture.classes} classes", "global average"]
    steps = steps if head.order == "conv_then_pool" else steps[::-1]
    shape, params = _output_and_params(architecture, "head")
    rows.append(DiagramRow("head", ", ".join(steps), "no fully connected layer", shape, params))
    return rows


@styled
def draw_network(architecture: Architecture) -> Figure:
    """The diagram as a figure."""
    rows = diagram_rows(architecture)
    total = cost_of(architecture).params
    widest = max(row.shape[2] for row in rows)
    figure, axes = new_axes(_ROW * (len(rows) + 0.9))
    axes.set(xlim=(-0.4, 10), ylim=(len(rows) + 0.05, -0.85))
    axes.axis("off")
    for x, heading in ((_MAPS, "maps"), (_TEXT, "block"), (_PARAMS, "parameters")):
        side = "center" if x == _MAPS else "left"
        axes.text(x, -0.6, heading, ha=side, va="center", fontsize=8, fontweight="bold")
    for y, row in enumerate(rows):
        colour, (channels, _, width) = _COLOURS[row.kind], row.shape
        length, thickness = 1.9 * width / widest, 0.05 + 0.05 * log2(1 + channels)
        axes.barh(y - 0.1, length, thickness, _MAPS - length / 2, color=colour)
        shape = " × ".join(map(str, row.shape))
        axes.text(_MAPS, y + 0.3, shape, ha="center", va="center", fontsize=_DETAILS, color=SOFT)
        title, details = shorten(row.title, 38, placeholder="…"), shorten(row.details, 45, placeholder="…")
        axes.text(_TEXT, y - 0.17, title, va="center", fontsize=_TITLE)
        axes.text(_TEXT, y + 0.22, details, va="center", fontsize=_DETAILS, color=SOFT)
        if row.kind == "residual":  # the arrow of its shortcut
            arrow = {"arrowstyle": "->", "connectionstyle": "arc3,rad=0.3", "color": INK}
            axes.annotate("", (_MAPS - 1.05, y + 0.3), (_MAPS - 1.05, y - 0.42), arrowprops=arrow)
        if row.params:
            axes.text(_PARAMS, y - 0.17, f"{row.params:,}", va="center", fontsize=_TITLE)
            axes.barh(y + 0.2, 1.5 * row.params / total, 0.2, _PARAMS, color=colour)
    axes.text(_PARAMS, len(rows) - 0.3, f"total {total:,}", va="center", fontsize=8, fontweight="bold")
    return figure


def _output_and_params(architecture: Architecture, path: str) -> tuple[Shape, int]:
    """Output shape and parameters of the block at a path."""
    layers = [layer for layer in architecture.layers if f"{layer.path}.".startswith(f"{path}.")]
    return layers[-1].out_shape, sum(layer.params for layer in layers)


def _titles(units: Iterable[Part]) -> str:
    """The titles of a block's convolutions; "convolution" is left out where there are several kinds."""
    counts = [(title, len(list(equal))) for title, equal in groupby(map(_title, units))]
    short = [title.removeprefix("convolution ") if len(counts) > 1 else title for title, _ in counts]
    return ", ".join(
        f"{count} × {title}" if count > 1 else title for (_, count), title in zip(counts, short, strict=True)
    )


def _title(block: Part) -> str:
    name = "convolution" if block.kind == "conv" else block.kind
    return f"{name} {block.kernel}×{block.kernel}"


def _details(block: Part) -> str:
    words = [
        _stride(block),
        "norm" * (block.norm == "before"),
        ACTIVATIONS.get(block.activation, ""),
        "norm" * (block.norm == "after"),
        "bias" * block.bias,
        f"dropout {block.dropout:g}" if block.dropout else "",
        "valid" * (block.padding == "valid" and block.kernel > 1),
    ]
    return ", ".join(filter(None, words))


def _stride(block: Part | Pool) -> str:
    """The stride, unless it is the usual one."""
    usual = block.kernel if isinstance(block, Pool) else 1
    return "" if block.stride == usual else f"stride {block.stride}"
