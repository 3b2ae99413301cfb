"""Tables of the benchmark. Each function takes the measurements and returns a rich table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from ..report.tables import std_and_interval
from ..training.requirements import summarise

if TYPE_CHECKING:
    from .replay import EffortToTarget, PrunedFront


def values_table(title: str, values: Mapping[str, object]) -> Table:
    """Names and values."""
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in values.items():
        table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int | float) else str(value))
    return table


def speed_table(network: str, found: Mapping[str, Any]) -> Table:
    """The result of `speed.measure_training` for one network."""
    table = Table(title=f"Training {network}, {found['params']:,} parameters, images a second")
    for heading in ("", "Median", "Slowest", "Fastest", "To plain"):
        table.add_column(heading, justify="right" if heading else "left")
    for contender, speed in found["images_per_second"].items():
        ratio = f"{found['to_plain'][contender]:.2f}"
        table.add_row(contender, *(f"{speed[key]:,}" for key in ("median", "min", "max")), ratio)
    table.caption = (
        f"ours : in memory {found['ours_to_in_memory']:.1f}, "
        f"20 epochs in {found['seconds_for_20_epochs']:,} s; plain is a PyTorch tutorial's loop"
    )
    return table


def correlations_table(found: Mapping[str, Mapping[str, float]]) -> Table:
    """The result of `replay.rank_correlations`."""
    table = Table(title="Rank correlation with the accuracy after the last epoch")
    table.add_column("After")
    for signal in ("accuracy", "loss"):
        table.add_column(signal.capitalize(), justify="right")
    for after, signals in found.items():
        table.add_row(after, *(f"{signals[signal]:.2f}" for signal in ("accuracy", "loss")))
    return table


def efforts_table(found: Mapping[str, Mapping[str, EffortToTarget]]) -> Table:
    """The result of `replay.compare_searches`; shares are of the first row."""
    table = Table(
        title="Epochs trained until a candidate reaches the target (mean, its standard error)",
        caption="share: of the first row; reached: replays that reach the target without a new start",
    )
    for heading in ("Sampler", "Pruning", "Epochs", "Error", "Share", "Reached"):
        table.add_column(heading, justify="left" if heading in ("Sampler", "Pruning") else "right")
    first = next(iter(next(iter(found.values())).values())).epochs
    for sampler, by_rule in found.items():
        for rule, one in by_rule.items():
            known = one.reached > 0
            effort = (f"{one.epochs:.0f}", f"{one.error:.0f}") if known else ("never", "")
            share = f"{one.epochs / first:.0%}" if known and math.isfinite(first) else ""
            table.add_row(sampler, rule, *effort, share, f"{one.reached:.0%}")
    return table


def fronts_table(found: Mapping[str, PrunedFront]) -> Table:
    """The results of `replay.pruned_front`, by cost."""
    table = Table(title="The front of accuracy against a cost: pruning beside training to the last epoch")
    table.add_column("Against")
    for heading in ("Epochs", "The front has", "Of it trained", "Accuracy lost"):
        table.add_column(heading, justify="right")
    for cost, one in found.items():
        shares = f"{one.epochs:.0%}", f"{one.members}", f"{one.kept:.0%}"
        table.add_row(cost, *shares, f"{100 * one.lost:.2f} points")
    return table


def recipes_table(network: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """The trainings of a network, a row a recipe, the best mean accuracy first."""
    title = f"{network}: validation images after the last epoch"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("Recipe", overflow="fold")
    for heading in ("Seeds", "Mean %", "Std", "95 % interval", "Loss", "Training loss"):
        table.add_column(heading, justify="right", no_wrap=True)
    by_recipe: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_recipe.setdefault(row["digest"], []).append(row)

    def mean(recipe: str, column: str) -> float:
        return fmean(row[column] for row in by_recipe[recipe])

    for recipe in sorted(by_recipe, key=lambda recipe: -mean(recipe, "validation_accuracy")):
        summary = summarise([row["validation_accuracy"] for row in by_recipe[recipe]])
        losses = (f"{mean(recipe, column):.4f}" for column in ("validation_loss", "train_loss"))
        name, accuracy = by_recipe[recipe][0]["recipe"], f"{100 * summary.mean:.3f}"
        table.add_row(name, str(summary.runs), accuracy, *std_and_interval(summary), *losses)
    return table
