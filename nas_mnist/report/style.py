"""What all figures share: size, colours, axes, and how they become files.

Figures are 4.6 inches wide, so that their text stays legible on a telephone. Colours are those of Okabe and
Ito (jfly.uni-koeln.de/color), which colour-blind readers can tell apart; whatever a colour says is also said
by a line's weight, a marker or a word.
"""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

WIDTH = 4.6  # inches
BLUE, ORANGE, GREEN, RED, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9"
INK, SOFT, FAINT = "#1a2530", "#5b6874", "#d5dbe1"  # text and axes, details, grid lines; a page sets its own
GREY = "#98a4b0"  # what matters less
DARK = "#18222c"  # text on a colour, on every page

_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "none",  # text stays text: searchable, and in the page's own font
}
styled = mpl.rc_context(_STYLE)  # a decorator


def new_axes(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def error_of(accuracy: float) -> float:
    """In percent."""
    return 100 * (1 - accuracy)


def cost_axis(axes: Axes, name: str = "Parameters") -> None:
    axes.set_xlabel(name)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def error_axis(axes: Axes, label: str) -> None:
    low, high = axes.dataLim.intervaly
    if low > 0 and high > 3 * low:  # otherwise a logarithmic axis would have hardly a number on it
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(
            LogLocator(10, subs=(1, 2, 5) if high > 15 * low else (1, 1.5, 2, 3, 5, 7))
        )
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    elif low <= 0:  # somebody made no mistake
        axes.set_ylim(-0.02 * (high or 1), 1.05 * high or 1)  # a line at zero is seen whole
    axes.set_ylabel(label)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)


def png(figure: Figure, dots_per_inch: int = 160) -> bytes:
    """The figure on white."""
    stream = io.BytesIO()
    _lay_out(figure)
    figure.savefig(stream, format="png", dpi=dots_per_inch, facecolor="white", metadata={"Software": None})
    return stream.getvalue()


def svg(figure: Figure, name: str) -> str:
    """The figure on white; ``name`` keeps its parts' identifiers apart from those of other figures."""
    return _svg(figure, name, facecolor="white")


def inline_svg(figure: Figure, name: str) -> str:
    """The figure as an element of a page, without a background, in the page's text and grid colours."""
    text = _svg(figure, name, transparent=True)
    text = text[text.index("<svg") :]
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img"', text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    used = set(re.findall(r'#([\w-]+)["\')]', text))
    text = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", text)
    names = {INK: "currentColor", SOFT: "var(--soft)", FAINT: "var(--faint)"}
    names |= {BLUE: "var(--blue)", SKY: "var(--sky)", RED: "var(--red)"}
    for colour, variable in names.items():
        text = text.replace(colour.lower(), variable)
    return text


def _svg(figure: Figure, name: str, **options: Any) -> str:
    stream = io.StringIO()
    _lay_out(figure)
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure.savefig(stream, format="svg", metadata={"Date": None}, **options)
    return stream.getvalue()


def _lay_out(figure: Figure) -> None:
    """Find a place for everything, once: that takes longer than drawing it."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
