"""The section of a report item: everything that the page's template prints, worked out before.

Several sections are also compared: a table row each, and a figure of error against parameters.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from ..models.cost import cost_of
from ..models.published import RESULTS
from ..models.zoo import names as zoo_names
from ..recipes.recipe import RECIPES, current_name
from ..study.results import TrialRow, accuracies_of, best_rows
from . import result_plots
from .figures import figures_of
from .items import ReportItem, requirements_of

BEST = 10  # candidates in the page's table


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
    cost: Mapping[str, int]  # as in ``result.json``; empty without a network
    commands: Sequence[str]  # that reproduce the item
    metadata: Mapping[str, str]


def sections_of(items: Sequence[ReportItem]) -> list[Section]:
    """A section for every item; the second item of a name is called ``NAME (2)``."""
    names: Counter[str] = Counter()
    sections = []
    for item in items:
        names[item.name] += 1
        number = names[item.name]
        sections.append(_section(item if number == 1 else replace(item, name=f"{item.name} ({number})")))
    return sections


def _section(item: ReportItem) -> Section:
    study = item.study
    headline, sentence = _headline(item)
    means: dict[str, float] = {}
    if study:
        finals, finalists = study.finals, (row for row in study.rows if row.key in study.finals)
        means = {row.key or "": fmean(accuracies_of(row, finals, study.low_fidelity)) for row in finalists}
    return Section(
        item=item,
        figures=figures_of(item),
        headline=headline,
        sentence=sentence,
        requirements=requirements_of(item),
        best=best_rows(study.rows, BEST) if study else [],
        seed_means=means,
        cost=asdict(cost_of(item.architecture)) if item.architecture else {},
        commands=_commands(item),
        metadata=_metadata(item),
    )


def _headline(item: ReportItem) -> tuple[str, str]:
    """The main figure of an item, and a sentence about it."""
    winner = item.winner
    if test := item.test_accuracy:
        images = item.result["runs"][0]["test_images"] if item.result else 10_000
        seeds = "one seed" if test["runs"] == 1 else f"mean of {test['runs']} seeds"
        sentence = f"Accuracy on the {images:,} test images of {item.data} after the last epoch, {seeds}."
        if test["interval"]:
            sentence += " 95 % interval of the mean: {:.2%} to {:.2%}.".format(*test["interval"])
        return f"{test['mean']:.2%}", sentence + (f" Winner: trial {winner.trial}." if winner else "")
    if winner:
        sentence = f"Validation accuracy of trial {winner.trial} after its last epoch."
        return f"{winner.validation_accuracy or 0:.2%}", f"{sentence} The test images are unused."
    if item.study:
        return "no winner yet", "No candidate was trained to the last epoch."
    return (f"{cost_of(item.architecture).params:,}" if item.architecture else "", "parameters, not trained")


def _commands(item: ReportItem) -> list[str]:
    """The command lines that repeat and continue the work."""
    if item.study:
        metadata = item.study.metadata
        return [
            metadata.get("command") or _command("search", "--study", item.name),
            metadata.get("reproduce") or _command("reproduce", "best", "--seeds", 3, "--study", item.name),
        ]
    if item.zoo_accuracies:
        options = "--recipe", item.recipe_name, "--seeds", len(item.zoo_accuracies)
        return [_command("reproduce", item.name, *options)]
    if item.result:
        return [item.result.get("command") or _reproduce_command(item.result)]
    return []


def _command(name: str, *words: object) -> str:
    return shlex.join(["python", "-m", f"nas_mnist.{name}", *map(str, words)])


def _reproduce_command(result: Mapping[str, Any]) -> str:
    """The command of a result that does not hold it: one of a search, or of an earlier version."""
    seeds = [run["seed"] for run in result["runs"]]
    recipe = current_name(str(result.get("recipe_name", "")))
    options = ["--seeds", len(seeds), "--seed", min(seeds)]
    options += ["--recipe", recipe] if recipe in RECIPES or recipe.endswith(".toml") else []
    options += ["--engine", "torch"] if result.get("plain") else []
    return _command("reproduce", result["name"], *options)


def _metadata(item: ReportItem) -> dict[str, str]:
    """Data, seeds, device and versions."""
    study, result = item.study, item.result
    source = result or (study.metadata if study else None)
    if not source:
        return {}
    metadata = {
        "data": result["data"]["source"] if result else source["data"],
        "data fingerprint": result["data"]["fingerprint"] if result else None,
        "seeds": ", ".join(str(run["seed"]) for run in result["runs"]) if result else None,
        "search seed": study.metadata.get("seed") if study else None,
        "device": source["device"],
        "engine": "torch modules in float32" if result and result.get("plain") else None,
        "versions": ", ".join(f"{name} {number}" for name, number in source["versions"].items()),
    }
    return {name: str(value) for name, value in metadata.items() if value is not None}


def comparison_rows(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """One row per section, the largest network first; empty for a single section."""
    rows = [
        {
            "name": section.item.name,
            "data": section.item.data,
            "recipe": section.item.recipe_name,
            "validation": section.item.winner.validation_accuracy if section.item.winner else None,
            "test": section.item.test_accuracy,
            **section.cost,
        }
        for section in sections
    ]
    return sorted(rows, key=lambda row: -row.get("params", 0)) if len(rows) > 1 else []


def comparison_figure(sections: Sequence[Section]) -> Figure | None:
    """Test error against parameters; None unless at least two results share one data set."""
    tested = [section for section in sections if section.item.test_accuracy]
    if len(tested) < 2 or len({section.item.data for section in tested}) > 1:
        return None
    from_zoo = sum(bool(section.item.zoo_accuracies) for section in tested)
    return result_plots.comparison(
        names=[section.item.name for section in tested],
        params=[section.cost["params"] for section in tested],
        tests=[section.item.test_accuracy or {} for section in tested],
        published=RESULTS if from_zoo == len(tested) == len(zoo_names()) else (),  # beside the whole zoo only
    )
