"""Finalists compared: scores with fresh seeds on the same validation images, and the answers that follow.

A finalist's loss of an image is the mean over its seeds. Two finalists are compared image by image, so that
the images that are hard for both cancel out.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from math import hypot, sqrt
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, Self

import numpy as np

from ..core.fileio import write_bytes
from ..models.architecture import Architecture
from ..models.cost import cost_of
from ..recipes.recipe import Recipe

# User attributes of a study; `COPIES`: by key, the trial and the parameters of a narrowed copy.
RACE, ANSWERS, COPIES = "race", "answers", "copies"
SIGNIFICANCE = 0.05  # of the one-sided test by which a finalist drops out
SEED_SPREAD = 0.08  # standard deviation of a loss between seeds, as a share of it (reports/trainings)
FAILED_LOSS = 100.0  # of every image, for a training that failed; nats


class Finalist(NamedTuple):
    """A candidate that is trained again."""

    name: str  # "trial-12", or "trial-12-9870" for a copy with 9,870 parameters
    key: str
    architecture: Architecture
    recipe: Recipe
    origin: str  # "found", or "given: NAME"
    trial: int

    @property
    def params(self) -> int:
        """The number of its parameters."""
        return cost_of(self.architecture).params


@dataclass(frozen=True)
class Answer:
    """One answer of a search; the fields of ``answers`` in ``summary.json``."""

    key: str  # of the candidate
    name: str  # of the candidate, for people and files: "trial-12", or "trial-12-9870" for a narrowed one
    origin: str  # "found", or "given: NAME"
    trial: int  # that drew it, or of which it is a narrowed copy
    n_params: int
    macs: int  # multiply-adds for one image
    peak_memory: int  # bytes of activations for one image, float32
    validation_accuracy: float  # mean over its seeds, 0 to 1
    validation_loss: float  # likewise; nats an image
    seeds: int  # fresh ones; 0: the scores are those of the search
    architecture: dict[str, Any]
    recipe: dict[str, Any]
    margin: float | None = None  # of `smallest`: its accuracy minus the target
    flash: int | None = None  # bytes of the int8 network's tables; None: of an earlier version
    ram: int | None = None  # bytes of its buffer, likewise
    standard_error: float | None = None  # of the accuracy, over the images alone; None: of an earlier version

    @classmethod
    def of(
        cls,
        finalist: Finalist,
        accuracy: float,
        loss: float,
        seeds: int,
        images: int,
        margin: float | None = None,
    ) -> Self:
        """A finalist with its scores on ``images`` validation images, as the fields have them.

        The standard error is that of a share, sqrt(p (1 - p) / images): other images would have given another
        accuracy, also with all seeds that there are.
        """
        cost = cost_of(finalist.architecture)
        return cls(
            key=finalist.key,
            name=finalist.name,
            origin=finalist.origin,
            trial=finalist.trial,
            n_params=cost.params,
            macs=cost.macs,
            peak_memory=cost.peak_memory,
            validation_accuracy=accuracy,
            validation_loss=loss,
            seeds=seeds,
            architecture=finalist.architecture.model_dump(mode="json"),
            recipe=finalist.recipe.model_dump(mode="json"),
            margin=margin,
            flash=cost.flash,
            ram=cost.ram,
            standard_error=sqrt(accuracy * (1 - accuracy) / images),
        )

    def to_json(self) -> dict[str, Any]:
        """The fields as plain data."""
        return asdict(self)


class FinalScores:
    """The scores of finalists, by key and seed.

    Accuracies and mean losses are kept in the study, the losses of the images in a folder, a file a training.
    A training whose file is gone counts as not done.
    """

    def __init__(self, stored: Mapping[str, Any], folder: Path) -> None:
        """``stored``: the study's user attribute `RACE`."""
        self.folder = folder
        self.scores: dict[str, dict[int, tuple[float, float]]] = {}  # accuracy, mean loss
        self.losses: dict[tuple[str, int], np.ndarray] = {}  # (images,) float32
        for key, by_seed in stored.items():
            for seed, (accuracy, loss) in by_seed.items():
                path = self._path(key, int(seed))
                if path.is_file():
                    self.losses[key, int(seed)] = np.load(path, allow_pickle=False)
                    self.scores.setdefault(key, {})[int(seed)] = (accuracy, loss)

    def add(self, key: str, seed: int, accuracy: float, losses: np.ndarray | None) -> None:
        """Add a training; ``losses`` (images,) float32, None: it failed."""
        losses = np.array([FAILED_LOSS], np.float32) if losses is None else losses
        stream = io.BytesIO()
        np.save(stream, losses)
        write_bytes(self._path(key, seed), stream.getvalue())
        self.losses[key, seed] = losses
        self.scores.setdefault(key, {})[seed] = (accuracy, float(losses.mean(dtype=np.float64)))

    def to_json(self, stored: Mapping[str, Any] | None = None) -> dict[str, dict[str, list[float]]]:
        """The scores as the study stores them, beside those that are ``stored``."""
        mine = {
            key: {str(seed): list(score) for seed, score in sorted(scores.items())}
            for key, scores in self.scores.items()
        }
        known = dict(stored or {})
        return {key: known.get(key, {}) | mine.get(key, {}) for key in known | mine}

    def seeds(self, key: str) -> set[int]:
        """The seeds with which a candidate was trained."""
        return set(self.scores.get(key, ()))

    def accuracy(self, key: str) -> float:
        """The mean validation accuracy over a candidate's seeds, 0 to 1."""
        return fmean(accuracy for accuracy, _ in self.scores[key].values())

    def loss(self, key: str) -> float:
        """The mean validation loss over a candidate's seeds, nats an image."""
        return fmean(loss for _, loss in self.scores[key].values())

    def only(self, seeds: Collection[int]) -> Self:
        """The same scores without those of other seeds."""
        part = type(self)({}, self.folder)
        part.losses = self.losses
        for key, by_seed in self.scores.items():
            if known := {seed: score for seed, score in by_seed.items() if seed in seeds}:
                part.scores[key] = known
        return part

    def has_failed(self, key: str) -> bool:
        """Whether every training of a candidate failed; an accuracy of 0 alone does not say so."""
        return all(loss == FAILED_LOSS for _, loss in self.scores[key].values())

    def difference(self, key: str, best: str) -> np.ndarray:
        """Loss minus the best one's loss, image by image, each the mean over the candidate's own seeds."""
        mine, theirs = (
            # A training that failed has one loss for all images.
            sum((self.losses[one, seed].astype(np.float64) for seed in seeds), np.zeros(1)) / len(seeds)
            for one in (key, best)
            if (seeds := self.seeds(one))
        )
        return np.asarray(mine - theirs)

    def standard_error(self, key: str, best: str) -> float:
        """Of the mean of `difference`: of the images, and of the seeds, which shift all losses of a network.

        Few seeds are too few to estimate their spread; it is `SEED_SPREAD`.
        """
        from scipy.stats import sem

        difference = self.difference(key, best)
        images = float(sem(difference)) if len(difference) > 1 else 0.0
        inverse_seeds = 1 / len(self.seeds(key)) + 1 / len(self.seeds(best))
        return hypot(images, SEED_SPREAD * self.loss(best) * sqrt(inverse_seeds))

    def is_worse(self, key: str, best: str) -> bool:
        """Whether a candidate is clearly worse than the best one: a one-sided z-test of the difference."""
        from scipy.stats import norm

        excess = float(self.difference(key, best).mean())
        return bool(norm.sf(excess, scale=self.standard_error(key, best)) < SIGNIFICANCE)

    def is_as_good(self, key: str, best: str) -> bool:
        """Whether a candidate is within one standard error of the best one (Breiman et al. 1984)."""
        return bool(self.difference(key, best).mean() <= self.standard_error(key, best))

    def _path(self, key: str, seed: int) -> Path:
        return self.folder / f"{key}-seed-{seed}.npy"
