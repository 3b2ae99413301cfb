"""The section of a report item: everything that the page's template prints, worked out before."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from ..models.cost import cost_of
from ..recipes.recipe import RECIPES, current_name
from ..study.results import StudyResults, TrialRow, accuracies_of, best_rows
from ..training.requirements import summarise
from .figures import figures_of
from .items import ReportItem, requirements_of
from .layer_table import layer_table, shared_weights
from .tables import counts_line

BEST = 10  # candidates in the page's table
_PYTHON = ("python", "-m")


@dataclass(frozen=True)
class Section:
    """A report item with everything that the template prints."""

    item: ReportItem
    figures: Mapping[str, Figure]  # by file name
    headline: str
    sentence: str  # below the headline
    requirements: Sequence[Mapping[str, Any]]  # as in ``result.json``
    best: Sequence[TrialRow]
    seed_means: Mapping[str, float]  # by key: mean validation accuracy of the finalists
    counts: str  # of trials by verdict
    layer_table: str
    shared_weights: str  # a remark; empty if no layers share weights
    cost: Mapping[str, int]
    commands: Sequence[str]  # that reproduce the item
    metadata: Mapping[str, str]


def sections_of(items: Sequence[ReportItem]) -> list[Section]:
    """A section for every item; items of the same name get a number."""
    return [section_of(item) for item in _with_distinct_names(items)]


def section_of(item: ReportItem) -> Section:
    """Work out the section of an item."""
    study, architecture = item.study, item.architecture
    headline, sentence = _headline(item)
    cost = cost_of(architecture) if architecture else None
    return Section(
        item=item,
        figures=figures_of(item),
        headline=headline,
        sentence=sentence,
        requirements=requirements_of(item),
        best=best_rows(study.rows, BEST) if study else [],
        seed_means=_seed_means(study) if study else {},
        counts=counts_line(study.counts) if study else "",
        layer_table=layer_table(architecture) if architecture else "",
        shared_weights=shared_weights(architecture) if architecture else "",
        cost={"params": cost.params, "macs": cost.macs, "peak_memory": cost.peak_memory} if cost else {},
        commands=_commands(item),
        metadata=_metadata(item),
    )


def _with_distinct_names(items: Sequence[ReportItem]) -> list[ReportItem]:
    """The items; the second one of a name is called ``NAME (2)``."""
    names: Counter[str] = Counter()
    found = []
    for item in items:
        names[item.name] += 1
        number = names[item.name]
        found.append(item if number == 1 else replace(item, name=f"{item.name} ({number})"))
    return found


def _seed_means(study: StudyResults) -> dict[str, float]:
    return {
        row.key: fmean(accuracies_of(row, study.finals, study.low_fidelity))
        for row in study.rows
        if row.key and row.key in study.finals
    }


def _headline(item: ReportItem) -> tuple[str, str]:
    """The main figure of an item, and a sentence about it."""
    winner = item.winner
    if item.result:
        return _test_headline(item.result, f" Winner: trial {winner.trial}." if winner else "")
    if winner:
        sentence = (
            f"Validation accuracy of trial {winner.trial} after its last epoch. The test images are unused."
        )
        return f"{winner.validation_accuracy or 0:.2%}", sentence
    if item.study:
        return "no winner yet", "No candidate was trained to the last epoch."
    if item.zoo_accuracies:
        test = summarise(item.zoo_accuracies)
        return f"{test.mean:.2%}", f"Test accuracy on MNIST after the last epoch, {_seeds(test.runs)}."
    return (f"{cost_of(item.architecture).params:,}" if item.architecture else "", "parameters, not trained")


def _test_headline(result: Mapping[str, Any], winner: str) -> tuple[str, str]:
    test, data = result["test_accuracy"], result["data"]["name"]
    images = result["runs"][0]["test_images"]
    sentence = (
        f"Accuracy on the {images:,} test images of {data} after the last epoch, {_seeds(test['runs'])}."
    )
    if test["interval"]:
        low, high = test["interval"]
        sentence += f" 95 % interval of the mean: {low:.2%} to {high:.2%}."
    return f"{test['mean']:.2%}", sentence + winner


def _seeds(runs: int) -> str:
    return "one seed" if runs == 1 else f"mean of {runs} seeds"


def _commands(item: ReportItem) -> list[str]:
    """The command lines that repeat and continue the work."""
    if item.study:
        metadata = item.study.metadata
        search = shlex.join([*_PYTHON, "nas_mnist.search", "--study", item.name])
        best = shlex.join([*_PYTHON, "nas_mnist.reproduce", "best", "--seeds", "3", "--study", item.name])
        return [metadata.get("command") or search, metadata.get("reproduce") or best]
    if item.zoo_accuracies:
        options = ["--recipe", item.recipe_name, "--seeds", str(len(item.zoo_accuracies))]
        return [shlex.join([*_PYTHON, "nas_mnist.reproduce", item.name, *options])]
    if item.result:
        return [item.result.get("command") or _reproduce_command(item.result)]
    return []


def _reproduce_command(result: Mapping[str, Any]) -> str:
    """The command of a result that does not hold it: one of a search, or of an earlier version."""
    seeds = [run["seed"] for run in result["runs"]]
    recipe = current_name(str(result.get("recipe_name", "")))
    options = ["--seeds", str(len(seeds)), "--seed", str(min(seeds))]
    options += ["--recipe", recipe] if recipe in RECIPES or recipe.endswith(".toml") else []
    options += ["--engine", "torch"] if result.get("plain") else []
    return shlex.join([*_PYTHON, "nas_mnist.reproduce", str(result["name"]), *options])


def _metadata(item: ReportItem) -> dict[str, str]:
    """Data, seeds, device and versions."""
    study, result = item.study, item.result
    source = result or (study.metadata if study else None)
    if not source:
        return {}
    if result:
        metadata = {
            "data": result["data"]["source"],
            "data fingerprint": result["data"]["fingerprint"],
            "seeds": ", ".join(str(run["seed"]) for run in result["runs"]),
        }
    else:
        metadata = {"data": str(source["data"])}
    if study and "seed" in study.metadata:
        metadata["search seed"] = str(study.metadata["seed"])
    metadata["device"] = str(source["device"])
    if result and result.get("plain"):
        metadata["engine"] = "torch modules in float32"
    metadata["versions"] = ", ".join(f"{name} {number}" for name, number in source["versions"].items())
    return metadata
