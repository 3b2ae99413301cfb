"""Plots of test results. Each function takes data and returns figures in the common `style`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from ..data.class_names import class_names
from ..models.published import PUBLISHED_LOG, Published
from ..training.requirements import required_accuracy
from . import style
from .style import BLUE, GREY, ORANGE, error_percent, new_axes, styled

_MOST_COUNTED = 12  # classes up to which a confusion matrix shows its counts as text
_MOST_NAMED = 30  # classes up to which its axes show their names
_COLUMNS = 6  # of misclassified images


MOST_MISTAKES = 60  # misclassified images on a page


def result_figures(result: Mapping[str, Any], images: np.ndarray | None) -> dict[str, Figure]:
    """The figures of a ``result.json`` by file name: curves of all runs, and the errors of the first run.

    ``images`` (N, C, H, W) are all that the first run misclassified; None where the data set is not here.
    """
    figures: dict[str, Figure] = {}
    first, data = result["runs"][0], result["data"]["name"]
    if sum(row["test_accuracy"] is not None for row in first["epochs"]) > 1:
        is_published = (result["name"], data) == ("reference", "mnist")
        published = [correct / 10_000 for _, correct in PUBLISHED_LOG] if is_published else []
        figures["test-curves"] = seed_curves(result["runs"], published, required_accuracy(data))
    if "confusion" in first:
        names = result["data"].get("classes") or class_names(data, len(first["confusion"]))
        figures["confusion"] = confusion(first["confusion"], names)
        if images is not None and len(images):
            step = -(-len(images) // MOST_MISTAKES)  # spread evenly: test images may be sorted by class
            figures["mistakes"] = misclassified(images[::step], first["mistakes"][::step], names)
    return figures


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
def comparison(rows: Sequence[Mapping[str, Any]], published: Sequence[Published] = ()) -> Figure:
    """Test error against parameters of several results.

    ``rows`` from `items.comparison_rows`, with a test accuracy each. ``published`` results are grey, with a
    marker by the score that was published.
    """
    figure, axes = new_axes(4.6 if published else 3.4)
    _plot_published(axes, published)
    params = [row["params"] for row in rows]
    label = "ours: last epoch, mean and 95 % interval"
    for row in rows:
        mean, interval = row["test"]["mean"], row["test"]["interval"]
        error, (low, high) = error_percent(mean), interval or (mean, mean)
        reach = [[error - error_percent(high)], [error_percent(low) - error]]
        point = row["params"], error
        axes.errorbar(*point, reach, color=BLUE, marker="o", capsize=3, label=label, linestyle="")
        _annotate_result(axes, row["name"].removeprefix("mnist-"), *point, params)
        label = "_"  # one entry in the legend for all
    sizes = [*params, *(result.params for result in published)]
    style.cost_axis(axes)
    if max(sizes) > 10 * min(sizes):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:,.0f}")
    else:
        axes.set_xlim(0, 1.1 * max(sizes))
    style.error_axis(axes, "Test", legend_columns=1)
    return figure


def _plot_published(axes: Axes, published: Sequence[Published]) -> None:
    scores = dict.fromkeys(result.how for result in published)
    for score, marker in zip(scores, "xP*+", strict=False):
        results = [result for result in published if result.how == score]
        points = [(result.params, error_percent(result.accuracy)) for result in results]
        label = f"published, one seed: {score}"
        axes.plot(*zip(*points, strict=True), marker, markersize=5, color=GREY, label=label)
        text: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7, "color": GREY, "va": "top"}
        for result, point in zip(results, points, strict=True):
            if result.epochs:
                axes.annotate(f"{result.epochs:,} epochs", point, (4, -3), **text)


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
    image = axes.imshow(
        np.where(errors, errors, np.nan), cmap="Oranges", vmin=0, vmax=1.5 * errors.max() or 1
    )
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9 if size <= _MOST_COUNTED else 6)
    if size <= _MOST_COUNTED:
        for row, column in np.argwhere(counts):
            colour, points = (style.SOFT, 8) if row == column else (style.DARK, 9)
            text = str(counts[row, column])
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=points)
    else:
        figure.colorbar(image, label="Images", shrink=0.8)
    if size <= _MOST_NAMED:
        rotation, side = (45, "right") if max(map(len, names)) > 3 else (0, "center")
        axes.set_xticks(range(size), names, rotation=rotation, ha=side)
        axes.set_yticks(range(size), names)
    axes.set_xlabel("Predicted class")
    axes.set_ylabel("True class")
    return figure


@styled
def misclassified(images: np.ndarray, mistakes: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Figure:
    """The misclassified images (N, C, H, W) uint8 with true class, predicted class and confidence.

    ``mistakes`` as in ``result.json``, one an image; ``names`` of the classes.
    """
    # An image is one unit wide and high; its text stands above it.
    height, separator = (1.42, " ") if max(map(len, names)) <= 3 else (1.6, "\n")
    rows = -(-len(mistakes) // _COLUMNS)
    figure, axes = new_axes(0.69 * height * rows)
    axes.axis("off")
    colours = "gray_r" if images.mean() < 127.5 else "gray"  # dark on a light background
    shown = images[:, 0] if images.shape[1] == 1 else images.transpose(0, 2, 3, 1)
    for position, (image, mistake) in enumerate(zip(shown, mistakes, strict=False)):
        left, top = 1.15 * (position % _COLUMNS), height * (position // _COLUMNS)
        tall, wide = (side / max(image.shape[:2]) for side in image.shape[:2])
        middle, bottom = left + 0.5, top + height - (1 - tall) / 2
        extent = (middle - wide / 2, middle + wide / 2, bottom, bottom - tall)
        axes.imshow(image, cmap=colours, vmin=0, vmax=255, extent=extent, aspect="auto")
        label, predicted = names[mistake["label"]], names[mistake["predicted"]]
        text = f"{label}{separator}as {predicted}\n{mistake['confidence']:.0%} sure"
        axes.text(middle, top + height - 1.04, text, ha="center", va="bottom", fontsize=8, linespacing=1.0)
    axes.set_xlim(-0.1, 1.15 * _COLUMNS)
    axes.set_ylim(height * rows, 0)
    return figure
