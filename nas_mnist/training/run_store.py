"""Final trainings as files: ``result.json``, ``epochs.csv`` and the weights, each written whole.

A folder holds the runs of one architecture, recipe and data set, one run a seed. Further seeds of the same
training go into the same folder. reports/README.md documents the files.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.defaults import MAX_PARAMS
from ..core.errors import InputError, foreign_data
from ..core.fileio import new_folder, numbered_folders, read_text, write_bytes
from ..core.versions import versions
from ..models.architecture import Architecture
from ..models.cost import Budget, cost_of
from ..recipes.recipe import Recipe
from .requirements import requirements, summarise

if TYPE_CHECKING:
    from ..data.dataset import DataSet
    from .final import Run

RESULT = "result.json"
MAX_RESULT_BYTES = 1 << 28  # the confusion matrix of 1,000 classes has a million numbers
CSV_COLUMNS = (
    *("seed", "epoch", "train_loss", "test_loss"),
    *("test_accuracy", "learning_rate", "seconds", "images"),
)
_FIELDS = frozenset(
    {
        *("name", "key", "architecture", "recipe", "data", "device"),
        *("versions", "test_accuracy", "requirements", "runs"),
    }
)


class RunStore:
    """The runs of one training in a folder; every run is in the files as soon as it is added."""

    def __init__(self, parent: Path, name: str, metadata: dict[str, Any], given: Path | None = None) -> None:
        """Continue a folder of the same training, else make a new one with the first run.

        Searched are ``given`` and then ``parent/name``, ``parent/name-2``... ``metadata``: see `metadata_of`.
        """
        self.parent, self.name, self.metadata = parent, name, metadata
        self._folder = self._find(given)

    def _find(self, given: Path | None) -> Path | None:
        for folder in [*([given] if given else []), *numbered_folders(self.parent, self.name)]:
            with contextlib.suppress(InputError):
                stored = read_result(folder / RESULT)
                weights = [folder / weights_file(run["seed"]) for run in stored["runs"]]
                # Published results come without weights.
                if _same_training(stored, self.metadata) and all(map(Path.is_file, weights)):
                    return folder
        return None

    @property
    def folder(self) -> Path:
        """The folder; only after the first run."""
        assert self._folder is not None
        return self._folder

    @property
    def result(self) -> dict[str, Any]:
        """The content of ``result.json``; only after the first run."""
        return read_result(self.folder / RESULT)

    @property
    def seeds(self) -> set[int]:
        """The seeds that the folder has."""
        if self._folder is None or not (self._folder / RESULT).exists():
            return set()
        return {int(run["seed"]) for run in self.result["runs"]}

    def add(self, run: Run) -> None:
        """Store a run; a run of the same seed that is there already stays instead."""
        from .classifier import Classifier

        if self._folder is None:
            self._folder = new_folder(self.parent, self.name)
        with _locked(self.folder):
            is_new = not (self.folder / RESULT).exists()
            stored = self.metadata | {"runs": []} if is_new else self.result  # others may add runs as well
            if run.seed in (one["seed"] for one in stored["runs"]):
                return
            made_by = {name: self.metadata[name] for name in ("device", "versions")}
            is_other = any(stored[name] != value for name, value in made_by.items())
            new = run_record(run) | ({"by": made_by} if is_other else {})
            runs = sorted([*stored["runs"], new], key=lambda one: one["seed"])
            record = {
                **stored,
                "command": self.metadata.get("command", stored.get("command")),
                **summary_fields(stored, runs),
                "runs": runs,
            }
            data = stored["data"]
            names = tuple(data.get("classes", ()))
            weights = Classifier(run.model, run.normalizer, data["name"].partition(":")[0], names)
            write_bytes(self.folder / weights_file(run.seed), weights.to_bytes())
            write_bytes(self.folder / "epochs.csv", epochs_csv(runs).encode())
            write_bytes(self.folder / RESULT, f"{json.dumps(record, indent=2)}\n".encode())


def _same_training(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a stored result is of the same network, recipe, data and engine, and not of a search."""
    same = all(stored[name] == wanted[name] for name in ("key", "recipe"))
    of_stored, of_wanted = stored["data"], wanted["data"]
    same_data = all(of_stored.get(name) == of_wanted.get(name) for name in ("fingerprint", "classes"))
    same_engine = bool(stored.get("plain")) == bool(wanted.get("plain"))
    return same and same_data and same_engine and ("trial" in stored) == ("trial" in wanted)


