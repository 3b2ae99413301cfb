"""One resolver for the network that a user names: NAME, an answer of a search, FILE or FOLDER.

=====================  ==============================================================================
NAME                   a network of the zoo
``best``               the best answer of a study, or with ``trial`` one of its trials
``smaller``            its smaller answer that is as good
``smallest``           its smallest answer that meets the target
FILE.json              an architecture, alone or as ``architecture`` beside other fields
FILE.safetensors       a trained network with its architecture
FOLDER                 the results that `reproduce` or a search wrote
=====================  ==============================================================================

Loads torch only to read a FILE.safetensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.defaults import ANSWERS, DEFAULT_STORAGE, DEFAULT_STUDY, MAX_PARAMS
from .core.errors import InputError, NoResultError, choices, foreign_data
from .core.fileio import read_text
from .models import zoo
from .models.architecture import Architecture
from .recipes.recipe import Recipe, current_name, load_recipe, stored_recipe
from .training.requirements import required_accuracy
from .training.run_store import RESULT, read_result, weights_file

if TYPE_CHECKING:
    from .training.classifier import Classifier


@dataclass(frozen=True)
class NamedNetwork:
    """The network that a name stands for."""

    name: str  # for people, and for the folders and files that are made of it
    architecture: Architecture
    recipe: Recipe = field(default_factory=lambda: load_recipe("default"))  # unless another is asked for
    recipe_name: str = "default"
    dataset: str = "mnist"  # unless another is asked for
    about: str = ""
    is_leader: bool = False  # ``best`` of a study without a winner
    budget: int | None = None  # parameters: of the search that found it, of the zoo the exercise's
    test_accuracies: tuple[float, ...] = ()  # of the zoo: MNIST, this recipe, last epoch, one a seed; 0 to 1
    folder: Path | None = None  # of the results, for a FOLDER
    result: Mapping[str, Any] | None = None  # the content of its ``result.json``
    weights: Path | None = None  # a safetensors file; None: without trained weights

    def on(self, dataset: str) -> NamedNetwork:
        """The same network for a data set: the exercise is MNIST's, so that others leave out its budget."""
        is_exercise = self.name not in zoo.names() or required_accuracy(dataset) is not None
        return self if is_exercise else replace(self, budget=None)


def resolve(
    what: str,
    study: str = DEFAULT_STUDY,
    storage: str = DEFAULT_STORAGE,
    trial: int | None = None,
    others: Sequence[str] = tuple(ANSWERS),
) -> NamedNetwork:
    """The network called ``what``; ``study`` and ``storage`` count for answers, ``trial`` for ``best``.

    ``others``: what the caller takes beside names of the zoo, for the advice.

    A name of the zoo goes before a folder of the same name. Raises `InputError`, and `NoResultError` if the
    study has no winner.
    """
    if what in ANSWERS:
        return _from_study(what, study, storage, trial)
    if what in zoo.names():
        return _from_zoo(what)
    if Path(what).is_dir():
        return _from_folder(Path(what))
    if what.endswith(".json"):
        return _from_json(Path(what))
    if what.endswith(".safetensors"):
        return _from_weights(Path(what))
    more = ", a .json or .safetensors file, or a folder of results"
    advice = choices(what, [*zoo.names(), *others], more)
    raise InputError(f"network: {what[:80]!r} is not known {advice}")


def find_classifier(
    what: str, study: str = DEFAULT_STUDY, storage: str = DEFAULT_STORAGE
) -> tuple[str, Classifier]:
    """A name for files, and the trained network called ``what``; raises as `find_weights` does."""
    from .training.classifier import Classifier

    name, weights = find_weights(what, study, storage)
    return name, Classifier.load(weights)


def find_weights(what: str, study: str = DEFAULT_STUDY, storage: str = DEFAULT_STORAGE) -> tuple[str, Path]:
    """A name for files, and the safetensors file of the network called ``what`` (the lowest seed).

    Raises `InputError`, and `NoResultError` if the winner of the study is not trained yet.
    """
    found = resolve(what, study, storage)
    if found.weights is not None:
        return found.name, found.weights
    if what in ANSWERS:
        more = "to its end" if found.is_leader else "without --no-retrain"
        raise NoResultError(f"{found.about}, is not trained yet (continue the search {more})")
    train = f"python -m nas_mnist.reproduce {what}"
    raise InputError(f"weights: {what} has none (train it with {train}, then use the folder of results)")


