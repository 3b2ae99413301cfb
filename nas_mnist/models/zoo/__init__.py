"""Named architectures, as data files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ...core.errors import InputError
from ...core.fileio import read_text
from ..architecture import Architecture


def names() -> list[str]:
    """The names of the zoo, sorted."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(".json") for file in files if file.name.endswith(".json"))


@dataclass(frozen=True)
class Entry:
    """A named architecture and the name of the recipe that it is trained with unless another is asked for."""

    name: str
    about: str
    architecture: Architecture
    recipe: str
    test_accuracies: tuple[float, ...] = ()  # of MNIST with that recipe, last epoch, a seed each; 0 to 1
    budget: int | None = None  # of parameters, in the search that found it


def load(name: str) -> Entry:
    """The entry called ``name`` in the zoo, or an architecture in a JSON file; raises `InputError`."""
    if name.endswith(".json"):
        text = read_text(Path(name), name)
        try:
            architecture = Architecture.from_json(text)
        except InputError as error:
            raise InputError(f"{name}: {str(error).removeprefix('architecture: ')}") from None
        return Entry(Path(name).stem, "", architecture, "default")
    if name not in names():
        known = ", ".join(names())
        raise InputError(
            f"architecture: {name!r} is not known (use {known}, a .json file or a folder of results)"
        )
    stored = json.loads(resources.files(__name__).joinpath(f"{name}.json").read_text())
    architecture, measured = Architecture.make(stored["architecture"]), tuple(stored["test_accuracies"])
    return Entry(name, stored["about"], architecture, stored["recipe"], measured)
