"""The only place where space, budget, model, training and trial meet."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from ..core.errors import InputError
from ..models.architecture import Architecture
from ..models.cost import Budget, Cost, cost_of
from ..recipes.recipe import Recipe, vary
from ..space.sampling import Suggest
from ..space.space import SearchSpace
from .owner import DEATHS, OWNER, RETRY_OF, myself
from .pruner import scored

if TYPE_CHECKING:
    from ..data.dataset import Images
    from ..training.loop import EpochResult


# System attributes of a trial: as user attributes they would make its page in the dashboard very wide.
ARCHITECTURE, RECIPE = "nas_mnist:architecture", "nas_mnist:recipe"


class Verdict(StrEnum):
    """How a trial ended; stored in the trial as the user attribute ``verdict``."""

    TRAINED = "trained"  # to the last epoch
    STOPPED = "stopped early"  # by the pruner
    OVER_BUDGET = "over budget"
    IMPOSSIBLE = "impossible"  # the draws make no network
    DUPLICATE = "duplicate"  # of a candidate that was trained or stopped before
    FAILED = "failed"  # in training, for a reason that is stored
    INTERRUPTED = "interrupted"
    UNNEEDED = "not needed"  # drawn while others trained the last candidates

    @property
    def counts(self) -> bool:
        """Whether the trial is one of ``--trials``."""
        return self in (Verdict.TRAINED, Verdict.STOPPED, Verdict.FAILED)


@dataclass(frozen=True)
class Watcher:
    """What a screen wants to hear of a search; every function may do nothing."""

    candidate: Callable[[int, Cost], None]  # trial number: its training begins
    epoch: Callable[[int, EpochResult], None]  # trial number: one more epoch is done
    ending: Callable[[Trial], None] = lambda _: None  # its attributes are stored, and it is about to end


class Candidate(NamedTuple):
    """What one trial tries."""

    architecture: Architecture
    recipe: Recipe
    key: str  # equal exactly for equal candidates of one study


@dataclass
class Objective:
    """Draw, count, gate, build, train, report: what one trial does.

    Returns the validation accuracy after the last epoch (0 to 1). Raises `optuna.TrialPruned` for a
    candidate that does not exist, is over budget, was seen before, failed, or was stopped early.

    In a study of two aims it returns accuracy and cost, also of a candidate that ends early after its first
    epoch, with the accuracy that it had then, or 0 where it failed: Optuna's TPE cannot handle pruned trials
    of such studies that have reported something.
    """

    space: SearchSpace
    budget: Budget
    recipe: Recipe
    learn: Images  # those that train
    choose: Images  # those held out to compare candidates
    seed: int
    watcher: Watcher
    total: int | None = None  # candidates that the study is to have
    vary_recipe: bool = False  # draw a few training choices as well, around the recipe
    against: str | None = None  # user attribute: the cost that a study of two aims weighs accuracy against
    running: int = -1  # number of the newest trial
    interrupted: bool = False  # while a trial ended; its end comes first

    def __call__(self, trial: Trial) -> float | tuple[float, float]:
        """Run one trial."""
        self.running = trial.number
        trial.set_user_attr(OWNER, myself())
        try:
            candidate = self.draw(trial)
        except InputError as error:
            raise self._end(trial, Verdict.IMPOSSIBLE, str(error)) from None
        cost = cost_of(candidate.architecture)
        _describe(trial, candidate, cost)
        excess = self.budget.excess(cost)
        trial.set_user_attr("excess", excess["parameters"])
        for what, over in excess.items():
            trial.set_constraint(what, float(over))
        if not self.budget.fits(cost):
            too_much = [f"{over:,} {what} too many" for what, over in excess.items() if over > 0]
            raise self._end(trial, Verdict.OVER_BUDGET, ", ".join(too_much))
        if (first := _seen_before(trial, candidate.key)) is not None:
            raise self._end(trial, Verdict.DUPLICATE, f"of trial {first}")
        if self.total is not None and _is_surplus(trial, self.total):
            raise self._end(trial, Verdict.UNNEEDED, "others train the last candidates")
        trial.set_user_attr("epochs", 0)
        self.watcher.candidate(trial.number, cost)
        return self._train(trial, candidate)

    def draw(self, suggest: Suggest) -> Candidate:
        """Draw everything; raises `InputError` where the draws make no network."""
        try:
            architecture = self.space.draw(suggest, self.budget)
        finally:  # everything is drawn, whatever comes of it
            recipe = vary(self.recipe, suggest) if self.vary_recipe else self.recipe
        key = architecture.key + (f"-{recipe.digest[:8]}" if self.vary_recipe else "")
        return Candidate(architecture, recipe, key)

    def _train(self, trial: Trial, candidate: Candidate) -> float | tuple[float, float]:
        from ..models.network import build
        from ..training.loop import TrainingError, device_failure, train

        accuracy, seconds, images = 0.0, 0.0, 0
        data, recipe, seed = self.learn, candidate.recipe, self.seed
        try:
            model = build(candidate.architecture, seed).to(data.images.device)
            looks = scored(recipe.epochs)
            for result in train(model, data, recipe, seed=seed, score_on=self.choose, scored=looks):
                seconds += result.seconds
                images += result.images
                trial.set_user_attr("seconds", round(seconds, 3))
                trial.set_user_attr("images", images)
                trial.set_user_attr(OWNER, myself())
                if result.score is not None:
                    accuracy = result.score.accuracy
                    trial.set_user_attr("validation_loss", result.score.loss)
                    _report(trial, accuracy, result.epoch)  # of the last epoch: from here on it is trained
                trial.set_user_attr("epochs", result.epoch)
                last = result.epoch == self.recipe.epochs
                if last:
                    self._end(trial, Verdict.TRAINED)
                self._tell(self.watcher.epoch, trial.number, result, ending=last)
                if result.score is not None and not last and _falls_behind(trial):
                    after = f"after epoch {result.epoch}"
                    return self._cut_short(trial, Verdict.STOPPED, after, accuracy)
        except TrainingError as error:
            return self._cut_short(trial, Verdict.FAILED, str(error), 0.0)
        except (RuntimeError, MemoryError) as error:
            if (reason := device_failure(error)) is None:
                raise
            gc.collect()
            return self._cut_short(trial, Verdict.FAILED, reason, 0.0)
        return values_of(trial, accuracy, self.against)

    def _cut_short(
        self, trial: Trial, verdict: Verdict, reason: str, accuracy: float
    ) -> float | tuple[float, float]:
        """End a trial before its last epoch."""
        ended = self._end(trial, verdict, reason)
        if self.against is None or not trial.user_attrs["epochs"]:
            raise ended from None
        return values_of(trial, accuracy, self.against)

    def _end(self, trial: Trial, verdict: Verdict, reason: str = "") -> optuna.TrialPruned:
        """Store how a trial ends, and why; the exception that ends it where it is not trained."""
        trial.set_user_attr("verdict", verdict)
        if reason:
            trial.set_user_attr("reason", reason)
        self._tell(self.watcher.ending, trial, ending=True)
        return optuna.TrialPruned(f"{verdict}: {reason}")

    def _tell(self, hear: Callable[..., None], *what: Any, ending: bool) -> None:
        """Let the watcher hear of something; while a trial is ``ending``, nothing may come between."""
        try:
            hear(*what)
        except KeyboardInterrupt:
            if not ending:
                raise
            self.interrupted = True
        except OSError:  # of a picture that cannot be written
            if not ending:
                raise


def values_of(
    trial: Trial | FrozenTrial, accuracy: float, against: str | None
) -> float | tuple[float, float]:
    """What a trial's value is, or its values are in a study of two aims."""
    return accuracy if against is None else (accuracy, float(trial.user_attrs[against]))


