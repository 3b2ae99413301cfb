"""One self-contained HTML page for one subject, or for several side by side.

A subject is what a report is about: a study, the training of one architecture with some seeds, or both.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from statistics import fmean
from typing import TYPE_CHECKING, Any

import jinja2
from matplotlib.figure import Figure

from ..data.class_names import class_names
from ..models.cost import cost_of
from ..models.published import PUBLISHED_LOG, RESULTS
from ..models.zoo import names as zoo_names
from ..recipes.recipe import RECIPES
from ..study.results import ENOUGH_TO_COMPARE, StudyResults, TrialRow, accuracies_of, best_rows
from ..training.final import required_accuracy, summarise
from . import plots
from . import style as canvas
from .diagram import draw
from .items import Subject, requirements_of
from .layers import layer_table, shared_weights
from .tables import counts_line

if TYPE_CHECKING:
    pass

BEST = 10  # candidates in the table
MISTAKES = 60  # digits that are shown at most


@dataclass(frozen=True)
class Chapter:
    """A subject with everything that the template prints of it."""

    subject: Subject
    figures: Mapping[str, Figure]
    headline: str
    sentence: str
    note: str  # of the data; empty for the whole data set
    requirements: Sequence[Mapping[str, Any]]
    best: Sequence[TrialRow]
    means: Mapping[
        str, float
    ]  # by key: mean validation accuracy of those that were trained with several seeds
    counts: str
    layers: str
    shared: str  # said of weights that several layers use; empty where none do
    cost: Mapping[str, int]
    again: Sequence[str]  # command lines
    facts: Mapping[str, str] = field(default_factory=dict)


def chapter(subject: Subject) -> Chapter:
    """Work out what is to be told of a subject."""
    study, result, architecture = subject.study, subject.result, subject.architecture
    headline, sentence = _headline(subject)
    data = result["data"] if result else {}
    note = data.get("note") or (study.facts.get("data_note", "") if study else "")
    cost = cost_of(architecture) if architecture else None
    return Chapter(
        subject,
        figures(subject),
        headline,
        sentence,
        note,
        requirements_of(subject),
        best_rows(study.rows, BEST) if study else [],
        _means(study) if study else {},
        counts_line(study.counts) if study else "",
        layer_table(architecture) if architecture else "",
        shared_weights(architecture) if architecture else "",
        {"params": cost.params, "macs": cost.macs, "peak_memory": cost.peak_memory} if cost else {},
        _again(subject),
        _facts(subject),
    )


def _means(study: StudyResults) -> dict[str, float]:
    scores = {
        row.key: accuracies_of(row, study.finals, study.short)
        for row in study.rows
        if row.key in study.finals
    }
    return {key: fmean(accuracies) for key, accuracies in scores.items() if key}


def figures(subject: Subject) -> dict[str, Figure]:
    """The plots that the subject has the data for, by file name."""
    drawn: dict[str, Figure] = {}
    study, result = subject.study, subject.result
    if subject.architecture:
        drawn["network"] = draw(subject.architecture)
    if study and study.curves:
        trained = [row.trial for row in best_rows(study.rows, len(study.rows))]
        epochs = study.epochs
        asked = required_accuracy(study.facts["identity"]["data"])
        drawn["learning-curves"] = plots.learning_curves(study.curves, trained, epochs, asked)
        limits = study.facts["identity"]
        drawn["accuracy-parameters"] = plots.accuracy_against(study.rows, limits["max_params"])
        if study.against == "macs":
            drawn["accuracy-cost"] = plots.accuracy_against(study.rows, limits.get("max_macs"), "macs")
        elif study.against == "peak_memory":
            limit = limits.get("max_memory")
            drawn["accuracy-cost"] = plots.accuracy_against(study.rows, limit, "peak_memory")
    if study and study.rows:
        drawn["spending"] = plots.spending(study.rows)
    if study and study.importances:
        first = list(study.importances.items())[:12]
        drawn["importances"] = plots.importance_bars({_in_words(name): share for name, share in first})
    if result:
        log = [correct / 10_000 for _, correct in PUBLISHED_LOG] if _is_published(result) else []
        scored = sum(row["test_accuracy"] is not None for row in result["runs"][0]["epochs"])
        if scored > 1:
            asked = required_accuracy(result["data"]["name"])
            drawn["test-curves"] = plots.seed_curves(result["runs"], log, asked)
        if "confusion" in result["runs"][0]:
            matrix = result["runs"][0]["confusion"]
            names = class_names(result["data"]["name"], len(matrix))
            drawn["confusion"] = plots.confusion(matrix, names)
            if subject.images is not None and len(subject.images):
                found = result["runs"][0]["mistakes"]
                shown = _spread(len(found), MISTAKES)  # test images may be sorted by class
                drawn["mistakes"] = plots.mistakes(
                    subject.images[shown], [found[position] for position in shown], names
                )
    return drawn


def _spread(number: int, most: int) -> list[int]:
    """At most so many positions of a list, evenly spread."""
    return [position * number // min(number, most) for position in range(min(number, most))]


def _is_published(result: Mapping[str, Any]) -> bool:
    """Whether there is a published log of the same network on the same data."""
    return bool(result["name"] == "reference" and result["data"]["name"] == "mnist")


def _in_words(choice: str) -> str:
    """``stage2.channels1`` as "stage 2, channels of block 1"."""
    place, _, key = choice.rpartition(".")
    place = re.sub(r"^stage(\d+)$", r"stage \1", place)
    key = re.sub(r"^channels(\d+)$", r"channels of block \1", key)
    return f"{place}, {key}" if place else key


def page(chapters: Sequence[Chapter]) -> str:
    """The page as HTML; it needs nothing but itself."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nas_mnist.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = lambda share, digits=2: f"{share:.{digits}%}"
    environment.filters["pretty"] = lambda value: json.dumps(value, indent=2)
    template = environment.get_template("page.html.j2")
    svgs = [
        {name: canvas.inline_svg(figure, f"{number}-{name}") for name, figure in one.figures.items()}
        for number, one in enumerate(chapters)
    ]
    together = comparison(chapters)
    return template.render(
        enough=ENOUGH_TO_COMPARE,
        chapters=list(zip(chapters, svgs, strict=True)),
        compared=compared(chapters),
        comparison=canvas.inline_svg(together, "comparison") if together else "",
        shown=MISTAKES,
    )


