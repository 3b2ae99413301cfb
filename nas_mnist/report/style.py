"""The common style of all figures: size, colours, axes, and the conversion to PNG and SVG.

Figures are 4.6 inches wide, so that their text stays legible on a phone. The colours are those of Okabe and
Ito (jfly.uni-koeln.de/color), which colour-blind readers can distinguish. No figure relies on colour alone:
line width, marker or label say the same.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

WIDTH = 4.6  # inches
BLUE, ORANGE, GREEN, RED, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9"
INK, SOFT, FAINT = "#1a2530", "#5b6874", "#d5dbe1"  # text and axes, details, grid lines
GREY = "#98a4b0"  # less important data
DARK = "#18222c"  # text on a coloured background; the same in the light and the dark page
_PAGE_COLOURS = {  # replaced in a page by its CSS colours, which depend on the light or dark scheme
    INK: "currentColor",
    SOFT: "var(--soft)",
    FAINT: "var(--faint)",
    BLUE: "var(--blue)",
    SKY: "var(--sky)",
    RED: "var(--red)",
}

_INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
_STYLE: dict[Any, Any] = dict.fromkeys(_INKED, INK) | {
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "text.parse_math": False,  # a name with $ is a name
    "legend.fontsize": 9,
    "svg.fonttype": "none",  # text stays text: searchable, and in the page's own font
}
styled = mpl.rc_context(_STYLE)  # decorates the functions that make a figure


def new_axes(height: float) -> tuple[Figure, Axes]:
    """A figure with one pair of axes; ``height`` in inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def error_percent(accuracy: float) -> float:
    """The error in percent of an accuracy from 0 to 1."""
    return 100 * (1 - accuracy)


def plot_errors(axes: Axes, curve: Mapping[int, float], colour: str, width: float, **options: Any) -> None:
    """Plot the error in percent by epoch; ``curve`` holds accuracies from 0 to 1."""
    epochs = sorted(curve)
    marker = "." if len(epochs) == 1 else None
    errors = [error_percent(curve[epoch]) for epoch in epochs]
    axes.plot(epochs, errors, color=colour, linewidth=width, marker=marker, **options)


def plot_required(axes: Axes, accuracy: float | None) -> None:
    """Draw the line of the required accuracy, 0 to 1; None: nothing is required."""
    if accuracy is not None:
        error = error_percent(accuracy)
        axes.axhline(error, color=RED, linestyle=":", linewidth=1.2, label=f"required, {error:.2g} %")


def cost_axis(axes: Axes, name: str = "Parameters") -> None:
    """Label the x axis of a cost, with at most five whole numbers."""
    axes.set_xlabel(name)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def error_axis(axes: Axes, images: str, legend_columns: int = 2) -> None:
    """Label the y axis of errors on some images, and add the legend.

    The axis is logarithmic where the errors differ by more than a factor of 3.
    """
    low, high = axes.dataLim.intervaly
    if low > 0 and high > 3 * low:  # below a factor of 3 a logarithmic axis would have hardly a number on it
        axes.set_yscale("log")
        subs = (1, 2, 5) if high > 15 * low else (1, 1.5, 2, 3, 5, 7)
        axes.yaxis.set_major_locator(LogLocator(10, subs=subs))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    elif low <= 0:  # an error of 0 has no logarithm
        axes.set_ylim(-0.02 * (high or 1), 1.05 * high or 1)  # the line at 0 stays fully visible
    axes.set_ylabel(f"{images} error (%)")
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.figure.legend(loc="outside lower center", ncols=legend_columns)


def png(figure: Figure) -> bytes:
    """The figure on a white background."""
    stream = io.BytesIO()
    _lay_out(figure)
    figure.savefig(stream, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return stream.getvalue()


def svg(figure: Figure, name: str, background: str = "white") -> str:
    """The figure as SVG; ``name`` makes its element ids differ from those of other figures."""
    stream = io.StringIO()
    _lay_out(figure)
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure.savefig(stream, format="svg", facecolor=background, metadata={"Date": None})
    return stream.getvalue()


def inline_svg(figure: Figure, name: str) -> str:
    """The figure as an element of an HTML page: transparent, in the page's colours, without unused ids."""
    text = svg(figure, name, background="none")
    text = text[text.index("<svg") :]
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img"', text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    used = set(re.findall(r'#([\w-]+)["\')]', text))
    text = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", text)
    for colour, variable in _PAGE_COLOURS.items():
        text = text.replace(colour.lower(), variable)
    return text


def _lay_out(figure: Figure) -> None:
    """Run the constrained layout once: it takes longer than drawing."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
