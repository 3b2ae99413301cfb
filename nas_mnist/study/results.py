"""From a study to typed rows and a pandas table."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial

from ..models.cost import Budget, weighed_against
from .objective import ARCHITECTURE, RECIPE, Verdict, verdict_of
from .pruner import rungs

if TYPE_CHECKING:
    import pandas as pd

FINAL_IMAGES = "final_images"  # of a study: how many finalists are trained on, an epoch; None or absent: all
FINALS = "finals"  # user attribute of a study: validation accuracies of finalists, by key, by seed
ENOUGH_TO_COMPARE = 10  # trained candidates; with fewer, importances say nothing


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
    peak_memory: int | None  # bytes of activations for one image, float32
    epochs: int  # finished
    images: int  # trained on
    validation_accuracy: float | None  # after the last of them that was scored, 0 to 1
    validation_loss: float | None  # nats an image
    seconds: float  # of training
    key: str | None  # of the architecture, and of the recipe where the search chooses that
    architecture: dict[str, Any] | None
    recipe: dict[str, Any] | None  # that it was trained with


def trial_row(trial: FrozenTrial) -> TrialRow | None:
    """One trial as a row; None while it waits or runs."""
    verdict = verdict_of(trial)
    if verdict is None:
        return None
    attrs = trial.user_attrs
    last = trial.last_step
    return TrialRow(
        trial=trial.number,
        verdict=verdict,
        reason=attrs.get("reason", ""),
        n_params=attrs.get("n_params"),
        excess=attrs.get("excess"),
        macs=attrs.get("macs"),
        peak_memory=attrs.get("peak_memory"),
        epochs=attrs.get("epochs", 0),
        images=attrs.get("images", 0),
        validation_accuracy=None if last is None else trial.intermediate_values[last],
        validation_loss=attrs.get("validation_loss"),
        seconds=attrs.get("seconds", 0.0),
        key=attrs.get("key"),
        architecture=trial.system_attrs.get(ARCHITECTURE, attrs.get("architecture")),
        recipe=trial.system_attrs.get(RECIPE, attrs.get("recipe")),
    )


def trial_rows(study: optuna.Study) -> list[TrialRow]:
    """Every trial that has ended, in the order of their numbers."""
    rows = (trial_row(trial) for trial in study.get_trials(deepcopy=False))
    return [row for row in rows if row is not None]


def best_rows(rows: list[TrialRow], count: int) -> list[TrialRow]:
    """The ``count`` best candidates that were trained to the end; of equals the smaller comes first."""
    trained = [row for row in rows if row.verdict is Verdict.TRAINED]
    return sorted(trained, key=lambda row: (-(row.validation_accuracy or 0), row.n_params or 0))[:count]


def seeds_of(row: TrialRow, finals: Finals) -> list[float]:
    """A candidate's validation accuracies with further seeds."""
    return list(finals.get(row.key or "", {}).values())


def accuracies_of(row: TrialRow, finals: Finals, short: bool) -> list[float]:
    """The validation accuracies by which a candidate is judged: the search's, then those of further seeds.

    ``short``: the search trained for fewer epochs than those, and counts only where there are none.
    """
    further = seeds_of(row, finals)
    return further if short and further else [row.validation_accuracy or 0.0, *further]


def winner_of(rows: list[TrialRow], finals: Finals, short: bool = False) -> TrialRow | None:
    """The best candidate, by the mean over its seeds among those that were trained with the most seeds.

    The best of many noisy scores is too good; so a candidate that was trained once does not beat one whose
    mean is known. None where no candidate was trained to the end. ``short`` as in `accuracies_of`.
    """
    trained = best_rows(rows, len(rows))
    if not trained:
        return None
    most = max(len(seeds_of(row, finals)) for row in trained)
    known = [row for row in trained if len(seeds_of(row, finals)) == most]
    return max(known, key=lambda row: (fmean(accuracies_of(row, finals, short)), -(row.n_params or 0)))