def comparison(chapters: Sequence[Chapter]) -> Figure | None:
    """The results of a report side by side; None for fewer than two on the same data."""
    tests = [(one, test) for one in chapters if (test := _test(one.subject))]
    if len(tests) < 2 or len({_data(one.subject) for one, _ in tests}) > 1:
        return None
    names = [one.subject.name for one, _ in tests]
    params = [one.cost["params"] for one, _ in tests]
    whole_zoo = sum(bool(one.subject.measured) for one, _ in tests) == len(tests) == len(zoo_names())
    beside = RESULTS if whole_zoo else ()
    return plots.comparison(names, params, [test for _, test in tests], beside)


def _test(subject: Subject) -> Mapping[str, Any] | None:
    """``test_accuracy`` as in ``result.json``, where there is one."""
    if subject.result:
        return subject.result["test_accuracy"]  # type: ignore[no-any-return]
    return asdict(summarise(subject.measured)) if subject.measured else None


def _data(subject: Subject) -> str:
    """The name of the data set."""
    if subject.result:
        return str(subject.result["data"]["name"])
    if subject.study:
        return str(subject.study.facts["identity"]["data"]).partition(" ")[0]
    return "mnist" if subject.measured else ""


def _headline(subject: Subject) -> tuple[str, str]:
    """The result in one figure, and in one sentence."""
    result, winner = subject.result, subject.winner
    if result:
        test = result["test_accuracy"]
        runs = test["runs"]
        seeds = "one seed" if runs == 1 else f"the mean of {runs} seeds"
        images, data = result["runs"][0]["test_images"], result["data"]["name"]
        sentence = f"of the {images:,} test images of {data} after the last epoch, {seeds}"
        if test["interval"]:
            low, high = (f"{end:.2%}" for end in test["interval"])
            sentence += f"; 95% interval of the mean {low} to {high}"
        return f"{test['mean']:.2%}", sentence + (f"; the winner is trial {winner.trial}" if winner else "")
    if winner:
        sentence = (
            f"of the validation images after the last epoch, trial {winner.trial}; the test images are unread"
        )
        return f"{winner.validation_accuracy or 0:.2%}", sentence
    if subject.study:
        return "no winner yet", "no candidate was trained to the last epoch"
    if subject.measured:
        test, runs = summarise(subject.measured), len(subject.measured)
        return f"{test.mean:.2%}", f"of MNIST's test images after the last epoch, the mean of {runs} seeds"
    return (
        f"{cost_of(subject.architecture).params:,}" if subject.architecture else "",
        "parameters; not trained",
    )


