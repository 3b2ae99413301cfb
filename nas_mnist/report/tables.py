"""Tables on screen. Each function takes data and returns a rich table or a line; `print_item` prints them."""

from __future__ import annotations

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
from ..study.results import Finals, TrialRow, accuracies_of, best_rows, seeds_of
from ..study.verdict import Verdict
from ..training.requirements import Requirement, Summary, summarise
from .items import ReportItem, requirements_of
from .layer_table import layer_table

if TYPE_CHECKING:
    from ..models.zoo import Entry

SHOWN = 5  # candidates in the table of the best


def counts_line(counts: Counter[Verdict]) -> str:
    """The number of trials by verdict, in one line."""
    rejected = counts[Verdict.OVER_BUDGET] + counts[Verdict.IMPOSSIBLE]
    parts = [
        f"{counts[Verdict.TRAINED]} trained to the end",
        f"{counts[Verdict.STOPPED]} stopped early",
        f"{rejected} rejected",
        f"{counts[Verdict.DUPLICATE]} duplicate",
    ]
    parts += [f"{counts[kind]} {kind}" for kind in (Verdict.FAILED, Verdict.INTERRUPTED) if counts[kind]]
    return ", ".join(parts)


def candidates_table(rows: Sequence[TrialRow], title: str = "Best candidates") -> Table:
    """Candidates in the given order."""
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


def finals_table(rows: Sequence[TrialRow], finals: Finals, low_fidelity: bool) -> Table:
    """The finalists: validation accuracies by seed and their mean, the highest first.

    ``low_fidelity`` as in `accuracies_of`.
    """
    table = Table(title="Finalists trained with further seeds (validation images)")
    search = "Search (shorter training)" if low_fidelity else "Search"
    for heading in ("Trial", "Parameters", search, "Further seeds", "Mean"):
        table.add_column(heading, justify="right")
    for row in sorted(rows, key=lambda row: -fmean(accuracies_of(row, finals, low_fidelity))):
        further = ", ".join(f"{accuracy:.2%}" for accuracy in seeds_of(row, finals))
        mean = fmean(accuracies_of(row, finals, low_fidelity))
        in_search = f"{row.validation_accuracy or 0:.2%}"
        table.add_row(str(row.trial), f"{row.n_params:,}", in_search, further, f"{mean:.3%}")
    return table


def requirement_table(requirements: Sequence[Requirement], title: str) -> Table:
    """The requirements, the values reached, and whether they are met."""
    table = Table(title=title)
    table.add_column("Requirement")
    table.add_column("Reached", justify="right")
    table.add_column("Met")
    for requirement in requirements:
        met = Text("yes", "green") if requirement.met else Text("NO", "bold red")
        table.add_row(requirement.what, requirement.got, met)
    return table


def zoo_table(entries: Sequence[Entry]) -> Table:
    """The networks of the zoo: cost, recipe and test accuracy on MNIST. It fits into 80 columns."""
    title = "The zoo: test accuracy on MNIST after the last epoch"
    table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("Name", no_wrap=True)
    for heading in ("Params", "MACs", "Recipe", "Seeds", "Mean %", "Std", "95 % interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    for entry in sorted(entries, key=lambda entry: -cost_of(entry.architecture).params):
        cost = cost_of(entry.architecture)
        row = [entry.name, f"{cost.params:,}", f"{cost.macs:,}", entry.recipe]
        if entry.test_accuracies:
            summary = summarise(entry.test_accuracies)
            row += [str(summary.runs), f"{100 * summary.mean:.3f}", *std_and_interval(summary)]
        table.add_row(*row)
    return table


def std_and_interval(summary: Summary) -> tuple[str, str]:
    """Standard deviation and 95 % interval in percent; empty for a single run."""
    if summary.std is None or summary.interval is None:
        return "", ""
    low, high = summary.interval
    return f"{100 * summary.std:.3f}", f"{100 * low:.3f}-{100 * high:.3f}"


def runs_table(runs: Sequence[Mapping[str, Any]]) -> Table:
    """One row per seed. The best epoch has its own column: it was chosen on the test images."""
    table = Table(title="Test images, by seed")
    for heading in ("Seed", "Last epoch (the result)", "Test loss", "Seconds"):
        table.add_column(heading, justify="right")
    table.add_column("Best epoch (chosen on test, no result)", justify="right")
    for run in runs:
        best = run["best_epoch_chosen_on_test"]
        best_epoch = f"{best['test_accuracy']:.2%} (epoch {best['epoch']})" if best else ""
        figures = (f"{run['test_accuracy']:.2%}", f"{run['test_loss']:.4f}", f"{run['seconds']:.0f}")
        table.add_row(str(run["seed"]), *figures, best_epoch)
    return table


def published_table(run: Mapping[str, Any]) -> Table:
    """A run of the reference beside the published run, epoch by epoch."""
    table = Table(title=f"Seed {run['seed']} beside the published run (one run, unknown seed)")
    for heading in ("Epoch", "Test loss", "Accuracy", "Published loss", "Published accuracy"):
        table.add_column(heading, justify="right")
    for epoch, (loss, correct) in zip(run["epochs"], PUBLISHED_LOG, strict=False):
        scored = epoch["test_loss"] is not None
        ours = (f"{epoch['test_loss']:.4f}", f"{epoch['test_accuracy']:.2%}") if scored else ("", "")
        table.add_row(str(epoch["epoch"]), *ours, f"{loss:.4f}", f"{correct / 10_000:.2%}")
    return table


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Several items side by side; ``rows`` from `comparison.comparison_rows`."""
    title = "Comparison: test accuracy after the last epoch"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    for heading in ("Name", "Data", "Recipe"):
        table.add_column(heading, overflow="fold")
    for heading in ("Params", "Mean %", "95 % interval", "Seeds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        params = f"{row['params']:,}" if "params" in row else ""
        figures = ["", "", ""]
        if row["test"]:
            summary = Summary(**row["test"])
            figures = [f"{100 * summary.mean:.3f}", std_and_interval(summary)[1], str(summary.runs)]
        table.add_row(row["name"], row["data"], row["recipe"], params, *figures)
    return table


def summary_line(summary: Summary) -> str:
    """Mean, standard deviation and 95 % interval of the test accuracy in one line."""
    if summary.std is None or summary.interval is None:
        return f"Test accuracy after the last epoch: {summary.mean:.2%} (one seed)"
    low, high = summary.interval
    return (
        f"Test accuracy after the last epoch: {summary.mean:.3%} mean of {summary.runs} seeds, "
        f"standard deviation {summary.std:.3%}, 95 % interval {low:.3%} to {high:.3%}"
    )


def print_item(console: Console, item: ReportItem) -> None:
    """Print the tables of a report item."""
    console.rule(item.name)
    if item.data_note:
        console.print(f"[bold yellow]{escape(item.data_note)}[/bold yellow]")
    if item.study:
        console.print(f"Trials: {counts_line(item.study.counts)}")
        if best := best_rows(item.study.rows, SHOWN):
            console.print(candidates_table(best))
        if front := item.study.front:
            console.print(candidates_table(front, "Pareto front"))
    if item.architecture:
        console.print(layer_table(item.architecture), markup=False)
    if item.winner:
        console.print(f"The winner: trial {item.winner.trial}")
    if item.result:
        verdict = [Requirement(**requirement) for requirement in requirements_of(item)]
        console.print(requirement_table(verdict, "The requirements (test images, last epoch)"))
        console.print(summary_line(Summary(**item.result["test_accuracy"])))