@dataclass(frozen=True)
class StudyResults:
    """Everything that a report tells of a study."""

    name: str
    rows: list[TrialRow]
    curves: dict[int, dict[int, float]]  # trial -> epoch -> validation accuracy
    importances: dict[str, float]
    facts: dict[str, Any]  # the study's user attributes: space, recipe, data, identity, winner...

    @classmethod
    def read(cls, study: optuna.Study) -> StudyResults:
        """Of a study that may still be running."""
        rows, curves = trial_rows(study), learning_curves(study)
        matters = importances(study, candidate_epochs(study.user_attrs))
        return cls(study.study_name, rows, curves, matters, dict(study.user_attrs))

    @property
    def winner(self) -> TrialRow | None:
        """The best candidate that was trained to the last epoch (`winner_of`)."""
        return winner_of(self.rows, self.finals, self.short)

    @property
    def finals(self) -> Finals:
        """Validation accuracies of candidates that were trained again, by key, by seed."""
        stored: Finals = self.facts.get(FINALS, {})
        return stored

    @property
    def short(self) -> bool:
        """Whether candidates were trained for fewer epochs, or on fewer images, than finalists and winner."""
        return trained_shortly(self.facts)

    @property
    def epochs(self) -> int:
        """For which candidates are trained."""
        return candidate_epochs(self.facts)

    @property
    def images(self) -> int | None:
        """That candidates are trained on, an epoch; None: all."""
        part: int | None = self.facts.get("identity", {}).get("search_images")
        return part

    @property
    def final_images(self) -> int | None:
        """That finalists are trained on, an epoch; None: all."""
        part: int | None = self.facts.get(FINAL_IMAGES)
        return part

    @property
    def against(self) -> str | None:
        """The cost that accuracy was weighed against; None in a search for the best alone."""
        return weighed_against(self.facts.get("identity", {}).get("objective"))

    @property
    def front(self) -> list[TrialRow]:
        """The best for every such cost; empty in a search for the best alone."""
        return pareto_front(self.rows, self.against) if self.against else []

    @property
    def counts(self) -> Counter[Verdict]:
        """How many trials ended in which way."""
        return Counter(row.verdict for row in self.rows)


def trained_shortly(facts: Mapping[str, Any]) -> bool:
    """Whether a study's candidates are trained for fewer epochs, or on fewer images, than its finalists."""
    identity = facts.get("identity", {})
    return bool(identity.get("search_epochs") or identity.get("search_images"))


def candidate_epochs(facts: Mapping[str, Any]) -> int:
    """For which a study's candidates are trained, by its facts."""
    return int(facts["identity"].get("search_epochs") or facts["recipe"]["epochs"])


def budget_of(identity: Mapping[str, Any]) -> Budget:
    """The budget that a study was made with."""
    return Budget(identity["max_params"], identity.get("max_macs"), identity.get("max_memory"))


def pareto_front(rows: list[TrialRow], against: str = "n_params") -> list[TrialRow]:
    """The trained candidates that no other beats in both a cost and accuracy; the smallest first."""
    trained = [row for row in rows if row.verdict is Verdict.TRAINED]
    costs = [getattr(row, against) or 0 for row in trained]
    return [trained[at] for at in unbeaten(costs, [row.validation_accuracy or 0.0 for row in trained])]


def unbeaten(costs: Sequence[int], accuracies: Sequence[float]) -> list[int]:
    """The positions of what nothing else beats in both; the cheapest first."""
    front: list[int] = []
    for at in sorted(range(len(costs)), key=lambda at: (costs[at], -accuracies[at])):
        if not front or accuracies[at] > accuracies[front[-1]]:
            front.append(at)
    return front


def learning_curves(study: optuna.Study) -> dict[int, dict[int, float]]:
    """Validation accuracy (0 to 1) by epoch, by trial number, of every trial that has ended with some."""
    ended = (trial for trial in study.get_trials(deepcopy=False) if verdict_of(trial))
    return {trial.number: dict(trial.intermediate_values) for trial in ended if trial.intermediate_values}


def importances(study: optuna.Study, epochs: int) -> dict[str, float]:
    """How much each draw matters for the accuracy at the second look, of shares that add up to 1.

    That is after a tenth of 20 ``epochs``. Half of the candidates come as far (`stopping.rungs`), and before
    that accuracies say little. By Optuna's
    default evaluator, PED-ANOVA (arxiv.org/abs/2304.10255). Empty below `ENOUGH_TO_COMPARE` candidates.
    """
    rung = rungs(epochs)[:2][-1]
    known = [trial for trial in study.get_trials(deepcopy=False) if rung in trial.intermediate_values]
    if len(known) < ENOUGH_TO_COMPARE:
        return {}
    plain = optuna.create_study(direction="maximize")
    for trial in known:
        plain.add_trial(
            optuna.trial.create_trial(
                params=trial.params,
                distributions=trial.distributions,
                value=trial.intermediate_values[rung],
            )
        )
    with warnings.catch_warnings(action="ignore"):  # of choices that few candidates have
        return dict(optuna.importance.get_param_importances(plain))


def to_frame(rows: list[TrialRow]) -> pd.DataFrame:
    """The rows as a table, one column a field, without architectures and recipes."""
    import pandas as pd

    names = [name for name in TrialRow.__slots__ if name not in ("architecture", "recipe")]
    frame = pd.DataFrame([asdict(row) for row in rows], columns=names)
    whole = ("n_params", "excess", "macs", "peak_memory")  # numbers, and nothing where there is no network
    return frame.astype(dict.fromkeys(whole, "Int64"))
