"""Results as files: JSON, CSV and weights, each written whole, nothing lost."""

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
from typing import Any

from ..core.fileio import new_folder, write_bytes
from ..data.dataset import DataSet
from ..models.architecture import Architecture
from ..models.cost import Budget, cost_of
from ..recipes.recipe import Recipe
from ..report.items import read_result
from .classifier import Classifier
from .final import MAX_PARAMS, Run, requirements, summarise, versions

MADE_BY = ("device", "versions", "command")  # told again of a run that was added later
CSV_COLUMNS = (
    "seed",
    "epoch",
    "train_loss",
    "test_loss",
    "test_accuracy",
    "learning_rate",
    "seconds",
    "images",
)


class Results:
    """The results of one architecture in a folder; every run is in its files as soon as it is done.

    The files are ``result.json``, whose fields the README documents, ``epochs.csv`` and a
    ``weights-seed-N.safetensors`` a run.
    """

    def __init__(self, parent: Path, name: str, facts: dict[str, Any], held: Path | None = None) -> None:
        """A new folder in ``parent``, made with the first run; or ``held``, which `add` adds to.

        ``facts`` are those of `facts_of` and whatever else is told.
        """
        self.parent, self.name, self.facts, self.held = parent, name, facts, held
        self.continues = held is not None
        self.added = 0  # runs

    @property
    def folder(self) -> Path:
        """Where they lie; only after the first run."""
        assert self.held is not None
        return self.held

    @property
    def result(self) -> dict[str, Any]:
        """What ``result.json`` holds; only after the first run."""
        return read_result(self.folder / "result.json")

    @property
    def seeds(self) -> set[int]:
        """Those that are there."""
        there = self.held is not None and (self.held / "result.json").exists()
        return {run["seed"] for run in self.result["runs"]} if there else set()

    def add(self, run: Run) -> None:
        """Keep a run; one of this seed that is there already stays instead."""
        if self.held is None:
            self.held = new_folder(self.parent, self.name)
        with _alone_in(self.folder):
            self._add(run)

    def _add(self, run: Run) -> None:
        first = not (self.folder / "result.json").exists()
        held = self.facts | {"runs": []} if first else self.result  # which somebody else may add to, too
        if run.seed in (one["seed"] for one in held["runs"]):
            self.added += 1
            return
        by = {"by": {name: self.facts[name] for name in MADE_BY}} if self.continues else {}
        runs = sorted([*held["runs"], _run_dict(run) | by], key=lambda one: one["seed"])
        weights = Classifier(run.model, run.normalizer, held["data"]["name"].partition(":")[0]).to_bytes()
        write_bytes(self.folder / f"weights-seed-{run.seed}.safetensors", weights)
        write_bytes(self.folder / "epochs.csv", epochs_csv(runs).encode())
        result = json.dumps(held | judged(held, runs) | {"runs": runs}, indent=2)
        write_bytes(self.folder / "result.json", f"{result}\n".encode())
        self.added += 1


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process adds to a folder of results."""
    place = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX)
        yield
    finally:
        os.close(place)


def facts_of(
    name: str, architecture: Architecture, recipe: Recipe, data: DataSet, device: str, budget: int
) -> dict[str, Any]:
    """What is known of a training before it begins."""
    return {
        "name": name,
        "key": architecture.key,
        "architecture": architecture.model_dump(mode="json"),
        "cost": asdict(cost_of(architecture)),
        "budget": budget,
        "recipe": recipe.model_dump(mode="json"),
        "data": {
            "name": data.name,
            "source": data.source,
            "note": data.note,
            "fingerprint": data.fingerprint,
        },
        "device": device,
        "versions": versions(),
    }


def judged(facts: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What some runs come to."""
    summary = summarise([run["test_accuracy"] for run in runs])
    architecture, epochs = Architecture.make(facts["architecture"]), facts["recipe"]["epochs"]
    budget = Budget(facts.get("budget", MAX_PARAMS))
    met = requirements(architecture, epochs, summary.mean, facts["data"]["name"], budget)
    return {"test_accuracy": asdict(summary), "requirements": [asdict(requirement) for requirement in met]}


def epochs_csv(runs: Sequence[Mapping[str, Any]]) -> str:
    """One line an epoch of every run; a test column is empty where that epoch was not scored."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for run in runs:
        writer.writerows({"seed": run["seed"], **row} for row in run["epochs"])
    return stream.getvalue()


def _run_dict(run: Run) -> dict[str, Any]:
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
        "epochs": _epoch_dicts(run),
        "confusion": run.judgement.confusion,
        "mistakes": [mistake._asdict() for mistake in run.judgement.mistakes],
    }


def _epoch_dicts(run: Run) -> list[dict[str, Any]]:
    return [
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
    ]
