"""What a report describes: a study, a result of final training, or a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import optuna

from ..core.defaults import ANSWERS, MAX_PARAMS
from ..core.errors import InputError
from ..lookup import resolve
from ..models.architecture import Architecture
from ..models.cost import COST_NAMES, Budget, cost_of
from ..recipes.recipe import RECIPES, current_name, load_recipe
from ..study.results import StudyResults, TrialRow, retrained_of
from ..training.exports import read_exports
from ..training.requirements import Requirement, requirements, summarise
from ..training.run_store import RESULT, read_result


@dataclass(frozen=True)
class ReportItem:
    """One item of a report, with the data that it has."""

    name: str
    architecture: Architecture | None  # None: a study without a trained candidate
    study: StudyResults | None = None
    result: Mapping[str, Any] | None = None  # the content of ``result.json``
    images: np.ndarray | None = None  # (N, C, H, W) uint8: the mistakes of the first run, in their order
    about: str = ""
    elsewhere: float | None = None  # test accuracy of a study's winner whose result is not in this place
    zoo_accuracies: Sequence[float] = ()  # of a network of the zoo: test accuracies on MNIST, one per seed
    recipe_name: str = ""  # empty for a recipe without a name
    folder: Path | None = None  # of the result
    exports: Sequence[Mapping[str, Any]] = ()  # the records of ``exports.json`` there

    @property
    def best(self) -> TrialRow | None:
        """The winner of the study, or its leader before the finals."""
        return self.study.best if self.study else None

    @property
    def recipe(self) -> Mapping[str, Any] | None:
        """The recipe of the result or of the study's final trainings."""
        if self.result:
            return self.result["recipe"]  # type: ignore[no-any-return]
        if self.study and (asked := self.study.asked_for):
            return asked[1].recipe
        usual = self.study.metadata.get("recipe") if self.study else None
        if self.best and self.best.recipe:
            return self.best.recipe | ({"epochs": usual["epochs"]} if usual else {})
        return usual

    @property
    def data(self) -> str:
        """The name of the data set; empty for an untrained network."""
        if self.result:
            return str(self.result["data"]["name"])
        if self.study:
            return self.study.dataset
        return "mnist" if self.zoo_accuracies else ""

    @property
    def test_accuracy(self) -> Mapping[str, Any] | None:
        """The summary of the test accuracies, as in ``result.json``."""
        if self.result:
            return self.result["test_accuracy"]  # type: ignore[no-any-return]
        known = self.zoo_accuracies or ([] if self.elsewhere is None else [self.elsewhere])
        return asdict(summarise(known)) if known else None

    @property
    def data_note(self) -> str:
        """A warning about the data set; empty for a complete one."""
        if self.result and self.result["data"].get("note"):
            return str(self.result["data"]["note"])
        return str(self.study.metadata.get("data_note", "")) if self.study else ""


def item_of_study(study: optuna.Study, data_dir: Path | None) -> ReportItem:
    """A study, with the final result of the answer asked for if that still lies where the study says."""
    results = StudyResults.read(study)
    asked = results.asked_for
    network, result, exports, elsewhere = asked[1] if asked else results.best, None, [], None
    if network and (stored := retrained_of(results.metadata, network.key)):
        folder, elsewhere = Path(stored["folder"]), float(stored["test_accuracy"])
        if (folder / RESULT).is_file():
            result, exports = read_result(folder / RESULT), read_exports(folder)
    recipes = {name: load_recipe(name).model_dump(mode="json") for name in RECIPES}
    own_recipe = results.metadata["recipe"]
    front = f", for every number of {COST_NAMES[results.cost_metric]}" if results.cost_metric else ""
    return ReportItem(
        name=results.name,
        architecture=Architecture.make(network.architecture) if network else None,
        study=results,
        result=result,
        exports=exports,
        elsewhere=elsewhere,
        images=mistaken_images(result, data_dir) if result else None,
        about=f"Search on {results.dataset} for the {results.config.aim}, "
        f"with at most {results.config.budget}{front}.",
        recipe_name=next((name for name, fields in recipes.items() if fields == own_recipe), ""),
    )


def item_of_name(what: str, data_dir: Path | None) -> ReportItem:
    """A folder of results, a network of the zoo, or a network in a file; raises `InputError`."""
    if what in ANSWERS:
        raise InputError(f"report: {what!r} belongs to a study (use --study NAME)")
    found = resolve(what, others=["zoo"])
    if found.result is not None:
        return item_of_result(found.result, found.name, data_dir, found.folder)
    return ReportItem(
        name=found.name,
        architecture=found.architecture,
        about=found.about,
        zoo_accuracies=found.test_accuracies,
        recipe_name=found.recipe_name if found.test_accuracies else "",
    )


def item_of_result(
    result: Mapping[str, Any], name: str, data_dir: Path | None, folder: Path | None = None
) -> ReportItem:
    """The content of a ``result.json``."""
    return ReportItem(
        name=name,
        architecture=Architecture.make(result["architecture"]),
        result=result,
        images=mistaken_images(result, data_dir),
        about=f"{result['name']}, trained on all training images of {result['data']['name']}.",
        recipe_name=current_name(str(result.get("recipe_name") or "")),
        folder=folder,
        exports=read_exports(folder) if folder else (),
    )


def requirements_of(item: ReportItem) -> list[Requirement]:
    """The requirements; for a study also the limits of its budget. None for a study without a winner."""
    study = item.study
    if item.architecture and item.zoo_accuracies:
        epochs = load_recipe(item.recipe_name).epochs
        return requirements(
            item.architecture, epochs, fmean(item.zoo_accuracies), "mnist", Budget(MAX_PARAMS)
        )
    if study:
        if not (item.architecture and study.winner):
            return []
        test, epochs = item.test_accuracy, study.metadata["recipe"]["epochs"]
        accuracy, config = test["mean"] if test else None, study.config
        target = None if config.target is None else round(config.target / 100, 10)
        return requirements(item.architecture, epochs, accuracy, config.data, config.budget, target)
    return [Requirement(**stored) for stored in item.result["requirements"]] if item.result else []


def comparison_rows(items: Sequence[ReportItem]) -> list[dict[str, Any]]:
    """One row per item, the largest network first."""
    rows = [
        {
            "name": item.name,
            "data": item.data,
            "recipe": item.recipe_name,
            "validation": item.study.validation_accuracy if item.study else None,
            "test": item.test_accuracy,
            **(asdict(cost_of(item.architecture)) if item.architecture else {}),
        }
        for item in items
    ]
    return sorted(rows, key=lambda row: -row.get("params", 0))


def mistaken_images(result: Mapping[str, Any], data_dir: Path | None) -> np.ndarray | None:
    """The misclassified images (N, C, H, W) of the first run.

    None if the data set cannot be loaded, or has changed.
    """
    from ..data.dataset import load

    try:
        data = load(result["data"]["name"], data_dir)
    except InputError:
        return None
    if data.fingerprint != result["data"]["fingerprint"]:
        return None
    run, test = result["runs"][0], data.read_test()
    mistakes = run.get("mistakes", [])
    positions = [mistake["image"] for mistake in mistakes]
    if len(test) != run["test_images"] or max(positions, default=0) >= len(test):
        return None
    if test.labels[positions].tolist() != [mistake["label"] for mistake in mistakes]:
        return None
    return test.images[positions].numpy()
