"""Results as files: JSON, CSV and weights, each written whole, nothing overwritten."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..classifier import Classifier
from ..cost import cost_of
from ..data import DataSet
from ..files import new_folder, write_bytes
from ..recipe import Recipe
from ..retrain import Run, requirements, summarise, versions

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


def write_runs(
    parent: Path, name: str, runs: Sequence[Run], recipe: Recipe, data: DataSet, device: str, **facts: Any
) -> Path:
    """Write ``result.json``, ``epochs.csv`` and a ``weights-seed-N.safetensors`` a run into a new folder."""
    folder = new_folder(parent, name)
    result = result_dict(name, runs, recipe, data, device) | facts
    write_bytes(folder / "result.json", (json.dumps(result, indent=2) + "\n").encode())
    write_bytes(folder / "epochs.csv", epochs_csv(runs).encode())
    for run in runs:
        weights = Classifier(run.model, run.normalizer, data.name.partition(":")[0]).to_bytes()
        write_bytes(folder / f"weights-seed-{run.seed}.safetensors", weights)
    return folder


def result_dict(name: str, runs: Sequence[Run], recipe: Recipe, data: DataSet, device: str) -> dict[str, Any]:
    """Everything that is known of some runs of one architecture; the README documents the fields."""
    architecture = runs[0].model.architecture
    cost = cost_of(architecture)
    summary = summarise([run.result.accuracy for run in runs])
    met = requirements(architecture, recipe.epochs, summary.mean, data.name)
    return {
        "name": name,
        "key": architecture.key,
        "architecture": architecture.model_dump(mode="json"),
        "cost": asdict(cost),
        "recipe": recipe.model_dump(mode="json"),
        "data": {
            "name": data.name,
            "source": data.source,
            "note": data.note,
            "fingerprint": data.fingerprint,
        },
        "device": device,
        "versions": versions(),
        "test_accuracy": asdict(summary),
        "requirements": [asdict(requirement) for requirement in met],
        "runs": [_run_dict(run) for run in runs],
    }


def epochs_csv(runs: Sequence[Run]) -> str:
    """One line an epoch of every run; a test column is empty where that epoch was not scored."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for run in runs:
        writer.writerows({"seed": run.seed, **row} for row in _epoch_dicts(run))
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