def _report(trial: Trial, accuracy: float, epoch: int) -> None:
    """What `Trial.report` does, which studies of two aims lack."""
    trial.storage.set_trial_intermediate_value(trial._trial_id, epoch, accuracy)


def _falls_behind(trial: Trial) -> bool:
    """What `Trial.should_prune` says, which studies of two aims lack."""
    return trial.study.pruner.prune(trial.study, trial.storage.get_trial(trial._trial_id))


def verdict_of(trial: FrozenTrial) -> Verdict | None:
    """How a trial ended; None: it waits or runs."""
    if trial.state == TrialState.FAIL:
        return Verdict.INTERRUPTED
    stored = trial.user_attrs.get("verdict")
    return Verdict(stored) if stored else None


def _describe(trial: Trial, candidate: Candidate, cost: Cost) -> None:
    trial.set_user_attr("n_params", cost.params)
    trial.set_user_attr("macs", cost.macs)
    trial.set_user_attr("peak_memory", cost.peak_memory)
    trial.set_user_attr("key", candidate.key)
    for name, data in ((ARCHITECTURE, candidate.architecture), (RECIPE, candidate.recipe)):
        trial.storage.set_trial_system_attr(trial._trial_id, name, data.model_dump(mode="json"))


def _seen_before(trial: Trial, key: str) -> int | None:
    """The number of another trial that trains or has trained the same candidate.

    Of two that have just drawn it the one with the lower number trains it, unless the other has begun. One
    whose process died twice counts as trained: its candidate was given up.
    """
    others = trial.study.get_trials(deepcopy=False)
    retried = {other.user_attrs.get(RETRY_OF) for other in others}
    for other in others:
        if other.number == trial.number or other.user_attrs.get("key") != key:
            continue
        verdict = verdict_of(other)
        trains = other.state == TrialState.RUNNING and (other.number < trial.number or _has_begun(other))
        again = other.state == TrialState.FAIL and other.user_attrs.get(DEATHS, 0) > 0
        if trains or (verdict and verdict.counts) or (again and other.number not in retried):
            return other.number
    return None


def _is_surplus(trial: Trial, total: int) -> bool:
    """Whether the study has its total without this trial: two processes may begin the last one at once."""
    taken = 0
    for other in trial.study.get_trials(deepcopy=False):
        verdict = verdict_of(other)
        if other.state == TrialState.RUNNING:
            taken += other.number < trial.number or (_has_begun(other) and other.number != trial.number)
        else:
            taken += bool(verdict and verdict.counts)
    return taken >= total


def _has_begun(trial: FrozenTrial) -> bool:
    return "epochs" in trial.user_attrs
