"""Rich tables. Each function takes data and returns something to print."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..models.cost import cost_of
from ..models.published import PUBLISHED_LOG
from ..study.objective import Verdict
from ..study.results import Finals, TrialRow, accuracies_of, best_rows, seeds_of
from ..training.final import Requirement, Summary, summarise
from .items import Subject, requirements_of
from .layers import layer_table

if TYPE_CHECKING:
    from ..bench.replay import FrontWorth, Worth
    from ..models.zoo import Entry

SHOWN = 5  # candidates in the table of the best


def counts_line(counts: Counter[Verdict]) -> str:
    """How the trials ended, in one line."""
    rejected = counts[Verdict.OVER_BUDGET] + counts[Verdict.IMPOSSIBLE]
    parts = [
        f"{counts[Verdict.TRAINED]} trained to the end",
        f"{counts[Verdict.STOPPED]} stopped early",
        f"{rejected} rejected",
        f"{counts[Verdict.DUPLICATE]} duplicate",
    ]
    parts += [f"{counts[kind]} {kind}" for kind in (Verdict.FAILED, Verdict.INTERRUPTED) if counts[kind]]
    return ", ".join(parts)


def best_table(rows: Sequence[TrialRow], title: str = "Best candidates") -> Table:
    """Some candidates, in their order."""
    table = Table(title=f"{title} (chosen on the validation images)")
    for heading in ("", "Trial", "Validation", "Parameters", "Multiply-adds", "Memory", "Seconds"):
        table.add_column(heading, justify="right")
    for rank, row in enumerate(rows, 1):
        table.add_row(
            str(rank),
            str(row.trial),
            f"{row.validation_accuracy:.2%}",
            f"{row.n_params:,}",
            f"{row.macs:,}",
            f"{row.peak_memory:,}",
            f"{row.seconds:.0f}",
        )
    return table


def finals_table(rows: Sequence[TrialRow], finals: Finals, short: bool) -> Table:
    """The finalists, the winner first: validation accuracies seed by seed, and the mean that counts.

    ``short`` as in `accuracies_of`.
    """
    table = Table(title="The best trained again with other seeds (validation images)")
    first = "In the search, trained less" if short else "In the search"
    for heading in ("Trial", "Parameters", first, "Other seeds", "Mean"):
        table.add_column(heading, justify="right")
    for row in sorted(rows, key=lambda row: -fmean(accuracies_of(row, finals, short))):
        again = ", ".join(f"{accuracy:.2%}" for accuracy in seeds_of(row, finals))
        mean = fmean(accuracies_of(row, finals, short))
        in_search = f"{row.validation_accuracy or 0:.2%}"
        table.add_row(str(row.trial), f"{row.n_params:,}", in_search, again, f"{mean:.3%}")
    return table


def requirement_table(requirements: Sequence[Requirement], title: str) -> Table:
    """The requirements, what was reached, and the verdict."""
    table = Table(title=title)
    table.add_column("Requirement")
    table.add_column("Reached", justify="right")
    table.add_column("Met")
    for requirement in requirements:
        met = Text("yes", "green") if requirement.met else Text("NO", "bold red")
        table.add_row(requirement.what, requirement.got, met)
    return table


def zoo_table(entries: Sequence[Entry]) -> Table:
    """The zoo: what each network costs, and what it reached on MNIST with its own recipe."""
    title = "The zoo: accuracy on MNIST's test images after the last epoch"
    table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, padding=0)  # in 80 columns
    table.add_column("Name", no_wrap=True)
    for heading in ("Params", "MACs", "Recipe", "Seeds", "Mean %", "Std", "95 % interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    for entry in sorted(entries, key=lambda entry: -cost_of(entry.architecture).params):
        cost = cost_of(entry.architecture)
        row = [entry.name, f"{cost.params:,}", f"{cost.macs:,}", entry.recipe]
        if entry.test_accuracies:
            summary = summarise(entry.test_accuracies)
            row += [str(summary.runs), f"{100 * summary.mean:.3f}", *_spread(summary)]
        table.add_row(*row)
    return table


def runs_table(runs: Sequence[Mapping[str, Any]]) -> Table:
    """One row a seed: the result, and in a column of its own the best epoch, which was chosen on test."""
    table = Table(title="Test images, seed by seed")
    for heading in ("Seed", "Last epoch (the result)", "Test loss", "Seconds"):
        table.add_column(heading, justify="right")
    table.add_column("Best epoch (chosen on test, no result)", justify="right")
    for run in runs:
        best = run["best_epoch_chosen_on_test"]
        shown = f"{best['test_accuracy']:.2%} (epoch {best['epoch']})" if best else ""
        figures = (f"{run['test_accuracy']:.2%}", f"{run['test_loss']:.4f}", f"{run['seconds']:.0f}")
        table.add_row(str(run["seed"]), *figures, shown)
    return table


def published_table(run: Mapping[str, Any]) -> Table:
    """A run of the reference beside the published one, epoch by epoch."""
    table = Table(
        title=f"Epoch by epoch: seed {run['seed']} beside the published run (one run, unknown seed)"
    )
    for heading in ("Epoch", "Test loss", "Accuracy", "Published loss", "Published accuracy"):
        table.add_column(heading, justify="right")
    for epoch, (loss, correct) in zip(run["epochs"], PUBLISHED_LOG, strict=False):
        scored = epoch["test_loss"] is not None
        ours = (f"{epoch['test_loss']:.4f}", f"{epoch['test_accuracy']:.2%}") if scored else ("", "")
        table.add_row(str(epoch["epoch"]), *ours, f"{loss:.4f}", f"{correct / 10_000:.2%}")
    return table


def show(console: Console, subject: Subject) -> None:
    """What a report tells of a subject, on a screen."""
    console.rule(subject.name)
    data = subject.result["data"] if subject.result else {}
    if note := data.get("note") or (subject.study.facts.get("data_note") if subject.study else ""):
        console.print(f"[bold yellow]{escape(note)}[/bold yellow]")
    if subject.study:
        console.print(f"Trials: {counts_line(subject.study.counts)}")
        if best := best_rows(subject.study.rows, SHOWN):
            console.print(best_table(best))
        if front := subject.study.front:
            console.print(best_table(front, "The front"))
    if subject.architecture:
        console.print(layer_table(subject.architecture), markup=False)
    if subject.winner:
        console.print(f"The winner: trial {subject.winner.trial}")
    if subject.result:
        met = [Requirement(**requirement) for requirement in requirements_of(subject)]
        console.print(requirement_table(met, "The requirements (test images, last epoch)"))
        console.print(summary_line(Summary(**subject.result["test_accuracy"])))


def compared_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Several subjects side by side: `page.compared`."""
    title = "Side by side: test accuracy after the last epoch"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    for heading in ("Name", "Data", "Recipe"):
        table.add_column(heading, overflow="fold")
    for heading in ("Params", "Mean %", "95 % interval", "Seeds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        test = row["test"] or {}
        low, high = (f"{100 * end:.3f}" for end in test["interval"]) if test.get("interval") else ("", "")
        table.add_row(
            *(row["name"], row["data"], row["recipe"], f"{row['params']:,}" if "params" in row else ""),
            *(
                f"{100 * test['mean']:.3f}" if test else "",
                f"{low}-{high}".strip("-"),
                str(test.get("runs", "")),
            ),
        )
    return table


def summary_line(summary: Summary) -> str:
    """Mean, deviation and interval in one line."""
    if summary.std is None or summary.interval is None:
        return f"Test accuracy after the last epoch: {summary.mean:.2%} (one seed)"
    low, high = summary.interval
    return (
        f"Test accuracy after the last epoch: {summary.mean:.3%} mean of {summary.runs} seeds, "
        f"standard deviation {summary.std:.3%}, 95 % interval {low:.3%} to {high:.3%}"
    )


def facts_table(title: str, facts: Mapping[str, object]) -> Table:
    """Names and values."""
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int | float) else str(value))
    return table


