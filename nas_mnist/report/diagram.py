"""A drawing of an architecture: one line a block, from the image at the top to the scores at the bottom.

The bar at the left is what a block hands on: as wide as its maps are, as thick as there are many of them.
The bar at the right is the block's share of the parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import log2
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.textpath import TextPath

from ..models.architecture import Architecture, Conv, Pool, Repeat, Residual, Separable
from ..models.cost import cost_of
from ..models.layers import Shape
from .style import BLUE, GREEN, GREY, INK, ORANGE, RED, SOFT, WIDTH, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ACTIVATIONS = {
    "relu": "ReLU",
    "leaky_relu": "leaky ReLU",
    "silu": "SiLU",
    "hardswish": "hard swish",
    "gelu": "GELU",
}
_COLOURS = {"conv": BLUE, "separable": GREEN, "residual": ORANGE, "pool": GREY, "head": RED, "image": INK}
_LEFT, _TEXT, _RIGHT = 1.1, 2.4, 8.4  # centre of the bars, start of the words, start of the shares
_LINE = 0.46  # inches a block
_MORE = 0.39  # of a block: from a line of its words to the next one
_TITLE, _DETAILS = 8.5, 7.5  # points


@dataclass(frozen=True)
class Part:
    """One line of the drawing."""

    kind: str
    title: str
    details: str
    shape: Shape  # that it hands on
    params: int


def parts(architecture: Architecture) -> list[Part]:
    """The image, every block and the head, in words."""
    image = architecture.input_shape
    found = [Part("image", "image", "", image, 0)]
    newest: Conv | Separable | Residual | None = None  # that a later one may repeat
    for position, block in enumerate(architecture.blocks):
        shape, params = _of(architecture, f"blocks[{position}]")
        if isinstance(block, Pool):
            title, details = f"{block.method} pooling {block.kernel}×{block.kernel}", _stride(block)
            found.append(Part(block.kind, title, details, shape, params))
            continue
        again = isinstance(block, Repeat)
        newest = newest if isinstance(block, Repeat) else block
        assert newest is not None  # the architecture exists
        if isinstance(newest, Residual):
            title = "residual: " + ", ".join(_title(part) for part in newest.body)
            details = _details(newest.body[-1])
        else:
            title, details = _title(newest), _details(newest)
        found.append(Part(newest.kind, title + ", the same weights again" * again, details, shape, params))
    head = architecture.head
    convolution = f"{head.kernel}×{head.kernel} to {architecture.classes} classes"
    ordered = [convolution, "global average"]
    ordered = ordered if head.order == "conv_then_pool" else ordered[::-1]
    shape, params = _of(architecture, "head")
    found.append(Part("head", ", ".join(ordered), "no fully connected layer", shape, params))
    return found


@styled
def draw(architecture: Architecture) -> Figure:
    """The drawing."""
    lines = parts(architecture)
    words = [_words(line) for line in lines]
    tops = list(accumulate((1 + _MORE * (len(one) - 2) for one in words), initial=0.0))
    total = cost_of(architecture).params
    figure = Figure(figsize=(WIDTH, _LINE * (tops[-1] + 0.9)), layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(-0.4, 10)
    axes.set_ylim(tops[-1] + 0.05, -0.85)
    axes.axis("off")
    widest = max(line.shape[2] for line in lines)
    for x, heading, side in (
        (_LEFT, "maps", "center"),
        (_TEXT, "block", "left"),
        (_RIGHT, "parameters", "left"),
    ):
        axes.text(x, -0.6, heading, ha=side, va="center", fontsize=8, color=INK, fontweight="bold")
    for top, line, told in zip(tops, lines, words, strict=False):
        _draw_part(axes, top, line, told, widest, total)
    axes.text(_RIGHT, tops[-1] - 0.3, f"{total:,} in all", va="center", fontsize=8, fontweight="bold")
    return figure


def _words(line: Part) -> list[tuple[str, bool]]:
    """What stands beside a block, line by line, and whether it is of the title."""
    channels, height, width = line.shape
    below = f"{channels} × {height} × {width}" + (f"; {line.details}" if line.details else "")
    title, details = _broken(line.title, _TITLE), _broken(below, _DETAILS)
    return [(one, True) for one in title] + [(one, False) for one in details]


def _broken(words: str, size: float) -> list[str]:
    """Broken at commas into lines that fit the column, in points."""
    room = 72 * WIDTH * (_RIGHT - _TEXT - 0.2) / 10.4 * 0.95  # the axes are a little narrower than the figure
    lines = [""]
    for part in words.split(", "):
        longer = f"{lines[-1]}, {part}" if lines[-1] else part
        if lines[-1] and TextPath((0, 0), longer, size=size).get_extents().width > room:
            lines[-1] += ","
            lines.append(part)
        else:
            lines[-1] = longer
    return lines


def _draw_part(
    axes: Axes, position: float, line: Part, words: list[tuple[str, bool]], widest: int, total: int
) -> None:
    channels, _, width = line.shape
    long, thick = 1.9 * width / widest, 0.05 + 0.055 * log2(1 + channels)
    corner = (_LEFT - long / 2, position - thick / 2)
    axes.add_patch(Rectangle(corner, long, thick, facecolor=_COLOURS[line.kind], edgecolor="none"))
    if line.kind == "residual":
        at = _LEFT - 1.05
        start, end = ((at, position - 0.42), (at, position + 0.3))
        bow = "arc3,rad=0.3"
        axes.add_patch(
            FancyArrowPatch(start, end, connectionstyle=bow, arrowstyle="->", mutation_scale=7, color=INK)
        )
    for row, (told, of_title) in enumerate(words):
        size, colour = (_TITLE, INK) if of_title else (_DETAILS, SOFT)
        axes.text(_TEXT, position - 0.17 + _MORE * row, told, va="center", fontsize=size, color=colour)
    if line.params:
        share = 1.5 * line.params / total
        bar = Rectangle((_RIGHT, position + 0.1), share, 0.2, facecolor=_COLOURS[line.kind], edgecolor="none")
        axes.add_patch(bar)
        axes.text(_RIGHT, position - 0.17, f"{line.params:,}", va="center", fontsize=_TITLE)


def _of(architecture: Architecture, path: str) -> tuple[Shape, int]:
    """What the block at a path hands on, and its parameters."""
    layers = [
        layer for layer in architecture.layers if layer.path == path or layer.path.startswith(f"{path}.")
    ]
    return layers[-1].out_shape, sum(layer.params for layer in layers)


def _title(block: Conv | Separable) -> str:
    what = "convolution" if block.kind == "conv" else "separable"
    return f"{what} {block.kernel}×{block.kernel}"


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
    usual = block.kernel if isinstance(block, Pool) else 1
    return "" if block.stride == usual else f"stride {block.stride}"
