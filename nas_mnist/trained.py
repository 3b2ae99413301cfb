"""Where a trained network is found: a file, a folder of results, the zoo, or the best of a study."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from .core.errors import InputError, NoResultError, stored_by_others
from .models import zoo
from .training.classifier import Classifier


def find_classifier(
    what: str, study: str = "nas_mnist", storage: str = "sqlite:///studies/nas_mnist.db"
) -> tuple[str, Classifier]:
    """A name for files, and the network that ``what`` stands for; raises `InputError`.

    ``what`` is a file ending in .safetensors, a folder that `reproduce` or a search wrote (of several seeds
    the lowest counts), a network of the zoo, or ``best``: the winner of a study. Raises `NoResultError`
    where that is not trained yet.
    """
    if what == "best":
        return f"{study}-best", Classifier.load(_winner(study, storage))
    path = Path(what)
    if what.endswith(".safetensors"):
        return path.stem, Classifier.load(path)
    if path.is_dir():
        return path.name, Classifier.load(_in_folder(path))
    if not what.endswith(".json") and what not in zoo.names():
        known = ", ".join(zoo.names())
        raise InputError(
            f"network: {what!r} is not known (use best, {known}, a folder of results, or a .safetensors file)"
        )
    zoo.load(what)
    with resources.as_file(resources.files("nas_mnist.models.zoo") / f"{what}.safetensors") as file:
        if not file.is_file():
            train = f"python -m nas_mnist.reproduce {what}"
            raise InputError(f"weights: the zoo has none for {what!r} (train it with {train})")
        return what, Classifier.load(file)


def _winner(study: str, storage: str) -> Path:
    from .study.study import load_study

    facts = load_study(storage, study).user_attrs
    winner = facts.get("winner")
    if winner is None:
        again = str(facts.get("command") or f"python -m nas_mnist.search --study {study}")
        again = again.replace(" --no-retrain", "")
        raise NoResultError(f"the winner of study {study!r} is not trained yet (continue with {again})")
    with stored_by_others(f"study: {study!r}"):
        folder = Path(winner["folder"])
    return _in_folder(folder)


def _in_folder(folder: Path) -> Path:
    files = list(folder.glob("weights-seed-*.safetensors"))
    if not files:
        below = sorted({str(file.parent) for file in folder.glob("*/weights-seed-*.safetensors")})
        below += [folder.name] if folder.name in zoo.names() else []  # its reports lie without weights
        advice = f" (use {' or '.join(below)})" if below else ""
        raise InputError(f"weights: {folder} holds no weights-seed-N.safetensors{advice}")
    return min(files, key=lambda file: (len(file.name), file.name))  # seed 2 before seed 10
