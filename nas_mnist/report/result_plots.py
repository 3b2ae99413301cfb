"""Plots of test results. Each function takes data and returns a matplotlib figure in the common `style`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from ..models.published import Published
from . import style
from .style import BLUE, GREY, ORANGE, error_percent, new_axes, styled

_MOST_COUNTED = 12  # classes up to which a confusion matrix shows its counts as text
_MOST_NAMED = 30  # classes up to which its axes show their names
_COLUMNS = 6  # of misclassified images


@styled
def seed_curves(
    runs: Sequence[Mapping[str, Any]], published: Sequence[float], required: float | None = None
) -> Figure:
    """Test error by epoch of every seed.

    ``runs`` as in ``result.json``. ``published`` holds the accuracies of a published run by epoch; it may be
    empty. ``required`` is the required accuracy, 0 to 1.
    """
    figure, axes = new_axes(3.2)
    style.plot_required(axes, required)
    if published:
        curve = dict(enumerate(published, 1))
        style.plot_errors(axes, curve, ORANGE, 1.4, label="published run", linestyle="--")
    label = f"seed{'s' * (len(runs) > 1)} {', '.join(str(run['seed']) for run in runs)}"
    for run in runs:
        by_epoch = {row["epoch"]: row["test_accuracy"] for row in run["epochs"]}
        evaluated = {epoch: accuracy for epoch, accuracy in by_epoch.items() if accuracy is not None}
        style.plot_errors(axes, evaluated, BLUE, 1.2, label=label)
        label = "_"  # one entry in the legend for all seeds
    axes.set_xlabel("Epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.error_axis(axes, "Test")
    return figure


@styled
def comparison(
    names: Sequence[str],
    params: Sequence[int],
    tests: Sequence[Mapping[str, Any]],
    published: Sequence[Published] = (),
) -> Figure:
    """Test error against parameters of several results.

    ``tests`` holds the ``test_accuracy`` of each, as in ``result.json``. ``published`` results are grey, with
    a marker by the score that was published.
    """
    figure, axes = new_axes(4.6 if published else 3.4)
    _plot_published(axes, published)
    colours = (BLUE, ORANGE, style.GREEN, style.RED, style.SKY)
    for position, (name, size, test) in enumerate(zip(names, params, tests, strict=True)):
        error = error_percent(test["mean"])
        low, high = test["interval"] or (test["mean"], test["mean"])
        reach = [[error - error_percent(high)], [error_percent(low) - error]]
        colour, marker, label = colours[position % 5], "os^Dv"[(position + position // 5) % 5], name
        if published:  # one marker for all of ours, and the names beside the points
            colour, marker, label = BLUE, "o", "_" if position else "ours: last epoch, mean and 95 % interval"
            _annotate_result(axes, name.removeprefix("mnist-"), size, error, params)
        axes.errorbar(size, error, reach, color=colour, marker=marker, capsize=3, label=label, linestyle="")
    sizes = [*params, *(result.params for result in published)]
    style.cost_axis(axes)
    if max(sizes) > 10 * min(sizes):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:,.0f}")
    else:
        axes.set_xlim(0, 1.1 * max(sizes))
    style.error_axis(axes, "Test", legend_columns=1 if published else 2)
    return figure


def _plot_published(axes: Axes, published: Sequence[Published]) -> None:
    scores = dict.fromkeys(result.how for result in published)
    for score, marker in zip(scores, "xP*+", strict=False):
        results = [result for result in published if result.how == score]
        sizes = [result.params for result in results]
        errors = [error_percent(result.accuracy) for result in results]
        label = f"published, one seed: {score}"
        axes.scatter(sizes, errors, s=26, marker=marker, color=GREY, label=label)
        for result, point in zip(results, zip(sizes, errors, strict=True), strict=True):
            if result.epochs:
                text: dict[str, Any] = {"fontsize": 7, "color": GREY, "va": "top"}
                axes.annotate(f"{result.epochs:,} epochs", point, (4, -3), textcoords="offset points", **text)


def _annotate_result(axes: Axes, name: str, size: int, error: float, params: Sequence[int]) -> None:
    """Write a name beside its point: left of it, unless another point is near or it is at either end."""
    neighbour_on_the_left = any(size / 1.3 < other < size for other in params)
    to_the_right = neighbour_on_the_left or size in (min(params), max(params))
    shift, side = (6, "left") if to_the_right else (-6, "right")
    axes.annotate(name, (size, error), (shift, 0), textcoords="offset points", ha=side, fontsize=8)


@styled
def confusion(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> Figure:
    """The confusion matrix: true classes are rows, predicted classes columns; ``names`` of the classes."""
    figure, axes = new_axes(4.2)
    counts, size = np.asarray(matrix), len(matrix)
    errors = counts * ~np.eye(size, dtype=bool)
    most = max(1, errors.max())
    counted = size <= _MOST_COUNTED
    low, high = (-0.3 * most, 1.4 * most) if counted else (0, most)
    transparent = np.where(errors, errors, np.nan)
    image = axes.imshow(transparent, cmap="Oranges", vmin=low, vmax=high)
    axes.spines[:].set_visible(False)
    if counted:
        for row, column in np.argwhere(counts):
            colour, points = (style.SOFT, 8) if row == column else (style.DARK, 9)
            text = str(counts[row, column])
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=points)
    else:
        (right,) = np.nonzero(counts.diagonal())
        axes.scatter(right, right, s=(180 / size) ** 2 / 4, marker="s", color=style.FAINT)
        figure.colorbar(image, label="Images", shrink=0.8)
    if size <= _MOST_NAMED:
        rotation, side = (45, "right") if max(map(len, names)) > 3 else (0, "center")
        axes.set_xticks(range(size), names, rotation=rotation, ha=side)
        axes.set_yticks(range(size), names)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.tick_params(length=0, labelsize=6 if _MOST_COUNTED < size <= _MOST_NAMED else 9)
    axes.set_xlabel("Predicted class")
    axes.set_ylabel("True class")
    return figure


@styled
def misclassified(images: np.ndarray, mistakes: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Figure:
    """The misclassified images (N, H, W) with true class, predicted class and confidence.

    ``mistakes`` as in ``result.json``, one an image; ``names`` of the classes.
    """
    # An image is one unit wide and high; its text stands above it.
    height, separator = (1.42, " ") if max(map(len, names)) <= 3 else (1.6, "\n")
    rows = -(-len(mistakes) // _COLUMNS)
    figure, axes = new_axes(0.69 * height * rows)
    axes.axis("off")
    colours = "gray_r" if images.mean() < 127.5 else "gray"  # dark on a light background
    for position, (image, mistake) in enumerate(zip(images, mistakes, strict=False)):
        left, top = 1.15 * (position % _COLUMNS), height * (position // _COLUMNS)
        tall, wide = (side / max(image.shape) for side in image.shape)
        middle, bottom = left + 0.5, top + height - (1 - tall) / 2
        extent = (middle - wide / 2, middle + wide / 2, bottom, bottom - tall)
        axes.imshow(image, cmap=colours, vmin=0, vmax=255, extent=extent, aspect="auto")
        label, predicted = names[mistake["label"]], names[mistake["predicted"]]
        text = f"{label}{separator}as {predicted}\n{mistake['confidence']:.0%} sure"
        axes.text(middle, top + height - 1.04, text, ha="center", va="bottom", fontsize=8, linespacing=1.0)
    axes.set_xlim(-0.1, 1.15 * _COLUMNS)
    axes.set_ylim(height * rows, 0)
    return figure