def _from_zoo(name: str) -> NamedNetwork:
    entry = zoo.load(name)
    file = Path(str(resources.files(zoo) / f"{name}.safetensors"))
    return NamedNetwork(
        name=name,
        architecture=entry.architecture,
        recipe=load_recipe(entry.recipe),
        recipe_name=current_name(entry.recipe),
        about=entry.about,
        budget=MAX_PARAMS,
        test_accuracies=entry.test_accuracies,
        weights=file if file.is_file() else None,
    )


def _from_json(path: Path) -> NamedNetwork:
    text = read_text(path, str(path))
    try:
        architecture = Architecture.from_json(text)
    except InputError as error:
        raise InputError(f"{path}: {str(error).removeprefix('architecture: ')}") from None
    return NamedNetwork(path.stem, architecture)


def _from_weights(path: Path) -> NamedNetwork:
    from .training.classifier import Classifier

    classifier = Classifier.load(path)
    return NamedNetwork(path.stem, classifier.model.architecture, dataset=classifier.data, weights=path)


def _from_folder(folder: Path) -> NamedNetwork:
    if not (folder / RESULT).is_file():
        below = sorted(str(file.parent) for file in folder.glob(f"*/{RESULT}"))
        advice = f"use {' or '.join(below)}" if below else "use a folder of results"
        raise InputError(f"network: {folder} holds no {RESULT} ({advice})")
    result = read_result(folder / RESULT)
    with foreign_data(f"result: {folder}"):
        return NamedNetwork(
            name=folder.resolve().name,
            architecture=Architecture.make(result["architecture"]),
            recipe=stored_recipe(result["recipe"], f"{folder}: recipe"),
            recipe_name=current_name(str(result.get("recipe_name") or f"of {folder}")),
            dataset=str(result["data"]["name"]),
            budget=result.get("budget"),
            folder=folder,
            result=result,
            weights=_lowest_seed(folder, result),
        )


def _lowest_seed(folder: Path, result: Mapping[str, Any]) -> Path | None:
    files = [folder / weights_file(seed) for seed in sorted(int(run["seed"]) for run in result["runs"])]
    return next((file for file in files if file.is_file()), None)


def _from_study(what: str, study: str, storage: str, trial: int | None) -> NamedNetwork:
    """An answer of a study (before its finals ``best`` is the leader), or one of its trials."""
    from .study.results import StudyResults, retrained_of
    from .study.study import load_study

    stored = load_study(storage, study)
    with foreign_data(f"study: {study!r}"):
        results = StudyResults.read(stored)
        answer, row = results.answers.get(ANSWERS[what]), results.best
    metadata, name = stored.user_attrs, what
    if trial is not None:
        answer, name = None, f"trial-{trial}"
        row = next((one for one in results.rows if one.trial == trial and one.verdict.counts), None)
        if row is None:
            raise InputError(f"--trial: {trial} is no trial of study {study!r} that was trained")
    elif answer is None and what != "best":
        known = [one for one, title in ANSWERS.items() if title in results.answers]
        has = f"use {' or '.join(known)}" if known else "its finals are not over"
        raise NoResultError(f"study {study!r} has no answer {what!r} ({has})")
    chosen = answer or row
    if chosen is None:
        raise NoResultError(f"study {study!r} has no candidate that was trained to the last epoch")
    with foreign_data(f"study: {study!r}"):
        usual = metadata["recipe"]
        recipe = stored_recipe(chosen.recipe or usual, f"study {study!r}: recipe").with_epochs(
            usual["epochs"]
        )
        dataset = results.dataset
        retrained, weights = retrained_of(metadata, chosen.key), None
        if retrained and (file := Path(retrained["folder"]) / RESULT).is_file():
            weights = _lowest_seed(file.parent, read_result(file))
    is_leader, said = trial is None and results.winner is None, what if trial is None else "one"
    best = results.answers.get("most_accurate")
    if what == "smaller" and answer is not None and best is not None and answer.key == best.key:
        said = "smaller, which is the best one itself,"
    network = answer.name if answer else f"trial {chosen.trial}"
    no_winner = f"leader of study {study!r}, which has no winner yet: {network}"
    return NamedNetwork(
        name=f"{study}-{name}",
        architecture=Architecture.make(chosen.architecture),
        recipe=recipe,
        recipe_name=f"of study {study!r}",
        dataset=dataset,
        about=no_winner if is_leader else f"{said} of study {study!r}, {network}",
        is_leader=is_leader,
        budget=results.config.max_params,
        weights=weights,
    )