def speed_table(name: str, found: Mapping[str, Any]) -> Table:
    """What `bench.measure.measure_training` found for one network."""
    table = Table(title=f"Training {name}, {found['params']:,} parameters, images a second")
    for heading in ("", "Median", "Slowest", "Fastest", "To plain"):
        table.add_column(heading, justify="right" if heading else "left")
    for contender, speed in found["images_per_second"].items():
        ratio = f"{found['to_plain'][contender]:.2f}"
        table.add_row(contender, *(f"{speed[key]:,}" for key in ("median", "min", "max")), ratio)
    table.caption = (
        f"ours : in memory {found['ours_to_in_memory']:.1f}, "
        f"convolutions {found['convolution_share_of_our_step']:.0%} of our step, "
        f"20 epochs in {found['seconds_for_20_epochs']:,} s"
    )
    return table


def ranks_table(found: Mapping[str, Mapping[str, float]]) -> Table:
    """What `bench.replay.ranks` found."""
    table = Table(title="Rank correlation with the accuracy after the last epoch")
    table.add_column("After")
    for signal in ("accuracy", "loss"):
        table.add_column(signal.capitalize(), justify="right")
    for after, signals in found.items():
        table.add_row(after, *(f"{signals[signal]:.2f}" for signal in ("accuracy", "loss")))
    return table


