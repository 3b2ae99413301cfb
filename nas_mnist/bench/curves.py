"""Learning curves of random candidates, recorded in a table that is replayed in seconds (`replay`).

A row is a candidate that was drawn at random, fits the budget, and was trained to the last epoch without
being stopped: its number, ``n_params``, ``macs``, seconds of training, ``accuracy_N`` and ``loss_N`` on the
validation images after every epoch, and its ``draws`` (JSON). A training that failed has an accuracy of 0
and an empty loss. Beside the table lies a JSON file of its name that says what it was made with.
"""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..core.errors import InputError, NoResultError
from ..core.fileio import read_text, write_bytes
from ..core.process_pool import Desk, run_workers
from ..models.architecture import Architecture
from ..models.cost import Budget, cost_of
from ..recipes.recipe import Recipe, make_recipe
from ..search.jobs import begin
from ..space.sampling import Draws, RandomDraws
from ..space.space import SearchSpace

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_TABLE_BYTES = 1 << 26
MISSES = 20_000  # draws in a row among which a new candidate that fits must be


@dataclass(frozen=True)
class Curve:
    """How one candidate learned."""

    candidate: int
    draws: Draws
    n_params: int
    macs: int
    seconds: float
    accuracies: tuple[float, ...]  # on the validation images, by epoch
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Setting:
    """What a table is made with."""

    space: dict[str, Any]  # as in its TOML
    max_params: int
    recipe: dict[str, Any]  # as in its TOML
    data: str  # name and fingerprint of the training images
    images: int  # trained on, an epoch
    seed: int  # of the draws


def candidates(space: SearchSpace, budget: Budget, seed: int) -> Iterator[tuple[Draws, Architecture]]:
    """Random candidates within a budget, each one once, always the same; ends where no new one is found."""
    rng, seen, missed = random.Random(seed), set(), 0
    while missed < MISSES:
        draws = RandomDraws(rng)
        missed += 1
        try:
            architecture = space.draw(draws, budget)
        except InputError:
            continue
        if architecture.key not in seen and budget.fits(cost_of(architecture)):
            missed = 0
            seen.add(architecture.key)
            yield draws.draws, architecture


@dataclass(frozen=True)
class RecordTask:
    """Train random candidates to the last epoch, a job each; sends ``curve`` (`Curve`)."""

    numbers: tuple[int, ...]  # of the candidates
    space: SearchSpace
    budget: Budget
    recipe: Recipe
    images: int
    seed: int
    dataset: str
    data_dir: Path | None
    device: str

    def __call__(self, desk: Desk) -> None:
        """Train until there is no further job."""
        import torch

        from ..models.network import build
        from ..training.loop import TrainingError, train

        learn, choose = begin(desk, self.dataset, self.data_dir, self.device)
        device = learn.images.device
        learn = learn.take(torch.arange(self.images, device=device))
        drawn, at = candidates(self.space, self.budget, self.seed), 0
        while (job := desk.claim()) is not None:
            number = self.numbers[job]
            found = next(islice(drawn, number - at, None), None)
            if found is None:
                raise NoResultError(f"the space has no candidate {number} within {self.budget}")
            (draws, architecture), at = found, number + 1
            model = build(architecture, number).to(device)
            seconds, scores = 0.0, []
            try:
                for epoch in train(model, learn, self.recipe, seed=number, score_on=choose):
                    seconds += epoch.seconds
                    if epoch.score is not None:
                        scores.append(epoch.score)
            except TrainingError:
                scores = []
            missing = self.recipe.epochs - len(scores)
            cost = cost_of(architecture)
            curve = Curve(
                *(number, draws, cost.params, cost.macs, round(seconds, 1)),
                tuple([score.accuracy for score in scores] + [0.0] * missing),
                tuple([round(score.loss, 5) for score in scores] + [math.nan] * missing),
            )
            desk.send("curve", curve)


def record(
    task: RecordTask,
    setting: Setting,
    path: Path,
    total: int,
    workers: int,
    heard: Callable[[Curve], None],
) -> None:
    """Train candidates until the table at ``path`` has ``total``; every one is written as it comes.

    Raises `NoResultError` where the space has not so many within the budget.
    """
    curves = read_curves(path)[1] if path.exists() else []
    task = replace(task, numbers=tuple(sorted(set(range(total)) - {curve.candidate for curve in curves})))

    def keep(curve: Curve) -> None:
        curves.append(curve)
        write_bytes(path.with_suffix(".json"), (json.dumps(asdict(setting), indent=2) + "\n").encode())
        write_bytes(path, _table(curves).to_csv(index=False, lineterminator="\n").encode())
        heard(curve)

    if task.numbers:
        run_workers(task, workers, len(task.numbers), {"curve": keep})


def describe(task: RecordTask, data: str) -> Setting:
    """What a table of this task is made with."""
    space, recipe = (part.model_dump(mode="json") for part in (task.space, task.recipe))
    return Setting(space, task.budget.max_params, recipe, data, task.images, task.seed)


def check_setting(path: Path, setting: Setting) -> None:
    """Raise `InputError` where a table was made with something else."""
    if not path.exists() and not path.with_suffix(".json").exists():
        return
    stored = _setting(path.with_suffix(".json"))
    differ = [name for name, value in asdict(setting).items() if asdict(stored)[name] != value]
    if differ:
        raise InputError(f"--curves: {path} was made with another {', '.join(differ)} (use a new file)")


def read_curves(path: Path) -> tuple[Setting, list[Curve]]:
    """A recorded table and what it was made with; raises `InputError` where it is none."""
    text = read_text(path, "--curves", MAX_TABLE_BYTES)
    setting = _setting(path.with_suffix(".json"))
    try:
        epochs = range(1, make_recipe(setting.recipe, "recipe").epochs + 1)
        table = pd.read_csv(io.StringIO(text))
        curves = [
            Curve(
                *(int(row["candidate"]), json.loads(row["draws"]), int(row["n_params"]), int(row["macs"])),
                float(row["seconds"]),
                tuple(float(row[f"accuracy_{epoch}"]) for epoch in epochs),
                tuple(float(row[f"loss_{epoch}"]) for epoch in epochs),
            )
            for row in table.to_dict("records")
        ]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"--curves: {path} is no table of curves ({error})") from None
    if not curves or len({curve.candidate for curve in curves}) < len(curves):
        raise InputError(f"--curves: {path} is no table of curves (empty, or a candidate comes twice)")
    return setting, curves


def _setting(path: Path) -> Setting:
    text = read_text(path, "--curves", MAX_TABLE_BYTES)
    try:
        return Setting(**json.loads(text))
    except (TypeError, ValueError):
        raise InputError(f"--curves: {path} does not say what the curves were made with") from None


def _table(curves: list[Curve]) -> pd.DataFrame:
    rows = []
    for curve in sorted(curves, key=lambda one: one.candidate):
        row = {name: getattr(curve, name) for name in ("candidate", "n_params", "macs", "seconds")}
        row |= {f"accuracy_{epoch}": value for epoch, value in enumerate(curve.accuracies, 1)}
        row |= {f"loss_{epoch}": value for epoch, value in enumerate(curve.losses, 1)}
        rows.append(row | {"draws": json.dumps(curve.draws)})
    return pd.DataFrame(rows)
