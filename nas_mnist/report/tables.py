"""Tables on screen. Each function takes data and returns a rich table or a line; `print_item` prints them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..models.cost import cost_of
from ..models.published import PUBLISHED_LOG
from ..study.race import Finalist, FinalScores
from ..study.results import TrialRow, best_rows
from ..study.verdict import Verdict
from ..training.requirements import Requirement, Summary
from .answers import answer_lines, stored_beside
from .items import ReportItem, requirements_of
from .layer_table import layer_table
from .progress import print_warning

SHOWN = 5  # candidates in the table of the best
SUMMARY = ["Seeds", "Mean %", "Std", "95 % interval"]  # headings of `summary_cells`


def new_table(
    title: str, left: Sequence[str], right: Sequence[str], compact: bool = False, **options: Any
) -> Table:
    """A table of the columns ``left``, of text, and the columns ``right``, of numbers.

    A ``compact`` one has no frame and breaks no number. ``options`` as of rich's `Table`.
    """
    if compact:
        options |= {"box": box.SIMPLE_HEAD, "pad_edge": False, "padding": (0, 0, 0, 1)}
    table = Table(title=title, **options)
    for heading in left:
        table.add_column(heading, overflow="fold")
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=compact)
    return table


def counts_line(counts: Counter[Verdict]) -> str:
    """The number of trials by verdict, in one line."""
    parts = {
        "trained to the end": counts[Verdict.TRAINED],
        "stopped early": counts[Verdict.STOPPED],
        "rejected": counts[Verdict.OVER_BUDGET] + counts[Verdict.IMPOSSIBLE],
        "duplicate": counts[Verdict.DUPLICATE],
    }
    parts |= {kind: counts[kind] for kind in (Verdict.FAILED, Verdict.INTERRUPTED) if counts[kind]}
    return ", ".join(f"{number} {kind}" for kind, number in parts.items())


def best_table(rows: Sequence[TrialRow]) -> Table:
    """The first of all trained candidates, which are sorted."""
    of = f" {SHOWN} of {len(rows):,}" if len(rows) > SHOWN else ""
    return candidates_table(rows[:SHOWN], f"Best{of} candidates")


def candidates_table(rows: Sequence[TrialRow], title: str) -> Table:
    """Candidates in the given order."""
    headings = ["Trial", "Accuracy", "Loss", "Params", "MACs", "Flash", "RAM", "Seconds"]
    table = new_table(f"{title} (validation images; bytes as int8)", ["Origin"], headings, compact=True)
    for row in rows:
        loss = "" if row.validation_loss is None else f"{row.validation_loss:.4f}"
        found = row.n_params, row.macs, row.flash, row.ram
        costs = ("" if cost is None else f"{cost:,}" for cost in found)
        numbers = f"{row.validation_accuracy:.2%}", loss, *costs, f"{row.seconds:.0f}"
        table.add_row(escape(row.origin), str(row.trial), *numbers)
    return table


def race_table(
    finalists: Sequence[Finalist], scores: FinalScores, best: Finalist, close: Sequence[Finalist]
) -> Table:
    """The finalists and their means over fresh seeds on the validation images, the lowest loss first.

    ``close``: those that did not drop out.
    """
    left = {one.key for one in close}
    headings = ["Params", "MACs", "Seeds", "Accuracy", "Loss", "Verdict"]
    title = "Finalists with fresh seeds (validation images); best is the lowest loss"
    table = new_table(title, ["Candidate", "Origin"], headings, compact=True)
    table.columns[0].no_wrap, table.columns[-1].no_wrap = True, False
    words = ["Origin", *(word for one in finalists for word in one.origin.split())]
    table.columns[1].min_width = min(max(map(len, words)), len("reference"))
    for one in sorted(finalists, key=lambda one: scores.loss(one.key)):
        cost = cost_of(one.architecture)
        numbers = f"{cost.params:,}", f"{cost.macs:,}", str(len(scores.seeds(one.key)))
        means = f"{scores.accuracy(one.key):.3%}", f"{scores.loss(one.key):.4f}"
        table.add_row(one.name, escape(one.origin), *numbers, *means, _verdict(one, scores, best, left))
    return table


def _verdict(one: Finalist, scores: FinalScores, best: Finalist, left: Collection[str]) -> str:
    if one.key == best.key:
        return "best"
    if one.key not in left:
        return "dropped out"  # its means are of fewer seeds
    if scores.is_as_good(one.key, best.key):
        return "as good"
    return "worse" if scores.is_worse(one.key, best.key) else "rather worse"


def requirement_table(requirements: Sequence[Requirement], title: str) -> Table:
    """The requirements, the values reached, and whether they are met."""
    table = new_table(title, ["Requirement"], ["Reached", "Met"])
    for requirement in requirements:
        met = Text("yes", "green") if requirement.met else Text("NO", "bold red")
        table.add_row(requirement.what, requirement.got, met)
    return table


def summary_cells(summary: Summary) -> list[str]:
    """Runs, mean, standard deviation and 95 % interval; in percent, the last two empty for a single run."""
    cells = [str(summary.runs), f"{100 * summary.mean:.3f}"]
    if summary.std is None or summary.interval is None:
        return [*cells, "", ""]
    low, high = summary.interval
    return [*cells, f"{100 * summary.std:.3f}", f"{100 * low:.3f}-{100 * high:.3f}"]


def runs_table(runs: Sequence[Mapping[str, Any]]) -> Table:
    """One row per seed. The best epoch has its own column: it was chosen on the test images."""
    headings = ["Seed", "Last epoch (the result)", "Test loss", "Seconds"]
    scored_often = any(run["best_epoch_chosen_on_test"] for run in runs)
    table = new_table(
        "Test images, by seed", [], headings + ["Best epoch (chosen on test, no result)"] * scored_often
    )
    for run in runs:
        best = run["best_epoch_chosen_on_test"]
        best_epoch = [f"{best['test_accuracy']:.2%} (epoch {best['epoch']})"] if best else []
        figures = f"{run['test_accuracy']:.2%}", f"{run['test_loss']:.4f}", f"{run['seconds']:.0f}"
        table.add_row(str(run["seed"]), *figures, *best_epoch)
    return table


def published_table(run: Mapping[str, Any], recipe: str) -> Table:
    """A run of the reference, by the recipe of this name, beside the published run, epoch by epoch."""
    title = f"Seed {run['seed']}, recipe {recipe}, beside the published run (one run, unknown seed)"
    headings = ["Epoch", "Test loss", "Accuracy", "Published loss", "Published accuracy"]
    caption = "" if recipe == "published" else "The published training: --recipe published"
    table = new_table(title, [], headings, caption=caption or None)
    for epoch, (loss, correct) in zip(run["epochs"], PUBLISHED_LOG, strict=False):
        scored = epoch["test_loss"] is not None
        ours = (f"{epoch['test_loss']:.4f}", f"{epoch['test_accuracy']:.2%}") if scored else ("", "")
        table.add_row(str(epoch["epoch"]), *ours, f"{loss:.4f}", f"{correct / 10_000:.2%}")
    return table


def comparison_table(rows: Sequence[Mapping[str, Any]], title: str = "Comparison") -> Table:
    """Several networks side by side; ``rows`` from `items.comparison_rows`. The zoo fits into 80 columns."""
    mixed = len({row["data"] for row in rows}) > 1  # several data sets
    names = ["Name", "Data"] if mixed else ["Name"]
    numbers = ["Params", "MACs", "Flash", "RAM", "Recipe", "Runs", "Mean %", "95 % interval"]
    table = new_table(f"{title}: test accuracy after the last epoch", names, numbers, compact=True)
    for row in rows:
        costs = [f"{row['params']:,}", f"{row['macs'] / 1e6:.2f}M"] if "params" in row else ["", ""]
        costs += [f"{row[cost] / 1024:.1f}K" if cost in row else "" for cost in ("flash", "ram")]
        runs, mean, _, interval = summary_cells(Summary(**row["test"])) if row["test"] else [""] * 4
        names = [row["name"], row["data"]] if mixed else [row["name"]]
        table.add_row(*names, *costs, row["recipe"], runs, mean, interval)
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
    print_warning(console, item.data_note)
    if item.study:
        console.print(f"Trials: {counts_line(item.study.counts)}")
        if rows := best_rows(item.study.rows, len(item.study.rows)):
            console.print(best_table(rows))
        if front := item.study.front:
            console.print(candidates_table(front, "Pareto front"))
    if item.architecture:
        console.print(layer_table(item.architecture), markup=False)
    if item.study:
        for line in [*answer_lines(item.study), *stored_beside(item.study)]:
            console.print(line, soft_wrap=True, markup=False)
    if item.result:
        print_result(console, item, item.result)


def print_result(console: Console, item: ReportItem, result: Mapping[str, Any]) -> None:
    """Print the tables of an item's final trainings; ``result`` is the content of ``result.json``."""
    console.print(runs_table(result["runs"]))
    summary = Summary(**result["test_accuracy"])
    of = "one seed" if summary.runs == 1 else "mean of the seeds"
    if asked := requirements_of(item):
        console.print(requirement_table(asked, f"The requirements (test images, last epoch, {of})"))
    console.print(summary_line(summary))
