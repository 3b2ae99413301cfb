"""Plots. Each function takes data and returns a matplotlib figure; `canvas` says how they look."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ..models.cost import COST_NAMES
from ..models.published import Published
from ..study.objective import Verdict
from ..study.results import TrialRow, pareto_front
from .style import (
    BLUE,
    DARK,
    FAINT,
    GREEN,
    GREY,
    ORANGE,
    RED,
    SKY,
    SOFT,
    cost_axis,
    error_axis,
    error_of,
    new_axes,
    styled,
)

if TYPE_CHECKING:
    import numpy as np

_SPENT_ON = (
    (Verdict.TRAINED, BLUE, ""),
    (Verdict.STOPPED, GREY, "//"),
    (Verdict.FAILED, RED, "xx"),
    (Verdict.OVER_BUDGET, ORANGE, ".."),
    (Verdict.IMPOSSIBLE, SKY, "\\\\"),
    (Verdict.DUPLICATE, GREEN, "--"),
    (Verdict.INTERRUPTED, SOFT, "oo"),
    (Verdict.UNNEEDED, FAINT, ""),
)


@styled
def learning_curves(
    curves: Mapping[int, Mapping[int, float]],
    trained: Sequence[int],
    epochs: int,
    required: float | None = None,
) -> Figure:
    """Validation error by epoch; ``trained`` are the trials with a last epoch, the best one first.

    ``required`` is the accuracy that is asked for, 0 to 1.
    """
    figure, axes = new_axes(3.4)
    _required(axes, required)
    stopped = [trial for trial in curves if trial not in trained]
    for trial in stopped:
        _curve(axes, curves[trial], GREY, 0.8, alpha=0.7)
    for trial in trained[:0:-1]:
        _curve(axes, curves[trial], SKY, 1.4)
    if stopped:
        axes.plot([], [], color=GREY, linewidth=0.8, label="stopped early")
    if len(trained) > 1:
        axes.plot([], [], color=SKY, linewidth=1.4, label="trained to the end")
    if trained:
        best = f"the best, trial {trained[0]}" if len(curves) > 1 else f"trial {trained[0]}"
        _curve(axes, curves[trained[0]], BLUE, 2.4, label=best)
    axes.set_xlim(0.5, epochs + 0.5)
    axes.set_xlabel("Epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    error_axis(axes, "Validation error (%)")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@styled
def seed_curves(
    runs: Sequence[Mapping[str, Any]], published: Sequence[float], required: float | None = None
) -> Figure:
    """Test error by epoch of every seed (as in ``result.json``), beside a published run's accuracies.

    ``required`` is the accuracy that is asked for, 0 to 1.
    """
    figure, axes = new_axes(3.2)
    _required(axes, required)
    if published:
        curve = dict(enumerate(published, 1))
        _curve(axes, curve, ORANGE, 1.4, label="published run", linestyle="--")
    label = f"seed{'s' * (len(runs) > 1)} {', '.join(str(run['seed']) for run in runs)}"
    for run in runs:
        scored = {row["epoch"]: row["test_accuracy"] for row in run["epochs"]}
        known = {epoch: accuracy for epoch, accuracy in scored.items() if accuracy is not None}
        _curve(axes, known, BLUE, 1.2, label=label)
        label = "_"  # said once
    axes.set_xlabel("Epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    error_axis(axes, "Test error (%)")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@styled
def accuracy_against(rows: Sequence[TrialRow], limit: int | None, cost: str = "n_params") -> Figure:
    """Validation error against a cost (`COST_NAMES`), with the Pareto front and the limit."""
    figure, axes = new_axes(3.4)
    stopped = [row for row in rows if row.verdict is Verdict.STOPPED and row.validation_accuracy is not None]
    trained = [row for row in rows if row.verdict is Verdict.TRAINED]
    if stopped:
        axes.scatter(
            *_points(stopped, cost), s=14, marker="x", linewidths=0.8, color=GREY, label="when stopped early"
        )
    axes.scatter(*_points(trained, cost), s=36, color=BLUE, label="trained to the end", zorder=3)
    if trained:
        sizes, errors = _points(pareto_front(trained, cost), cost)
        ring = axes.scatter(sizes, errors, s=90, facecolor="none", edgecolor=ORANGE, linewidths=1.6, zorder=4)
        ring.set_clip_on(False)
        axes.step(
            *([*sizes, max(limit or 0, sizes[-1])], [*errors, errors[-1]]),
            where="post", color=ORANGE, linewidth=1.4, label="Pareto front",
        )  # fmt: skip
    if limit is not None:
        axes.axvline(limit, color=RED, linestyle="--", linewidth=1.2, label=f"budget, {limit:,}")
    costs, _ = _points([*stopped, *trained], cost)
    if limit is None or min(costs, default=0) < limit / 2:  # not where all fill most of the budget
        axes.set_xlim(left=0)
    cost_axis(axes, COST_NAMES[cost].capitalize())
    error_axis(axes, "Validation error (%)")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@styled
def comparison(
    names: Sequence[str],
    params: Sequence[int],
    tests: Sequence[Mapping[str, Any]],
    published: Sequence[Published] = (),
) -> Figure:
    """Test error against parameters of several results (``test_accuracy`` as in ``result.json``).

    Beside them, in grey, ``published`` ones, by which score they are.
    """
    figure, axes = new_axes(4.6 if published else 3.4)
    for how, marker in zip(dict.fromkeys(one.how for one in published), "xP*+", strict=False):
        of_kind = [one for one in published if one.how == how]
        errors = [error_of(one.accuracy) for one in of_kind]
        axes.scatter(
            *([one.params for one in of_kind], errors),
            s=26, marker=marker, color=GREY, label=f"published, one seed: {how}",
        )  # fmt: skip
        for one, error in zip(of_kind, errors, strict=True):
            if one.epochs:
                axes.annotate(
                    *(f"{one.epochs:,} epochs", (one.params, error), (4, -3)),
                    textcoords="offset points", ha="left", va="top", fontsize=7, color=GREY,
                )  # fmt: skip
    for position, (name, size, test) in enumerate(zip(names, params, tests, strict=True)):
        error = error_of(test["mean"])
        low, high = test["interval"] or (test["mean"], test["mean"])
        reach = [[error - error_of(high)], [error_of(low) - error]]
        colour = (BLUE, ORANGE, GREEN, RED, SKY)[position % 5]
        marker, label = "os^Dv"[(position + position // 5) % 5], name
        if published:  # all of ours are one kind of point
            colour, marker, label = BLUE, "o", "_" if position else "ours: last epoch, mean and 95 % interval"
            short = name.removeprefix("mnist-")  # there are many
            left_is_taken = any(size / 1.3 < other < size for other in params)
            to_the_right = left_is_taken or size in (min(params), max(params))
            shift, side = (6, "left") if to_the_right else (-6, "right")
            axes.annotate(short, (size, error), (shift, 0), textcoords="offset points", ha=side, fontsize=8)
        axes.errorbar(size, error, reach, color=colour, marker=marker, capsize=3, label=label, linestyle="")
    sizes = [*params, *(one.params for one in published)]
    cost_axis(axes)
    if max(sizes) > 10 * min(sizes):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    else:
        axes.set_xlim(0, 1.1 * max(sizes))
    error_axis(axes, "Test error (%)")
    figure.legend(loc="outside lower center", ncols=1 if published else 2)
    return figure


@styled
def importance_bars(importances: Mapping[str, float]) -> Figure:
    """Shares of importance, the greatest first."""
    names = list(importances)[::-1]
    figure, axes = new_axes(0.7 + 0.24 * len(names))
    shares = [importances[name] for name in names]
    axes.barh(names, shares, color=BLUE, height=0.65)
    for position, share in enumerate(shares):
        axes.annotate(
            *(f"{share:.0%}", (share, position)),
            xytext=(4, 0), textcoords="offset points", va="center", fontsize=8,
        )  # fmt: skip
    axes.set_xlim(0, 1.15 * max(shares))
    axes.set_xlabel("Share of importance")
    axes.xaxis.set_major_locator(MaxNLocator(5, prune="upper"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    return figure


@styled
def spending(rows: Sequence[TrialRow]) -> Figure:
    """Trials, images and seconds, by how the trials ended."""
    sums: dict[str, Counter[Verdict]] = {"Trials": Counter(), "Images": Counter(), "Seconds": Counter()}
    for row in rows:
        sums["Trials"][row.verdict] += 1
        sums["Images"][row.verdict] += row.images
        sums["Seconds"][row.verdict] += round(row.seconds)
    figure, axes = new_axes(2.4)
    left = dict.fromkeys(sums, 0.0)
    for verdict, colour, hatch in _SPENT_ON:
        shares = [counts[verdict] / max(counts.total(), 1) for counts in sums.values()]
        if not any(shares):
            continue
        axes.barh(
            *(list(sums), shares, 0.6, list(left.values())),
            color=colour, hatch=hatch, edgecolor="white", linewidth=0.6, label=verdict.value,
        )  # fmt: skip
        left = {name: left[name] + share for name, share in zip(sums, shares, strict=True)}
    axes.invert_yaxis()
    axes.set_yticks(range(3), [f"{name}\n{_short(counts.total())}" for name, counts in sums.items()])
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@styled
def confusion(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> Figure:
    """How often a class (rows) was taken for another (columns); ``names`` of the classes."""
    figure, axes = new_axes(4.2)
    size = len(matrix)
    wrong = [
        [math.nan if row == column or not count else count for column, count in enumerate(line)]
        for row, line in enumerate(matrix)
    ]  # what is no number stays transparent
    most = max([1, *(count for line in wrong for count in line if count > 0)])
    low, high = (-0.3 * most, 1.4 * most) if size <= 12 else (0, most)
    picture = axes.imshow(wrong, cmap="Oranges", vmin=low, vmax=high)
    axes.spines[:].set_visible(False)
    for row in range(size if size <= 12 else 0):
        for column in range(size):
            if count := matrix[row][column]:
                diagonal = row == column
                colour = SOFT if diagonal else DARK
                axes.text(
                    *(column, row, str(count)),
                    ha="center", va="center", color=colour, fontsize=8 if diagonal else 9,
                )  # fmt: skip
    if size <= 30:
        long = max(map(len, names)) > 3
        axes.set_xticks(range(size), names, rotation=45 if long else 0, ha="right" if long else "center")
        axes.set_yticks(range(size), names)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.tick_params(length=0, labelsize=9 if size <= 12 or size > 30 else 6)
    if size > 12:  # too many for numbers
        right = [row for row in range(size) if matrix[row][row]]
        axes.scatter(right, right, s=(180 / size) ** 2 / 4, marker="s", color=FAINT)
        figure.colorbar(picture, label="Images", shrink=0.8)
    axes.set_xlabel("Predicted class")
    axes.set_ylabel("True class")
    return figure


@styled
def mistakes(images: np.ndarray, found: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Figure:
    """The images (N, H, W) that were classified wrongly; ``found`` as in ``result.json``.

    ``names`` are those of the classes.
    """
    columns = 6
    # A picture is one unit wide and high, its words stand above it.
    high, between = (1.42, " ") if max(map(len, names)) <= 3 else (1.6, "\n")
    rows = -(-len(found) // columns)
    figure, axes = new_axes(0.69 * high * rows)
    axes.axis("off")
    colours = "gray_r" if images.mean() < 127.5 else "gray"  # dark on light, as the page is
    for position, (image, mistake) in enumerate(zip(images, found, strict=False)):
        left, top = 1.15 * (position % columns), high * (position // columns)
        tall, wide = (side / max(image.shape) for side in image.shape)
        middle, bottom = left + 0.5, top + high - (1 - tall) / 2
        place = (middle - wide / 2, middle + wide / 2, bottom, bottom - tall)
        axes.imshow(image, cmap=colours, vmin=0, vmax=255, extent=place, aspect="auto")
        label, taken = names[mistake["label"]], names[mistake["predicted"]]
        words = f"{label}{between}as {taken}\n{mistake['confidence']:.0%} sure"
        axes.text(left + 0.5, top + high - 1.04, words, ha="center", va="bottom", fontsize=8, linespacing=1.0)
    axes.set_xlim(-0.1, 1.15 * columns)
    axes.set_ylim(high * rows, 0)
    return figure


def _curve(axes: Axes, curve: Mapping[int, float], colour: str, width: float, **options: Any) -> None:
    """Errors in percent of accuracies from 0 to 1."""
    epochs = sorted(curve)
    marker = "." if len(epochs) == 1 else None
    errors = [error_of(curve[epoch]) for epoch in epochs]
    axes.plot(epochs, errors, color=colour, linewidth=width, marker=marker, **options)


def _required(axes: Axes, accuracy: float | None) -> None:
    if accuracy is not None:
        error = error_of(accuracy)
        axes.axhline(error, color=RED, linestyle=":", linewidth=1.2, label=f"required, {error:.2g} %")


def _points(rows: Sequence[TrialRow], cost: str) -> tuple[list[int], list[float]]:
    costs = [getattr(row, cost) or 0 for row in rows]
    return costs, [error_of(row.validation_accuracy or 0.0) for row in rows]


def _short(number: int) -> str:
    """1,234 as it is; 12,345,678 as 12.3 M."""
    return f"{number / 1e6:,.1f} M" if number >= 1_000_000 else f"{number:,}"