def weights_file(seed: int) -> str:
    """The name of the file with the weights of one seed."""
    return f"weights-seed-{seed}.safetensors"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process adds a run to the folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def metadata_of(
    name: str, architecture: Architecture, recipe: Recipe, data: DataSet, device: str, budget: int | None
) -> dict[str, Any]:
    """The fields of ``result.json`` that are known before the training; ``budget`` counts parameters."""
    return {
        "name": name,
        "key": architecture.key,
        "architecture": architecture.model_dump(mode="json"),
        "cost": asdict(cost_of(architecture)),
        "budget": budget,
        "recipe": recipe.model_dump(mode="json"),
        "data": {name: getattr(data, name) for name in ("name", "source", "note", "fingerprint")}
        | ({"classes": list(data.own_names)} if data.own_names else {}),
        "device": device,
        "versions": versions(),
    }


def summary_fields(metadata: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields ``test_accuracy`` and ``requirements`` of some runs."""
    summary = summarise([run["test_accuracy"] for run in runs])
    architecture, epochs = Architecture.make(metadata["architecture"]), metadata["recipe"]["epochs"]
    limit = metadata.get("budget", MAX_PARAMS)
    budget = None if limit is None else Budget(limit)
    met = requirements(architecture, epochs, summary.mean, metadata["data"]["name"], budget)
    return {"test_accuracy": asdict(summary), "requirements": [asdict(requirement) for requirement in met]}


def read_result(path: Path) -> dict[str, Any]:
    """A ``result.json``; raises `InputError` if the file is not one."""
    text = read_text(path, "result", MAX_RESULT_BYTES)
    try:
        result = json.loads(text)
    except ValueError as error:
        raise InputError(f"result: {path} is not JSON ({error})") from None
    if not isinstance(result, dict) or not set(result) >= _FIELDS or not result["runs"]:
        missing = ", ".join(sorted(_FIELDS - set(result))) if isinstance(result, dict) else "all fields"
        raise InputError(f"result: {path} lacks {missing or 'runs'} (use a file that reproduce has written)")
    return result


def result_of(weights: Path, architecture: Architecture) -> dict[str, Any] | None:
    """The ``result.json`` beside a file of weights, if it is about them; raises `InputError` if damaged."""
    path = weights.parent / RESULT
    if not path.is_file():
        return None
    result = read_result(path)
    with foreign_data(f"result: {path}"):
        files = [weights_file(run["seed"]) for run in result["runs"]]
        is_own = weights.name in files and result["key"] == architecture.key
    return result if is_own else None


def epochs_csv(runs: Sequence[Mapping[str, Any]]) -> str:
    """One line an epoch of every run; the test columns are empty for epochs that were not scored."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for run in runs:
        writer.writerows({"seed": run["seed"], **row} for row in run["epochs"])
    return stream.getvalue()


def run_record(run: Run) -> dict[str, Any]:
    """A run as one of ``runs`` in ``result.json``."""
    best = run.best_on_test
    return {
        "seed": run.seed,
        "test_accuracy": run.result.accuracy,
        "test_correct": run.result.correct,
        "test_images": run.result.count,
        "test_loss": run.result.loss,
        "best_epoch_chosen_on_test": {"epoch": best.epoch, "test_accuracy": best.score.accuracy}
        if best and best.score
        else None,
        "seconds": round(run.seconds, 3),
        "epochs": [
            {
                "epoch": epoch.epoch,
                "train_loss": epoch.train_loss,
                "test_loss": epoch.score.loss if epoch.score else None,
                "test_accuracy": epoch.score.accuracy if epoch.score else None,
                "learning_rate": epoch.learning_rate,
                "seconds": round(epoch.seconds, 3),
                "images": epoch.images,
            }
            for epoch in run.epochs
        ],
        "confusion": run.evaluation.confusion,
        "mistakes": [mistake._asdict() for mistake in run.evaluation.mistakes],
    }
