"""Plots of a study. Each function takes data and returns a matplotlib figure in the common `style`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..models.cost import COST_NAMES
from ..study.results import TrialRow, pareto_front
from ..study.verdict import Verdict
from . import style
from .style import BLUE, GREY, ORANGE, RED, SKY, error_percent, new_axes, styled

VERDICT_STYLES = (  # colour and hatch of the bar of every verdict
    (Verdict.TRAINED, BLUE, ""),
    (Verdict.STOPPED, GREY, "//"),
    (Verdict.FAILED, RED, "xx"),
    (Verdict.OVER_BUDGET, ORANGE, ".."),
    (Verdict.IMPOSSIBLE, SKY, "\\\\"),
    (Verdict.DUPLICATE, style.GREEN, "--"),
    (Verdict.INTERRUPTED, style.SOFT, "oo"),
    (Verdict.UNNEEDED, style.FAINT, ""),
)


@styled
def learning_curves(
    curves: Mapping[int, Mapping[int, float]],
    trained: Sequence[int],
    epochs: int,
    required: float | None = None,
) -> Figure:
    """Validation error by epoch of every trial.

    ``curves`` holds accuracies (0 to 1) by epoch, by trial. ``trained`` lists the trials that reached the
    last epoch, the best one first. ``required`` is the required accuracy, 0 to 1.
    """
    figure, axes = new_axes(3.4)
    style.plot_required(axes, required)
    stopped = [trial for trial in curves if trial not in trained]
    for trial in stopped:
        label = "stopped early" if trial == stopped[0] else "_"  # one entry in the legend
        style.plot_errors(axes, curves[trial], GREY, 0.8, alpha=0.7, label=label)
    for trial in trained[:0:-1]:
        label = "trained to the end" if trial == trained[-1] else "_"
        style.plot_errors(axes, curves[trial], SKY, 1.4, label=label)
    if trained:
        best = f"best: trial {trained[0]}" if len(curves) > 1 else f"trial {trained[0]}"
        style.plot_errors(axes, curves[trained[0]], BLUE, 2.4, label=best)
    axes.set_xlim(0.5, epochs + 0.5)
    axes.set_xlabel("Epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    style.error_axis(axes, "Validation")
    return figure


@styled
def accuracy_against(rows: Sequence[TrialRow], limit: int | None, cost: str = "n_params") -> Figure:
    """Validation error against a cost (`COST_NAMES`), with the Pareto front and the limit."""
    figure, axes = new_axes(3.4)
    stopped = [row for row in rows if row.verdict is Verdict.STOPPED and row.validation_accuracy is not None]
    trained = [row for row in rows if row.verdict is Verdict.TRAINED]
    if stopped:
        points = _points(stopped, cost)
        axes.scatter(*points, s=14, marker="x", linewidths=0.8, color=GREY, label="when stopped early")
    axes.scatter(*_points(trained, cost), s=36, color=BLUE, label="trained to the end", zorder=3)
    if trained:
        _plot_front(axes, trained, cost, limit)
    if limit is not None:
        axes.axvline(limit, color=RED, linestyle="--", linewidth=1.2, label=f"budget, {limit:,}")
    costs, _ = _points([*stopped, *trained], cost)
    if limit is None or min(costs, default=0) < limit / 2:  # else all points lie near the limit
        axes.set_xlim(left=0)
    style.cost_axis(axes, COST_NAMES[cost].capitalize())
    style.error_axis(axes, "Validation")
    return figure


def _plot_front(axes: Axes, trained: list[TrialRow], cost: str, limit: int | None) -> None:
    """Mark the Pareto front: rings around its points and a step line, up to the limit."""
    costs, errors = _points(pareto_front(trained, cost), cost)
    rings = axes.scatter(costs, errors, s=90, facecolor="none", edgecolor=ORANGE, linewidths=1.6, zorder=4)
    rings.set_clip_on(False)
    ends = [*costs, max(limit or 0, costs[-1])], [*errors, errors[-1]]
    axes.step(*ends, where="post", color=ORANGE, linewidth=1.4, label="Pareto front")


def _points(rows: Sequence[TrialRow], cost: str) -> tuple[list[int], list[float]]:
    """Costs and validation errors in percent."""
    costs = [getattr(row, cost) or 0 for row in rows]
    return costs, [error_percent(row.validation_accuracy or 0.0) for row in rows]


@styled
def importance_bars(importances: Mapping[str, float]) -> Figure:
    """A bar for every share of importance, the greatest at the top."""
    figure, axes = new_axes(0.7 + 0.24 * len(importances))
    bars = axes.barh(list(importances), list(importances.values()), color=BLUE, height=0.65)
    axes.bar_label(bars, fmt="{:.0%}", padding=4, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(importances.values()))
    axes.set_xlabel("Share of importance")
    axes.xaxis.set_major_locator(MaxNLocator(5, prune="upper"))
    axes.xaxis.set_major_formatter("{x:.0%}")
    return figure


@styled
def search_effort(rows: Sequence[TrialRow]) -> Figure:
    """Shares of trials, training images and seconds by the verdict of the trial."""
    sums: dict[str, Counter[Verdict]] = {"Trials": Counter(), "Images": Counter(), "Seconds": Counter()}
    for row in rows:
        sums["Trials"][row.verdict] += 1
        sums["Images"][row.verdict] += row.images
        sums["Seconds"][row.verdict] += round(row.seconds)
    figure, axes = new_axes(2.4)
    left = np.zeros(len(sums))
    for verdict, colour, hatch in VERDICT_STYLES:
        shares = np.array([counts[verdict] / max(counts.total(), 1) for counts in sums.values()])
        if shares.any():
            bars: dict[str, Any] = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.6}
            axes.barh(list(sums), shares, 0.6, left, label=verdict.value, **bars)
            left += shares
    axes.invert_yaxis()
    axes.set_yticks(range(3), [f"{name}\n{_abbreviated(counts.total())}" for name, counts in sums.items()])
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter("{x:.0%}")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _abbreviated(number: int) -> str:
    """1,234 unchanged; 12,345,678 as 12.3 M."""
    return f"{number / 1e6:,.1f} M" if number >= 1_000_000 else f"{number:,}"
