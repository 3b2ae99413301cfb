"""What one trial does: draw, describe, count, gate, build, train, report."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, Trial

from ..core.compat import frozen, set_system_attr
from ..core.errors import InputError
from ..models.cost import Budget, Cost, cost_of
from .candidate import Candidate, CandidateSpace
from .concurrency import find_duplicate, is_surplus
from .curve import Point, store_point
from .given import FOUND, ORIGIN, given_to
from .owner import OWNER, this_process
from .pruner import eval_epochs
from .verdict import Verdict

if TYPE_CHECKING:
    from ..core.defaults import Engine
    from ..data.dataset import Images
    from ..training.loop import EpochResult


# System attributes of a trial: as user attributes they would make its page in the dashboard very wide.
ARCHITECTURE, RECIPE = "nas_mnist:architecture", "nas_mnist:recipe"

# The constraint of draws that make no network, and the highest of all: as a cost of eleven times the limit.
WORST_EXCESS = 10.0

Values = float | tuple[float, float]  # accuracy (0 to 1), or accuracy and cost


def _ignore(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Callbacks:
    """Functions that are called while a trial runs."""

    on_candidate: Callable[[int, Cost], None] = _ignore  # trial number, cost; training begins
    on_epoch: Callable[[int, EpochResult], None] = _ignore  # trial number, result; an epoch is over
    on_end: Callable[[Trial], None] = _ignore  # the trial's attributes are stored, it is about to end


@dataclass
class Objective:
    """The objective of a study.

    Returns the validation accuracy after the last epoch (0 to 1). Raises `optuna.TrialPruned` for a
    candidate that makes no network, is over budget, was trained before, failed, or was stopped early.

    With a ``cost_metric`` the study has two objectives, accuracy and cost. Then a candidate that was stopped
    early returns both, so that the sampler learns from it.
    """

    candidates: CandidateSpace
    train_data: Images
    val_data: Images
    seed: int  # of weights, order and augmentation
    callbacks: Callbacks = Callbacks()
    total: int | None = None  # candidates that the study is to have
    given_budget: Budget | None = None  # limits of given networks; None: those of drawn ones
    cost_metric: str | None = None  # user attribute of a trial: the cost to minimise beside the accuracy
    compare_by: str | None = None  # user attribute: early stopping compares trials that have no more of it
    engine: Engine | None = None  # as in `training.loop.train`
    interrupted: bool = field(default=False, init=False)  # while a trial ended, which was completed first

    def __call__(self, trial: Trial) -> Values:
        """Run one trial."""
        trial.set_user_attr(OWNER, this_process())
        candidate = self._draw(trial)
        cost = cost_of(candidate.architecture)
        _describe(trial, candidate, cost)
        self._check_budget(trial, cost)
        if (first := find_duplicate(trial, candidate.key)) is not None:
            raise self._end(trial, Verdict.DUPLICATE, f"of trial {first}")
        if self.total is not None and is_surplus(trial, self.total):
            raise self._end(trial, Verdict.UNNEEDED, "others train the last candidates")
        trial.set_user_attr("epochs", 0)
        self.callbacks.on_candidate(trial.number, cost)
        return self._train(trial, candidate)

    def _draw(self, trial: Trial) -> Candidate:
        """The candidate of a trial; ends the trial where its draws make no network."""
        if (given := given_to(frozen(trial))) is not None:
            return self.candidates.given(*given)
        trial.set_user_attr(ORIGIN, FOUND)
        try:
            return self.candidates.draw(trial)
        except InputError as error:
            for unit in self.candidates.budget.limits:
                trial.set_constraint(unit, WORST_EXCESS)
            raise self._end(trial, Verdict.IMPOSSIBLE, str(error)) from None

    def _check_budget(self, trial: Trial, cost: Cost) -> None:
        """Store a constraint for each limit, cost / limit - 1; end the trial where one is broken."""
        budget = self.candidates.budget
        if self.given_budget is not None and given_to(frozen(trial)) is not None:
            budget = self.given_budget
        excess = budget.excess(cost)
        trial.set_user_attr("excess", excess["parameters"])
        for unit, over in excess.items():
            trial.set_constraint(unit, min(over / budget.limits[unit], WORST_EXCESS))
        if not budget.fits(cost):
            too_much = [f"{over:,} {unit} too many" for unit, over in excess.items() if over > 0]
            raise self._end(trial, Verdict.OVER_BUDGET, ", ".join(too_much))

    def _train(self, trial: Trial, candidate: Candidate) -> Values:
        """Build and train; a failure that training may have ends the trial with a reason."""
        from ..models.network import build
        from ..training.loop import TrainingError, device_failure, train

        recipe = candidate.recipe
        try:
            model = build(candidate.architecture, self.seed).to(self.train_data.images.device)
            results = train(
                *(model, self.train_data, recipe),
                seed=self.seed,
                score_on=self.val_data,
                eval_epochs=eval_epochs(recipe.epochs),
                engine=self.engine,
            )
            return self._run_epochs(trial, results)
        except TrainingError as error:
            reason = str(error)
        except (RuntimeError, MemoryError) as error:  # a model that does not fit the device
            if (failure := device_failure(error)) is None:
                raise
            reason = failure
        if self.train_data.images.device.type != "cpu":
            gc.collect()  # frees the memory of the device
        raise self._end(trial, Verdict.FAILED, reason)

    def _run_epochs(self, trial: Trial, results: Iterable[EpochResult]) -> Values:
        """Store every epoch, and stop where the pruner says so."""
        accuracy, seconds, images = 0.0, 0.0, 0
        for result in results:
            seconds += result.seconds
            images += result.images
            trial.set_user_attr("seconds", round(seconds, 3))
            trial.set_user_attr("images", images)
            trial.set_user_attr(OWNER, this_process())
            if result.score is not None:
                accuracy = result.score.accuracy
                store_point(trial, result.epoch, Point(accuracy, result.score.loss))
            trial.set_user_attr("epochs", result.epoch)
            is_last = result.epoch == self.candidates.recipe.epochs
            if is_last:
                self._end(trial, Verdict.TRAINED)
            self._call(self.callbacks.on_epoch, trial.number, result, ending=is_last)
            if result.score is not None and not is_last and _should_prune(trial):
                pruned = self._end(trial, Verdict.STOPPED, f"after epoch {result.epoch}")
                if self.cost_metric is None:
                    raise pruned
                break
        return objective_values(trial, accuracy, self.cost_metric)

    def _end(self, trial: Trial, verdict: Verdict, reason: str = "") -> optuna.TrialPruned:
        """Store the verdict and its reason; returns the exception for a trial that has no value."""
        trial.set_user_attr("verdict", verdict)
        if reason:
            trial.set_user_attr("reason", reason)
        self._call(self.callbacks.on_end, trial, ending=True)
        return optuna.TrialPruned(f"{verdict}: {reason}")

    def _call(self, callback: Callable[..., None], *arguments: Any, ending: bool) -> None:
        """Call back. Once a trial is ending, neither Ctrl-C nor an unwritable picture may lose its value."""
        try:
            callback(*arguments)
        except KeyboardInterrupt:
            if not ending:
                raise
            self.interrupted = True
        except OSError:
            if not ending:
                raise


def objective_values(trial: Trial | FrozenTrial, accuracy: float, cost_metric: str | None) -> Values:
    """The value of a trial, or its two values where a cost is minimised, too."""
    return accuracy if cost_metric is None else (accuracy, float(trial.user_attrs[cost_metric]))


def _describe(trial: Trial, candidate: Candidate, cost: Cost) -> None:
    """Store the candidate as data, and its cost."""
    trial.set_user_attr("n_params", cost.params)
    trial.set_user_attr("macs", cost.macs)
    trial.set_user_attr("flash", cost.flash)
    trial.set_user_attr("ram", cost.ram)
    trial.set_user_attr("peak_memory", cost.peak_memory)
    trial.set_user_attr("key", candidate.key)
    for name, data in ((ARCHITECTURE, candidate.architecture), (RECIPE, candidate.recipe)):
        set_system_attr(trial, name, data.model_dump(mode="json"))


def _should_prune(trial: Trial) -> bool:
    """`Trial.should_prune`, which raises in multi-objective studies."""
    return trial.study.pruner.prune(trial.study, frozen(trial))
