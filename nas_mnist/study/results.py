"""A study as typed rows, its winner, and its Pareto front."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial

from ..models import zoo
from .config import StudyConfig
from .curve import curve_of
from .given import FOUND, ORIGIN
from .importance import param_importances
from .objective import ARCHITECTURE, RECIPE
from .race import ANSWERS, RACE, Answer
from .verdict import Verdict, verdict_of

if TYPE_CHECKING:
    import pandas as pd

# User attributes of a study.
OLD_FINALS = "finals"  # of an earlier version: validation accuracies of finalists, by key, by seed
RETRAINED = "retrained"  # by key: seed, test accuracy and folder of the answers that were retrained
FINAL_IMAGES = "final_images"  # training images of finalists, an epoch; None or absent: all

Finals = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One trial as people and programs read it. The field names are stable: they head the CSV columns."""

    trial: int  # number in the study
    verdict: Verdict
    reason: str
    n_params: int | None  # None where the draws made no network
    excess: int | None  # parameters over the budget; 0 or less: it fits
    macs: int | None  # multiply-adds for one image
    flash: int | None  # bytes of the int8 network's tables; None in trials of earlier versions
    ram: int | None  # bytes of its buffer, likewise
    peak_memory: int | None  # bytes of activations for one image, float32
    epochs: int  # finished
    images: int  # trained on
    validation_accuracy: float | None  # at the last evaluation, 0 to 1
    validation_loss: float | None  # nats an image
    seconds: float  # of training
    origin: str  # "found", or "given: NAME"
    key: str | None  # of the architecture, and of the recipe where the search varies it
    architecture: dict[str, Any] | None
    recipe: dict[str, Any] | None  # that it was trained with


def trial_row(trial: FrozenTrial) -> TrialRow | None:
    """One trial as a row; None while it waits or runs."""
    verdict = verdict_of(trial)
    if verdict is None:
        return None
    attrs, curve = trial.user_attrs, curve_of(trial)
    last = curve[max(curve)] if curve else None
    return TrialRow(
        trial=trial.number,
        verdict=verdict,
        reason=attrs.get("reason", ""),
        n_params=attrs.get("n_params"),
        excess=attrs.get("excess"),
        macs=attrs.get("macs"),
        flash=attrs.get("flash"),
        ram=attrs.get("ram"),
        peak_memory=attrs.get("peak_memory"),
        epochs=attrs.get("epochs", 0),
        images=attrs.get("images", 0),
        validation_accuracy=last and last.accuracy,
        validation_loss=last and last.loss,
        seconds=attrs.get("seconds", 0.0),
        origin=attrs.get(ORIGIN) or (FOUND if attrs.get("key") != _reference_key() else "given: reference"),
        key=attrs.get("key"),
        architecture=trial.system_attrs.get(ARCHITECTURE, attrs.get("architecture")),
        recipe=trial.system_attrs.get(RECIPE, attrs.get("recipe")),
    )


@cache
def _reference_key() -> str:
    """Of the network that searches of earlier versions began with, without a note of it."""
    return zoo.load("reference").architecture.key


def trial_rows(study: optuna.Study) -> list[TrialRow]:
    """Every trial that has ended, in the order of their numbers."""
    rows = (trial_row(trial) for trial in study.get_trials(deepcopy=False))
    return [row for row in rows if row is not None]


def best_rows(rows: list[TrialRow], count: int) -> list[TrialRow]:
    """The ``count`` best candidates that were trained to the end, by validation loss.

    Losses rank close candidates better than accuracies (reports/curves). Of equals the smaller comes first.
    """
    trained = [row for row in rows if row.verdict is Verdict.TRAINED]
    return sorted(trained, key=rank)[:count]


def rank(row: TrialRow) -> tuple[float, float, int]:
    """The sort key of a candidate; the best one has the lowest."""
    loss = math.inf if row.validation_loss is None else row.validation_loss
    return loss, -(row.validation_accuracy or 0.0), row.n_params or 0


def retrained_of(metadata: Mapping[str, Any], key: str | None) -> Mapping[str, Any] | None:
    """The seed, test accuracy and folder of a retrained answer; None if it was not retrained."""
    old = metadata.get("winner") or {}  # of an earlier version, which retrained one
    stored: Mapping[str, Any] | None = metadata.get(RETRAINED, {}).get(key)
    return stored or (old if old.get("key") == key else None)


def _old_winner(rows: list[TrialRow], metadata: Mapping[str, Any]) -> TrialRow | None:
    """The winner of an earlier version: as stored, else by the best mean over fresh seeds, of most seeds."""
    finals: Finals = metadata.get(OLD_FINALS, {})
    if retrained := (metadata.get("winner") or {}).get("key"):
        return next((row for row in rows if row.key == retrained and row.verdict is Verdict.TRAINED), None)
    raced = [row for row in rows if row.verdict is Verdict.TRAINED and row.key in finals]
    if not raced:
        return None
    most = max(len(finals[row.key or ""]) for row in raced)
    known = [row for row in raced if len(finals[row.key or ""]) == most]

    return max(known, key=lambda row: (fmean(finals[row.key or ""].values()), -(row.n_params or 0)))