def worth_table(found: Mapping[str, Mapping[str, Worth]]) -> Table:
    """What `bench.replay.compare` found; ratios are to the first of all ways."""
    table = Table(title="Epochs trained until a candidate reaches the target (mean, its standard error)")
    for heading in ("Sampler", "Stopped", "Epochs", "Error", "Share of the first", "Reached at once"):
        table.add_column(heading, justify="left" if heading in ("Sampler", "Stopped") else "right")
    first = next(iter(next(iter(found.values())).values())).epochs
    for sampler, ways in found.items():
        for rule, one in ways.items():
            known = one.reached > 0
            effort = (f"{one.epochs:.0f}", f"{one.error:.0f}") if known else ("never", "")
            share = f"{one.epochs / first:.0%}" if known and math.isfinite(first) else ""
            table.add_row(sampler, rule, *effort, share, f"{one.reached:.0%}")
    return table


def fronts_table(found: Mapping[str, FrontWorth]) -> Table:
    """What `bench.replay.front_worth` found, by the cost that accuracy is weighed against."""
    table = Table(title="Accuracy against a cost: early stopping beside training everyone to the end")
    table.add_column("Against")
    for heading in ("Epochs", "The front has", "Of it trained", "Accuracy lost"):
        table.add_column(heading, justify="right")
    for cost, one in found.items():
        shares = f"{one.epochs:.0%}", f"{one.members}", f"{one.kept:.0%}"
        table.add_row(cost, *shares, f"{100 * one.lost:.2f} points")
    return table


def recipes_table(network: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """What `bench.recipes` found for a network: one row a recipe, the best mean first."""
    title = f"{network}: validation images after the last epoch"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("Recipe", overflow="fold")
    for heading in ("Seeds", "Mean %", "Std", "95 % interval", "Loss", "Training loss"):
        table.add_column(heading, justify="right", no_wrap=True)
    by_recipe: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_recipe.setdefault(row["digest"], []).append(row)

    def mean(recipe: str, what: str) -> float:
        return fmean(row[what] for row in by_recipe[recipe])

    for recipe in sorted(by_recipe, key=lambda recipe: -mean(recipe, "validation_accuracy")):
        summary = summarise([row["validation_accuracy"] for row in by_recipe[recipe]])
        losses = (f"{mean(recipe, what):.4f}" for what in ("validation_loss", "train_loss"))
        name = by_recipe[recipe][0]["recipe"]
        table.add_row(name, str(summary.runs), f"{100 * summary.mean:.3f}", *_spread(summary), *losses)
    return table


def _spread(summary: Summary) -> tuple[str, str]:
    """Standard deviation and interval in percent; nothing for a single run."""
    if summary.std is None or summary.interval is None:
        return "", ""
    low, high = summary.interval
    return f"{100 * summary.std:.3f}", f"{100 * low:.3f}-{100 * high:.3f}"


def networks_table(title: str, found: Mapping[str, Mapping[str, float]], style: str) -> Table:
    """What was measured of several networks, a column each; figures in a format."""
    table = Table(title=title)
    table.add_column("")
    for name in found:
        table.add_column(name, justify="right")
    for what in next(iter(found.values())):
        table.add_row(what, *(format(figures[what], style) for figures in found.values()))
    return table
