"""The section of a report item: everything that the page's template prints, worked out before.

Several sections are also compared: a table row each, and a figure of error against parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean

from matplotlib.figure import Figure

from ..models.cost import cost_of
from ..models.published import RESULTS
from ..models.zoo import names as zoo_names
from ..study.race import Answer
from ..study.results import TrialRow, best_rows
from ..training.requirements import Requirement
from .answers import (
    TITLES,
    command,
    export_command,
    reproduce_commands,
    retrained_accuracies,
    stored_beside,
    told_answers,
)
from .diagram import draw_network
from .items import ReportItem, comparison_rows, requirements_of
from .progress import counted
from .result_plots import comparison, result_figures
from .study_plots import study_figures

BEST = 10  # candidates in the page's table


@dataclass(frozen=True)
class Section:
    """A report item with everything that the template prints."""

    item: ReportItem
    figures: Mapping[str, Figure]  # by file name
    headline: str
    sentence: str  # below the headline
    requirements: Sequence[Requirement]
    best: Sequence[TrialRow]
    seed_means: Mapping[str, float]  # by key: mean validation accuracy of the finalists
    answers: Mapping[str, Answer]  # of a search, by title
    tested: Mapping[str, float]  # by key, the test accuracies of the answers
    beside: Sequence[str]  # sentences that stand below the answers
    cost: Mapping[str, int]  # as in ``result.json``; empty without a network
    commands: Sequence[str]  # that reproduce the item
    metadata: Mapping[str, str]


def sections_of(items: Sequence[ReportItem]) -> list[Section]:
    """A section for every item; the second item of a name is called ``NAME (2)``."""
    names: Counter[str] = Counter()
    sections = []
    for item in items:
        names[item.name] += 1
        number, section = names[item.name], _section(item)
        titled = item if number == 1 else replace(item, name=f"{item.name} ({number})")
        sections.append(replace(section, item=titled))
    return sections


def _section(item: ReportItem) -> Section:
    study = item.study
    headline, sentence = _headline(item)
    return Section(
        item=item,
        figures=_figures(item),
        headline=headline,
        sentence=sentence,
        requirements=requirements_of(item),
        best=best_rows(study.rows, BEST) if study else [],
        seed_means={key: fmean(found.values()) for key, found in study.finals.items()} if study else {},
        answers={TITLES[name]: answer for name, answer in told_answers(study.answers)} if study else {},
        tested=retrained_accuracies(study) if study else {},
        beside=stored_beside(study) if study else [],
        cost=asdict(cost_of(item.architecture)) if item.architecture else {},
        commands=_commands(item),
        metadata=_metadata(item),
    )


def _figures(item: ReportItem) -> dict[str, Figure]:
    figures = {"network": draw_network(item.architecture)} if item.architecture else {}
    figures |= study_figures(item.study) if item.study else {}
    return figures | (result_figures(item.result, item.images) if item.result else {})


def _headline(item: ReportItem) -> tuple[str, str]:
    """The main figure of an item, and a sentence about it."""
    study, best = item.study, item.best
    asked = study.asked_for if study else None
    if test := item.test_accuracy:
        known = item.result["runs"][0]["test_images"] if item.result else 10_000
        images = "" if item.elsewhere is not None and not item.result else f"{known:,} "
        seeds = "one seed" if test["runs"] == 1 else f"mean of {test['runs']} seeds"
        sentence = f"Accuracy on the {images}test images of {item.data} after the last epoch, {seeds}."
        if test["interval"]:
            sentence += " 95 % interval of the mean: {:.2%} to {:.2%}.".format(*test["interval"])
        of = f"{TITLES[asked[0]]}: {asked[1].name}." if asked else ""
        if study and best and not asked:  # of an earlier version
            of = f"{study.best_title.capitalize()}: trial {best.trial}."
        return f"{test['mean']:.2%}", f"{sentence} {of}".strip()
    if study and asked:
        name, answer = asked
        seeds = f", mean of {counted(answer.seeds, 'fresh seed')}" if answer.seeds else ""
        sentence = f"Validation accuracy after the last epoch{seeds}. {TITLES[name]}: {answer.name}."
        return f"{answer.validation_accuracy:.2%}", f"{sentence} The test images are unused."
    if study and best:
        of = f"the {study.best_title}, trial {best.trial}"
        seeds = " over fresh seeds" if study.winner and study.finals.get(best.key or "") else ""
        state = "" if study.winner else " It leads the search, which has no winner yet."
        sentence = f"Validation accuracy of {of}, after its last epoch{seeds}.{state}"
        return f"{study.validation_accuracy or 0:.2%}", f"{sentence} The test images are unused."
    if study:
        return "no winner yet", "No candidate was trained to the last epoch."
    return (f"{cost_of(item.architecture).params:,}" if item.architecture else "", "parameters, not trained")


def _commands(item: ReportItem) -> list[str]:
    """The command lines that repeat and continue the work."""
    if item.study:
        search = item.study.metadata.get("command") or command("search", "--study", item.name)
        return [search, *reproduce_commands(item.study).values(), *filter(None, [export_command(item.study)])]
    if item.zoo_accuracies:
        seeds = len(item.zoo_accuracies)
        return [command("reproduce", item.name, "--recipe", item.recipe_name, "--seeds", seeds)]
    if item.result:  # of a search or of an earlier version: without its command
        runs = item.result["runs"]
        options = ["--seeds", len(runs), "--seed", min(run["seed"] for run in runs)]
        options += ["--engine", "torch"] if item.result.get("plain") else []
        return [item.result.get("command") or command("reproduce", item.folder or item.name, *options)]
    return []


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


def comparison_figure(items: Sequence[ReportItem]) -> Figure | None:
    """Test error against parameters; None unless at least two results share one data set."""
    rows = [row for row in comparison_rows(items) if row["test"]]
    if len(rows) < 2 or len({row["data"] for row in rows}) > 1:
        return None
    from_zoo = sum(bool(item.zoo_accuracies) for item in items)
    return comparison(rows, RESULTS if from_zoo == len(rows) == len(zoo_names()) else ())  # beside all of it