@dataclass(frozen=True)
class StudyResults:
    """Everything that a report says of a study."""

    name: str
    rows: list[TrialRow]
    curves: dict[int, dict[int, float]]  # trial -> epoch -> validation accuracy
    importances: dict[str, float]
    metadata: dict[str, Any]  # the study's user attributes: space, recipe, data, identity, winner...

    @classmethod
    def read(cls, study: optuna.Study) -> StudyResults:
        """The results so far; the study may still be running."""
        metadata = dict(study.user_attrs)
        epochs = StudyConfig.from_metadata(metadata).candidate_epochs
        importances = param_importances(study, epochs)
        return cls(study.study_name, trial_rows(study), learning_curves(study), importances, metadata)

    @property
    def config(self) -> StudyConfig:
        """The settings that the study was made with."""
        return StudyConfig.from_metadata(self.metadata)

    @property
    def dataset(self) -> str:
        """The name of the data set, as ``--dataset`` takes it."""
        stored = self.metadata.get("dataset")  # not in older studies
        return str(stored or self.config.data.partition(" ")[0])

    @property
    def answers(self) -> dict[str, Answer]:
        """The answers of the search, by name; empty before its finals."""
        return {name: Answer(**fields) for name, fields in self.metadata.get(ANSWERS, {}).items()}

    @property
    def asked_for(self) -> tuple[str, Answer] | None:
        """The name of the answer that the search is about, and the answer; None before the finals.

        The smallest that meets the target if the search narrows its budget and has one, else the best.
        """
        answers = self.answers
        names = ["most_accurate"] if self.config.target is None else ["smallest", "most_accurate"]
        return next(((name, answers[name]) for name in names if name in answers), None)

    @property
    def winner(self) -> TrialRow | None:
        """The trial of the best answer, which may be a narrowed copy; None before the finals."""
        if answer := self.answers.get("most_accurate"):
            return next((row for row in self.rows if row.trial == answer.trial), None)
        return _old_winner(self.rows, self.metadata)

    @property
    def best(self) -> TrialRow | None:
        """The winner, and before the finals the leader: the best candidate by validation loss."""
        return self.winner or next(iter(best_rows(self.rows, 1)), None)

    @property
    def best_title(self) -> str:
        """The title of `best`."""
        return "winner" if self.winner else "leader"

    @property
    def validation_accuracy(self) -> float | None:
        """Of the answer that was asked for: its mean over fresh seeds; of the leader the search's own."""
        best = self.best
        if asked := self.asked_for:
            return asked[1].validation_accuracy
        if best and self.winner and (raced := self.finals.get(best.key or "")):  # of an earlier version
            return fmean(raced.values())
        return best.validation_accuracy if best else None

    @property
    def finals(self) -> Finals:
        """Validation accuracies of finalists with fresh seeds, by key, by seed."""
        old: Finals = self.metadata.get(OLD_FINALS, {})
        race = self.metadata.get(RACE, {})
        return {**old, **{key: {seed: one[0] for seed, one in found.items()} for key, found in race.items()}}

    @property
    def low_fidelity(self) -> bool:
        """Whether candidates were trained for fewer epochs, or on fewer images, than finalists and winner."""
        return self.config.low_fidelity

    @property
    def epochs(self) -> int:
        """Epochs of a candidate that is not stopped early."""
        return self.config.candidate_epochs

    @property
    def images(self) -> int | None:
        """Training images of candidates, an epoch; None: all."""
        return self.config.search_images

    @property
    def final_images(self) -> int | None:
        """Training images of finalists, an epoch; None: all."""
        stored: int | None = self.metadata.get(FINAL_IMAGES)
        return stored

    @property
    def cost_metric(self) -> str | None:
        """The field of a row that is minimised beside the accuracy; None: accuracy alone."""
        return self.config.cost_metric

    @property
    def front(self) -> list[TrialRow]:
        """The best candidate for every cost; empty where no cost is minimised."""
        return pareto_front(self.rows, self.cost_metric) if self.cost_metric else []

    @property
    def counts(self) -> Counter[Verdict]:
        """The number of ended trials by verdict."""
        return Counter(row.verdict for row in self.rows)


def pareto_front(rows: list[TrialRow], cost_metric: str = "n_params") -> list[TrialRow]:
    """The trained candidates that no other one beats in both cost and accuracy; the cheapest first."""
    trained = [row for row in rows if row.verdict is Verdict.TRAINED]
    costs = [getattr(row, cost_metric) or 0 for row in trained]
    return [trained[at] for at in pareto_indices(costs, [row.validation_accuracy or 0.0 for row in trained])]


def pareto_indices(costs: Sequence[int], accuracies: Sequence[float]) -> list[int]:
    """The indices of the candidates that no other one beats in both; the cheapest first."""
    front: list[int] = []
    for index in sorted(range(len(costs)), key=lambda index: (costs[index], -accuracies[index])):
        if not front or accuracies[index] > accuracies[front[-1]]:
            front.append(index)
    return front


def learning_curves(study: optuna.Study) -> dict[int, dict[int, float]]:
    """Validation accuracy (0 to 1) by epoch, by trial number, of every ended trial that was evaluated."""
    ended = {trial.number: curve_of(trial) for trial in study.get_trials(deepcopy=False) if verdict_of(trial)}
    return {
        number: {epoch: point.accuracy for epoch, point in curve.items()}
        for number, curve in ended.items()
        if curve
    }


def to_frame(rows: list[TrialRow]) -> pd.DataFrame:
    """The rows as a table, one column a field, without architectures and recipes."""
    import pandas as pd

    names = [name for name in TrialRow.__slots__ if name not in ("architecture", "recipe")]
    frame = pd.DataFrame([[getattr(row, name) for name in names] for row in rows], columns=names)
    whole = ("n_params", "excess", "macs", "flash", "ram", "peak_memory")  # integers, or empty
    return frame.astype(dict.fromkeys(whole, "Int64"))