def compared(chapters: Sequence[Chapter]) -> list[dict[str, Any]]:
    """One row a chapter, where there are several; the largest network first."""
    rows: list[dict[str, Any]] = []
    for one in chapters if len(chapters) > 1 else ():
        test = _test(one.subject)
        winner = one.subject.winner
        rows.append(
            {
                "name": one.subject.name,
                "data": _data(one.subject),
                "recipe": one.subject.recipe_name,
                **one.cost,
                "validation": winner.validation_accuracy if winner else None,
                "test": test,
                "trials": one.counts,
            }
        )
    return sorted(rows, key=lambda row: -row.get("params", 0))


def _again(subject: Subject) -> list[str]:
    """The commands that repeat and continue what is reported."""
    lines = []
    module = ["python", "-m"]
    if subject.study:
        facts = subject.study.facts
        lines.append(
            facts.get("command") or shlex.join([*module, "nas_mnist.search", "--study", subject.name])
        )
        best = shlex.join([*module, "nas_mnist.reproduce", "best", "--seeds", "3", "--study", subject.name])
        lines.append(facts.get("reproduce") or best)
    elif subject.measured:
        seeds = ["--recipe", subject.recipe_name, "--seeds", str(len(subject.measured))]
        lines.append(shlex.join([*module, "nas_mnist.reproduce", subject.name, *seeds]))
    elif subject.result and subject.result.get("command"):
        command, runs = subject.result["command"], subject.result["runs"]
        lines.append(_with_seeds(command, len(runs)) if any("by" in run for run in runs) else command)
    elif subject.result:
        seeds = [run["seed"] for run in subject.result["runs"]]
        options = ["--seeds", str(len(seeds)), "--seed", str(min(seeds))]
        recipe = str(subject.result.get("recipe_name", ""))
        options += ["--recipe", recipe] if recipe in RECIPES or recipe.endswith(".toml") else []
        options += ["--plain"] if subject.result.get("plain") else []
        lines.append(shlex.join([*module, "nas_mnist.reproduce", str(subject.result["name"]), *options]))
    return lines


def _with_seeds(command: str, seeds: int) -> str:
    """The command of a folder's first seeds as one that gives all of them, those that were added too."""
    words = shlex.split(command)
    while "--seeds" in words:
        at = words.index("--seeds")
        del words[at : at + 2]
    return shlex.join([*(word for word in words if not word.startswith("--seeds=")), "--seeds", str(seeds)])


def _facts(subject: Subject) -> dict[str, str]:
    """Data, seeds, versions and device."""
    facts: dict[str, str] = {}
    study, result = subject.study, subject.result
    source = result or (study.facts if study else {})
    if not source:
        return facts
    data = source["data"]
    facts["data"] = data["source"] if isinstance(data, Mapping) else str(data)
    if isinstance(data, Mapping):
        facts["data, fingerprint"] = data["fingerprint"]
    if result:
        facts["seeds"] = ", ".join(str(run["seed"]) for run in result["runs"])
    if study and "seed" in study.facts:
        facts["seed of the search"] = str(study.facts["seed"])
    facts["device"] = str(source["device"])
    if result and result.get("plain"):
        facts["computed by"] = "torch's own modules in float32"
    facts["versions"] = _in_a_line(source["versions"])
    added = [(run["seed"], run["by"]) for run in result["runs"] if "by" in run] if result else []
    for (device, versions), runs in groupby(
        added, lambda one: (str(one[1]["device"]), _in_a_line(one[1]["versions"]))
    ):
        seeds = ", ".join(str(seed) for seed, _ in runs)
        facts[f"seeds added later: {seeds}"] = f"{device}; {versions}"
    return facts


def _in_a_line(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())
