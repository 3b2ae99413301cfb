"""Named architectures as data files: NAME.json, and NAME.safetensors with trained weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources

from ...core.errors import InputError, choices
from ..architecture import Architecture


@dataclass(frozen=True)
class Entry:
    """A named architecture, its recipe and its results."""

    name: str
    about: str
    architecture: Architecture
    recipe: str  # the name of the recipe that it is trained with by default
    test_accuracies: tuple[float, ...] = ()  # MNIST, this recipe, last epoch, one a seed; 0 to 1


def names() -> list[str]:
    """The names of the zoo, sorted."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(".json") for file in files if file.name.endswith(".json"))


def load(name: str) -> Entry:
    """The network called ``name``; raises `InputError` with the known names."""
    if name not in (known := names()):
        raise InputError(f"architecture: {name!r} is not known {choices(name, known)}")
    stored = json.loads(resources.files(__name__).joinpath(f"{name}.json").read_text())
    return Entry(
        name=name,
        about=stored["about"],
        architecture=Architecture.make(stored["architecture"]),
        recipe=stored["recipe"],
        test_accuracies=tuple(stored["test_accuracies"]),
    )
