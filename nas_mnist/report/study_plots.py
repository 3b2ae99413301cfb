"""Plots of a study. Each function takes data and returns figures in the common `style`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..models.cost import COST_NAMES
from ..study.results import StudyResults, TrialRow, best_rows, pareto_front
from ..study.verdict import Verdict
from ..training.requirements import required_accuracy
from . import style
from .style import BLUE, GREY, ORANGE, RED, SKY, error_percent, new_axes, styled

MOST_IMPORTANCES = 12  # bars
MOST_CURVES = 150


def study_figures(study: StudyResults) -> dict[str, Figure]:
    """The figures of a study by file name, as far as it has data for them."""
    figures: dict[str, Figure] = {}
    config, rows = study.config, study.rows
    ended = {row.trial for row in rows if row.verdict in (Verdict.TRAINED, Verdict.STOPPED)}
    if curves := {trial: curve for trial, curve in study.curves.items() if trial in ended}:
        ranked = [row.trial for row in best_rows(rows, len(rows))]
        best = study.asked_for[1] if study.asked_for else study.best
        trained = sorted(ranked, key=lambda trial: best is None or trial != best.trial)
        required = required_accuracy(config.data)
        figures["learning-curves"] = learning_curves(
            curves, trained, study.epochs, required, study.best_title
        )
        figures["accuracy-parameters"] = accuracy_against(rows, config.budget.max_params)
        if config.cost_metric not in (None, "n_params"):
            limit = config.budget.limits.get(COST_NAMES[config.cost_metric])
            figures["accuracy-cost"] = accuracy_against(rows, limit, config.cost_metric)
    if study.importances:
        greatest = list(study.importances.items())[:MOST_IMPORTANCES]
        figures["importances"] = importance_bars(dict(greatest))
    return figures


@styled
def learning_curves(
    curves: Mapping[int, Mapping[int, float]],
    trained: Sequence[int],
    epochs: int,
    required: float | None = None,
    title: str = "",
) -> Figure:
    """Validation error by epoch of every trial.

    ``curves`` holds accuracies (0 to 1) by epoch, by trial. ``trained`` lists the trials that reached the
    last epoch, the best one first; it has this ``title``. Of either kind at most `MOST_CURVES` are drawn, of
    the trained ones the best. ``required`` is the required accuracy, 0 to 1.
    """
    figure, axes = new_axes(3.4)
    style.plot_required(axes, required)
    known = set(trained)
    stopped = [trial for trial in curves if trial not in known]
    trained, drawn = trained[:MOST_CURVES], stopped[:: -(-len(stopped) // MOST_CURVES) or 1]
    few = f" ({len(drawn):,} of {len(stopped):,} drawn)" if len(drawn) < len(stopped) else ""
    for trial in drawn:
        label = f"stopped early{few}" if trial == stopped[0] else "_"  # one entry in the legend
        style.plot_errors(axes, curves[trial], GREY, 0.8, alpha=0.7, label=label)
    for trial in trained[:0:-1]:
        label = "trained to the end" if trial == trained[-1] else "_"
        style.plot_errors(axes, curves[trial], SKY, 1.4, label=label)
    if trained:
        best = f"{title}: trial {trained[0]}" if title else f"trial {trained[0]}"
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
