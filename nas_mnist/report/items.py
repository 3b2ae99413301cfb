"""What a report is about, and where that comes from: studies, folders of results, the zoo."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..core.errors import InputError
from ..core.fileio import read_text
from ..models import zoo
from ..models.architecture import Architecture
from ..models.cost import COST_NAMES
from ..recipes.recipe import RECIPES, load_recipe
from ..study.results import StudyResults, TrialRow, budget_of
from ..training.final import requirements

if TYPE_CHECKING:
    import numpy as np
    import optuna

    from ..data.dataset import DataSet

MAX_RESULT_BYTES = 1 << 28  # a confusion of 1,000 classes has a million numbers
_FIELDS = frozenset(
    {
        "name",
        "key",
        "architecture",
        "recipe",
        "data",
        "device",
        "versions",
        "test_accuracy",
        "requirements",
        "runs",
    }
)


@dataclass(frozen=True)
class Subject:
    """What a report is about."""

    name: str
    architecture: Architecture | None  # None: the study has no winner yet
    study: StudyResults | None = None
    result: Mapping[str, Any] | None = None  # as in ``result.json``
    images: np.ndarray | None = None  # (N, H, W) uint8: the first run's mistakes, in their order
    about: str = ""
    measured: Sequence[float] = ()  # of a network of the zoo: accuracies on MNIST's test images, a seed each
    recipe_name: str = ""  # that it was trained with, where the recipe has one

    @property
    def winner(self) -> TrialRow | None:
        """The study's best candidate."""
        return self.study.winner if self.study else None

    @property
    def recipe(self) -> Mapping[str, Any] | None:
        """How it was trained."""
        if self.result:
            return self.result["recipe"]  # type: ignore[no-any-return]
        usual = self.study.facts.get("recipe") if self.study else None
        if self.winner and self.winner.recipe:
            return self.winner.recipe | ({"epochs": usual["epochs"]} if usual else {})
        return usual


def of_study(study: optuna.Study, data_dir: Path | None) -> Subject:
    """A study, with the result of its winner's retraining where that lies where the study says."""
    results = StudyResults.read(study)
    winner = results.winner
    architecture = Architecture.make(winner.architecture) if winner else None
    result = None
    if winner and (stored := results.facts.get("winner", {})).get("key") == winner.key:
        path = Path(stored["folder"]) / "result.json"
        result = read_result(path) if path.is_file() else None
    budget = budget_of(results.facts["identity"])
    weighed = f", for every number of {COST_NAMES[results.against]}" if results.against else ""
    data = results.facts["identity"]["data"].partition(" ")[0]
    about = f"A search on {data} for the best all-convolutional network with at most {budget}{weighed}."
    images = mistaken_images(result, data_dir) if result else None
    name = _recipe_name(results.facts["recipe"])
    return Subject(results.name, architecture, results, result, images, about, recipe_name=name)


def _recipe_name(recipe: Mapping[str, Any]) -> str:
    """What the package calls a recipe; empty for one of somebody's own."""
    named = {name: load_recipe(name).model_dump(mode="json") for name in RECIPES}
    return next((name for name, known in named.items() if known == recipe), "")


def of_name(what: str, data_dir: Path | None) -> Subject:
    """A folder that `reproduce` wrote, a network of the zoo, or an architecture in a JSON file."""
    folder = Path(what)
    if (folder / "result.json").is_file():
        return of_result(read_result(folder / "result.json"), folder.resolve().name, data_dir)
    if folder.is_dir():
        raise InputError(f"report: {what} holds no result.json (use a folder that reproduce has written)")
    entry = zoo.load(what)
    return Subject(
        entry.name,
        entry.architecture,
        about=entry.about,
        measured=entry.test_accuracies,
        recipe_name=entry.recipe if entry.test_accuracies else "",
    )


def of_result(result: Mapping[str, Any], name: str, data_dir: Path | None) -> Subject:
    """A trained architecture."""
    about = f"{result['name']}, trained on all training images of {result['data']['name']}."
    architecture = Architecture.make(result["architecture"])
    images, recipe = mistaken_images(result, data_dir), str(result.get("recipe_name") or "")
    return Subject(name, architecture, None, result, images, about, recipe_name=recipe)


def requirements_of(subject: Subject) -> list[dict[str, Any]]:
    """The verdict: of a study by its own budget, too, and by the validation images until the test is read."""
    winner, study, result = subject.winner, subject.study, subject.result
    if subject.measured and subject.architecture:
        epochs, mean = load_recipe(subject.recipe_name).epochs, fmean(subject.measured)
        return [asdict(one) for one in requirements(subject.architecture, epochs, mean, "mnist")]
    if study is None or winner is None or subject.architecture is None:
        return list(result["requirements"]) if result else []
    identity = study.facts["identity"]
    accuracy = result["test_accuracy"]["mean"] if result else winner.validation_accuracy or 0.0
    epochs = study.facts["recipe"]["epochs"]
    met = requirements(subject.architecture, epochs, accuracy, identity["data"], budget_of(identity))
    return [asdict(requirement) for requirement in met]


def read_result(path: Path) -> dict[str, Any]:
    """A ``result.json``; raises `InputError` where the file is none."""
    try:
        result = json.loads(read_text(path, "result", MAX_RESULT_BYTES))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"result: {path} is not JSON ({error})") from None
    if not isinstance(result, dict) or not set(result) >= _FIELDS or not result["runs"]:
        missing = ", ".join(sorted(_FIELDS - set(result))) if isinstance(result, dict) else "everything"
        raise InputError(f"result: {path} lacks {missing or 'runs'} (use a file that reproduce has written)")
    return result


def mistaken_images(result: Mapping[str, Any], data_dir: Path | None) -> np.ndarray | None:
    """The images (N, H, W) that the first run got wrong; None where this machine lacks the data set."""
    from ..data.dataset import load

    try:
        data = load(result["data"]["name"], data_dir)
    except InputError:
        return None
    return _pick(data, result) if data.fingerprint == result["data"]["fingerprint"] else None


def _pick(data: DataSet, result: Mapping[str, Any]) -> np.ndarray:
    positions = [mistake["image"] for mistake in result["runs"][0].get("mistakes", [])]
    images: np.ndarray = data.read_test().images[positions, 0].numpy()
    return images
