"""Train one architecture on all training images and read the test images: the result that counts.

The result is the test accuracy after the last epoch. The best epoch is chosen on the test images; it is
kept apart, for comparison with published logs only.
"""

from __future__ import annotations

import contextlib
import math
import platform
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..core.errors import InputError
from ..data.dataset import DataSet
from ..models.architecture import Architecture
from ..models.cost import Budget, cost_of
from ..models.network import Network, build
from ..recipes.recipe import Recipe
from .evaluate import Judgement, Normalizer, Score, predict
from .loop import EpochResult, train_together
from .teaching import Teacher, teacher_of

MIN_ACCURACY, MAX_PARAMS, MAX_EPOCHS = 0.994, 20_000, 20  # the exercise; parameters stay below
EXERCISE = Budget(MAX_PARAMS)


@dataclass(frozen=True)
class Run:
    """One training on all training images."""

    seed: int
    epochs: tuple[EpochResult, ...]  # scored on the test images, all of them or the last one only
    model: Network  # on the CPU, as it was scored
    normalizer: Normalizer
    judgement: Judgement  # of the test images, by that model

    @property
    def result(self) -> Score:
        """The test score after the last epoch."""
        score = self.epochs[-1].score
        assert score is not None
        return score

    @property
    def best_on_test(self) -> EpochResult | None:
        """The epoch with the best test score: chosen on the test images, so not a result.

        None where only the last epoch was scored.
        """
        scored = [epoch for epoch in self.epochs if epoch.score]
        if len(scored) < 2:
            return None
        return max(scored, key=lambda epoch: epoch.score.accuracy if epoch.score else 0.0)

    @property
    def seconds(self) -> float:
        """Training time, scoring not included."""
        return sum(epoch.seconds for epoch in self.epochs)


@dataclass(frozen=True)
class Summary:
    """Several runs' results together, as shares from 0 to 1."""

    runs: int
    mean: float
    std: float | None  # sample standard deviation; None for a single run
    interval: tuple[float, float] | None  # 95 %, Student's t; None for a single run


@dataclass(frozen=True)
class Requirement:
    """One of the requirements of the exercise, and whether it is met."""

    what: str
    got: str
    met: bool


def retrain(
    architecture: Architecture,
    recipe: Recipe,
    data: DataSet,
    *,
    seeds: Sequence[int],
    device: torch.device,
    last_only: bool,
    plain: bool = False,
    teacher: Teacher | None = None,
    on_epoch: Callable[[int, EpochResult], None] = lambda *_: None,
) -> list[Run]:
    """Train on all training images, all seeds at once; a run for every seed.

    The test images are scored after every epoch, or only after the last. ``on_epoch`` hears of every seed's.
    """
    learn, test = data.train.to(device), data.read_test().to(device)
    models = [build(architecture, seed).to(device) for seed in seeds]
    epochs: list[list[EpochResult]] = [[] for _ in seeds]
    scored = () if last_only else None
    how: Any = {"scored": scored, "plain": plain, "teacher": teacher and teacher.network(device)}
    for results in train_together(models, learn, recipe, seeds=seeds, score_on=test, **how):
        for seed, told, result in zip(seeds, epochs, results, strict=True):
            told.append(result)
            on_epoch(seed, result)
    normalizer = Normalizer.of(learn.images)
    judged = [
        Judgement.of(predict(model, test.images, normalizer, plain=plain), test.labels) for model in models
    ]
    return [
        Run(seed, tuple(told), model.cpu(), normalizer, judgement)
        for seed, told, model, judgement in zip(seeds, epochs, models, judged, strict=True)
    ]


def check_fits(architecture: Architecture, data: DataSet, recipe: Recipe) -> None:
    """Raise `InputError` where a network or its teacher does not take this data set's images or classes."""
    _check_fits(architecture, data, "architecture")
    if (teacher := teacher_of(recipe)) is not None:
        _check_fits(teacher[0], data, f"teacher {recipe.distillation.teacher}")


def _check_fits(architecture: Architecture, data: DataSet, what: str) -> None:
    if architecture.input_shape != data.shape:
        wanted, got = (" x ".join(map(str, shape)) for shape in (data.shape, architecture.input_shape))
        raise InputError(f"{what}: input_shape {got} does not fit {data.name} (use {wanted})")
    if architecture.classes != data.classes:
        raise InputError(
            f"{what}: classes {architecture.classes} does not fit {data.name} (use {data.classes})"
        )


def summarise(accuracies: Sequence[float]) -> Summary:
    """Mean, sample standard deviation and the 95 % confidence interval of the mean, within 0 to 1."""
    mean = statistics.fmean(accuracies)
    if len(accuracies) < 2:
        return Summary(len(accuracies), mean, None, None)
    from scipy.stats import t

    std = statistics.stdev(accuracies)
    half = float(t.ppf(0.975, len(accuracies) - 1)) * std / math.sqrt(len(accuracies))
    return Summary(len(accuracies), mean, std, (max(mean - half, 0.0), min(mean + half, 1.0)))


def required_accuracy(dataset: str) -> float | None:
    """What is asked for, 0 to 1; None for other data sets than MNIST."""
    return MIN_ACCURACY if dataset.startswith("mnist") else None


def requirements(
    architecture: Architecture, epochs: int, accuracy: float, dataset: str, budget: Budget = EXERCISE
) -> list[Requirement]:
    """The requirements: accuracy (asked of MNIST only), parameters, epochs, no fully connected layer.

    The limits of a search's own ``budget`` are further ones, but for that of parameters where it is the same.
    """
    cost = cost_of(architecture)
    params, has = cost.params, budget.limited(cost)
    met = accuracy >= MIN_ACCURACY
    misleading = (round(accuracy, 4) >= MIN_ACCURACY) != met
    got = f"{accuracy:.4%}" if misleading else f"{accuracy:.2%}"
    asked = Requirement(f"accuracy >= {MIN_ACCURACY:.1%}", got, met)
    own = [
        Requirement(f"{what} <= {limit:,}, the budget", f"{has[what]:,}", has[what] <= limit)
        for what, limit in budget.limits.items()
        if (what, limit) not in EXERCISE.limits.items()
    ]
    return [
        *([asked] if required_accuracy(dataset) else []),
        Requirement(f"parameters < {MAX_PARAMS:,}", f"{params:,}", params < MAX_PARAMS),
        *own,
        Requirement(f"epochs <= {MAX_EPOCHS}", str(epochs), epochs <= MAX_EPOCHS),
        Requirement(
            "no fully connected layer",
            "none" if all(layer.kind != "Linear" for layer in architecture.layers) else "some",
            all(layer.kind != "Linear" for layer in architecture.layers),
        ),
    ]


def versions() -> dict[str, str]:
    """What the result was computed with."""
    packages = ("nas-mnist", "torch", "torchvision", "llvmlite", "numpy", "optuna")
    found = {"python": platform.python_version(), **{package: version(package) for package in packages}}
    return found | ({"commit": commit} if (commit := _commit()) else {})


def _commit() -> str:
    """The commit of the checkout that this program runs from; empty where there is none, or no Git."""
    here = Path(__file__).parents[1]
    if not (here.parent / ".git").exists():
        return ""
    asking = ["git", "-C", str(here), "describe", "--always", "--dirty", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(asking, check=True, capture_output=True, text=True, timeout=5).stdout.strip()
    return ""
