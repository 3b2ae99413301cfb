"""The diagram of an architecture: one row per block, from the image at the top to the scores at the bottom.

The bar on the left is the block's output: its width is the width of the maps, its thickness grows with the
number of channels. The bar on the right is the block's share of the parameters.
"""

from __future__ import annotations

from itertools import accumulate
from math import log2
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.textpath import TextPath

from ..models.architecture import Architecture
from ..models.blocks import Conv, Pool, Repeat, Residual, Separable
from ..models.cost import cost_of
from ..models.layers import Shape
from .style import BLUE, GREEN, GREY, INK, ORANGE, RED, SOFT, WIDTH, new_axes, styled

_ACTIVATIONS = {
    "relu": "ReLU", "leaky_relu": "leaky ReLU", "silu": "SiLU", "hardswish": "hard swish", "gelu": "GELU",
}  # fmt: skip
_COLOURS = {"conv": BLUE, "separable": GREEN, "residual": ORANGE, "pool": GREY, "head": RED, "image": INK}
_MAPS, _TEXT, _PARAMS = 1.1, 2.4, 8.4  # x of the three columns: centre of the bars, start of text, of shares
_ROW = 0.46  # inches per block
_TEXT_LINE = 0.39  # of a row: distance between two lines of its text
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
    last: Conv | Separable | Residual | None = None  # a repeat uses its weights
    for position, block in enumerate(architecture.blocks):
        shape, params = _output_and_params(architecture, f"blocks[{position}]")
        if isinstance(block, Pool):
            title = f"{block.method} pooling {block.kernel}×{block.kernel}"
            rows.append(DiagramRow(block.kind, title, _stride(block), shape, params))
            continue
        last = last if isinstance(block, Repeat) else block
        assert last is not None  # an architecture that exists never begins with a repeat
        units = last.body if isinstance(last, Residual) else [last]
        title = "residual: " * isinstance(last, Residual) + ", ".join(map(_title, units))
        title += ", shared weights" * isinstance(block, Repeat)
        rows.append(DiagramRow(last.kind, title, _details(units[-1]), shape, params))
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
    texts = [_text_lines(row) for row in rows]
    tops = list(accumulate((1 + _TEXT_LINE * (len(lines) - 2) for lines in texts), initial=0.0))
    total = cost_of(architecture).params
    figure, axes = new_axes(_ROW * (tops[-1] + 0.9))
    axes.set_xlim(-0.4, 10)
    axes.set_ylim(tops[-1] + 0.05, -0.85)
    axes.axis("off")
    for x, heading in ((_MAPS, "maps"), (_TEXT, "block"), (_PARAMS, "parameters")):
        side = "center" if x == _MAPS else "left"
        axes.text(x, -0.6, heading, ha=side, va="center", fontsize=8, fontweight="bold")
    widest = max(row.shape[2] for row in rows)
    for top, row, lines in zip(tops, rows, texts, strict=False):
        _draw_maps(axes, top, row, widest)
        for number, (text, size, colour) in enumerate(lines):
            y = top - 0.17 + _TEXT_LINE * number
            axes.text(_TEXT, y, text, va="center", fontsize=size, color=colour)
        if row.params:
            _draw_share(axes, top, row, total)
    axes.text(_PARAMS, tops[-1] - 0.3, f"total {total:,}", va="center", fontsize=8, fontweight="bold")
    return figure


def _draw_maps(axes: Axes, y: float, row: DiagramRow, widest: int) -> None:
    """The bar of the output and, for a residual block, the arrow of its shortcut."""
    channels, _, width = row.shape
    length, thickness = 1.9 * width / widest, 0.05 + 0.055 * log2(1 + channels)
    corner = (_MAPS - length / 2, y - thickness / 2)
    axes.add_patch(Rectangle(corner, length, thickness, facecolor=_COLOURS[row.kind], edgecolor="none"))
    if row.kind == "residual":
        ends = (_MAPS - 1.05, y - 0.42), (_MAPS - 1.05, y + 0.3)
        arc = "arc3,rad=0.3"
        axes.add_patch(
            FancyArrowPatch(*ends, connectionstyle=arc, arrowstyle="->", mutation_scale=7, color=INK)
        )


def _draw_share(axes: Axes, y: float, row: DiagramRow, total: int) -> None:
    """The number of parameters above the bar of their share."""
    share = 1.5 * row.params / total
    axes.add_patch(Rectangle((_PARAMS, y + 0.1), share, 0.2, facecolor=_COLOURS[row.kind], edgecolor="none"))
    axes.text(_PARAMS, y - 0.17, f"{row.params:,}", va="center", fontsize=_TITLE)


def _text_lines(row: DiagramRow) -> list[tuple[str, float, str]]:
    """The lines of a row's text with size and colour: its title, then output shape and details."""
    shape = " × ".join(map(str, row.shape))
    details = f"{shape}; {row.details}" if row.details else shape
    lines = [(line, _TITLE, INK) for line in _wrapped(row.title, _TITLE)]
    return lines + [(line, _DETAILS, SOFT) for line in _wrapped(details, _DETAILS)]


def _wrapped(text: str, points: float) -> list[str]:
    """The text in lines that fit the column, broken at commas."""
    # The axes are a little narrower than the figure.
    room = 0.95 * 72 * WIDTH * (_PARAMS - _TEXT - 0.2) / 10.4
    lines = [""]
    for part in text.split(", "):
        longer = f"{lines[-1]}, {part}" if lines[-1] else part
        if lines[-1] and TextPath((0, 0), longer, size=points).get_extents().width > room:
            lines[-1] += ","
            lines.append(part)
        else:
            lines[-1] = longer
    return lines


def _output_and_params(architecture: Architecture, path: str) -> tuple[Shape, int]:
    """Output shape and parameters of the block at a path."""
    layers = [layer for layer in architecture.layers if f"{layer.path}.".startswith(f"{path}.")]
    return layers[-1].out_shape, sum(layer.params for layer in layers)


def _title(block: Conv | Separable) -> str:
    name = "convolution" if block.kind == "conv" else "separable"
    return f"{name} {block.kernel}×{block.kernel}"


def _details(block: Conv | Separable) -> str:
    words = [_ACTIVATIONS[block.activation]] if block.activation != "none" else []
    if block.norm != "none":
        words.insert(0 if block.norm == "before" else len(words), "norm")
    words += ["bias"] * block.bias
    if block.dropout:
        words.append(f"dropout {block.dropout:g}")
    if block.padding == "valid" and block.kernel > 1:
        words.append("valid")
    return ", ".join([*words, _stride(block)] if _stride(block) else words)


def _stride(block: Conv | Separable | Pool) -> str:
    """The stride, unless it is the usual one."""
    usual = block.kernel if isinstance(block, Pool) else 1
    return "" if block.stride == usual else f"stride {block.stride}"
