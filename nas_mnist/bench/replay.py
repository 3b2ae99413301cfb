"""Searches replayed on recorded learning curves: what a sampler and a rule of stopping are worth.

A replayed search has one worker. It draws recorded candidates, each one once, until one that is trained to
the end reaches the target; what counts is the number of epochs that were trained until then. A sampler that
makes up candidates (TPE) gets the recorded one that is nearest to its draws.
"""

from __future__ import annotations

import contextlib
import math
import random
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import TrialState

from ..core.errors import InputError
from ..models.cost import Budget
from ..space.sampling import Draws, Replay
from ..space.space import SearchSpace
from ..study.pruner import Accuracies, falls_behind, rungs
from ..study.results import unbeaten
from .curves import Curve

Rule = Callable[[Accuracies, Sequence[Accuracies]], bool]  # of a candidate and of others: whether to stop


class Sampler(Protocol):
    """Chooses recorded candidates, each one once."""

    def choose(self) -> int: ...

    def hear(self, candidate: int, accuracies: Accuracies, trained: bool) -> None: ...


class RandomOrder:
    """Candidates in a random order."""

    def __init__(self, curves: Sequence[Curve], rng: random.Random) -> None:
        self.order = list(range(len(curves)))
        rng.shuffle(self.order)

    def choose(self) -> int:
        """The next candidate."""
        return self.order.pop()

    def hear(self, candidate: int, accuracies: Accuracies, trained: bool) -> None:
        """Learn nothing."""


class NearestToTpe:
    """What Optuna's TPE draws; of the recorded candidates the nearest that is left."""

    def __init__(
        self,
        curves: Sequence[Curve],
        rng: random.Random,
        space: SearchSpace,
        budget: Budget,
        distributions: Sequence[dict[str, BaseDistribution]],  # of every curve's draws
    ) -> None:
        self.curves, self.space, self.budget = curves, space, budget
        self.left = set(range(len(curves)))
        self.study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=rng.randrange(2**31))
        )
        self.distributions = list(distributions)
        self.all = {name: kind for kinds in self.distributions for name, kind in kinds.items()}

    def choose(self) -> int:
        """The next candidate."""
        trial = self.study.ask()
        with contextlib.suppress(InputError):  # everything is drawn, whatever comes of it
            self.space.draw(trial, self.budget)
        self.study.tell(trial, state=TrialState.FAIL)
        chosen = min(self.left, key=lambda at: (self._distance(trial.params, self.curves[at].draws), at))
        self.left.remove(chosen)
        return chosen

    def hear(self, candidate: int, accuracies: Accuracies, trained: bool) -> None:
        """Learn what came of a candidate."""
        self.study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE if trained else TrialState.PRUNED,
                value=accuracies[max(accuracies)] if trained else None,
                params=self.curves[candidate].draws,
                distributions=self.distributions[candidate],
                intermediate_values=dict(accuracies),
            )
        )

    def _distance(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
        return sum(_apart(self.all.get(name), one.get(name), other.get(name)) for name in {**one, **other})


def _apart(kind: BaseDistribution | None, one: Any, other: Any) -> float:
    """How far two draws of one choice are apart, 0 to 1."""
    if one is None or other is None or not isinstance(kind, IntDistribution):
        return 0.0 if one == other else 1.0
    return abs(int(one) - int(other)) / max(kind.high - kind.low, 1)


def distributions_of(space: SearchSpace, budget: Budget, draws: Draws) -> dict[str, BaseDistribution]:
    """What each of these draws was drawn from."""

    class Recorder(Replay):
        def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
            found[name] = IntDistribution(low, high, step=step)
            return super().suggest_int(name, low, high, step=step)

        def suggest_categorical(self, name: str, choices: Sequence[Any], /) -> Any:
            found[name] = CategoricalDistribution(choices)
            return super().suggest_categorical(name, choices)

    found: dict[str, BaseDistribution] = {}
    space.draw(Recorder(draws), budget)
    return found


def never(own: Accuracies, others: Sequence[Accuracies]) -> bool:  # noqa: ARG001
    """Stop nobody."""
    return False


def median(own: Accuracies, others: Sequence[Accuracies], first: int = 5) -> bool:
    """Stop whoever is below the median of those that came as far, once there are ``first`` of them."""
    rung = max(own)
    known = [other[rung] for other in others if rung in other]
    return len(known) >= first and own[rung] < statistics.median(known)


def rules(epochs: int) -> dict[str, Rule]:
    """Ways to stop candidates of so many epochs."""
    return {
        "nobody is stopped": never,
        "below the median": median,
        "thirds after 1, 3 and 9 epochs": partial(falls_behind, looks=(1, 3, 9), share=1 / 3),
        "halves, looks twice as late": partial(falls_behind, looks=[2 * look for look in rungs(epochs)]),
        "this program's halving": partial(falls_behind, looks=rungs(epochs)),
    }


@dataclass(frozen=True)
class Replayed:
    """One replayed search."""

    epochs: int  # of training images
    reached: bool  # the target


def replay(curves: Sequence[Curve], sampler: Sampler, rule: Rule, target: float) -> Replayed:
    """One search until a candidate's last epoch has at least ``target``, or all are tried."""
    spent = 0
    before: list[Accuracies] = []
    for _ in curves:
        chosen = sampler.choose()
        accuracies, stopped = _train(curves[chosen], rule, before)
        before.append(accuracies)
        spent += len(accuracies)
        sampler.hear(chosen, accuracies, not stopped)
        if not stopped and accuracies[len(accuracies)] >= target:
            return Replayed(spent, True)
    return Replayed(spent, False)


def _train(curve: Curve, rule: Rule, before: Sequence[Accuracies]) -> tuple[Accuracies, bool]:
    """How far a candidate comes, and whether it was stopped."""
    accuracies: dict[int, float] = {}
    for epoch, accuracy in enumerate(curve.accuracies, 1):
        accuracies[epoch] = accuracy
        if epoch < len(curve.accuracies) and rule(accuracies, before):
            return accuracies, True
    return accuracies, False


class Worth(NamedTuple):
    """What a way to search is worth, over many replays."""

    epochs: float  # mean, until a search reaches the target; those that never do are begun anew
    error: float  # standard error of that mean
    reached: float  # share of the replays that reach it without beginning anew


def worth(outcomes: Sequence[Replayed]) -> Worth:
    """The mean effort for one success: all effort by the number of successes."""
    successes = sum(one.reached for one in outcomes)
    if not successes:
        return Worth(math.inf, math.nan, 0.0)
    mean = sum(one.epochs for one in outcomes) / successes
    # Of a ratio of two means (the delta method): what each replay adds to effort and success.
    spread = statistics.pstdev(one.epochs - mean * one.reached for one in outcomes)
    share = successes / len(outcomes)
    return Worth(mean, spread / share / math.sqrt(len(outcomes)), share)


def compare(
    curves: Sequence[Curve], space: SearchSpace, budget: Budget, target: float, repeats: int, seed: int
) -> dict[str, dict[str, Worth]]:
    """By sampler and by rule, what a search is worth; the same orders for every rule."""
    drawn_from = [distributions_of(space, budget, curve.draws) for curve in curves]
    samplers: dict[str, Callable[[random.Random], Sampler]] = {
        "random": lambda rng: RandomOrder(curves, rng),
        "TPE": lambda rng: NearestToTpe(curves, rng, space, budget, drawn_from),
    }
    return {
        sampler: {
            name: worth(
                [
                    replay(curves, make(random.Random(f"{seed}-{repeat}")), rule, target)
                    for repeat in range(repeats)
                ]
            )
            for name, rule in rules(len(curves[0].accuracies)).items()
        }
        for sampler, make in samplers.items()
    }


class FrontWorth(NamedTuple):
    """What early stopping is worth where a front is looked for, over many replays."""

    epochs: float  # share of those that training everyone to the end takes, mean
    members: int  # of the front of all
    kept: float  # share of these that are trained to the end, mean
    lost: float  # accuracy (0 to 1) that the front lacks at their costs, mean over them


def front_worth(curves: Sequence[Curve], costs: Sequence[int], repeats: int, seed: int) -> FrontWorth:
    """Searches for the best at every cost: all candidates, in random orders, stopped as `Halving` does."""
    finals = [curve.accuracies[-1] for curve in curves]
    members = unbeaten(costs, finals)
    epochs = len(curves[0].accuracies)
    rule = partial(falls_behind, looks=rungs(epochs))
    spent, kept, lost = [], [], []
    for repeat in range(repeats):
        order = list(range(len(curves)))
        random.Random(f"{seed}-{repeat}").shuffle(order)
        seen: dict[int, Accuracies] = {}
        ended: list[int] = []
        for at in order:
            others = [seen[other] for other in seen if costs[other] <= costs[at]]
            seen[at], stopped = _train(curves[at], rule, others)
            ended += [] if stopped else [at]
        spent.append(sum(map(len, seen.values())) / (epochs * len(curves)))
        kept.append(len({*members} & {*ended}) / len(members))
        for at in members:
            lost.append(
                finals[at] - max((finals[one] for one in ended if costs[one] <= costs[at]), default=0.0)
            )
    return FrontWorth(*(statistics.mean(spent), len(members), statistics.mean(kept), statistics.mean(lost)))


def ranks(curves: Sequence[Curve]) -> dict[str, dict[str, float]]:
    """Spearman's rank correlation of early signals with the accuracy after the last epoch."""
    from scipy.stats import spearmanr

    def correlation(values: Sequence[float]) -> float:
        with warnings.catch_warnings(action="ignore"):  # of equal values, which have no ranks
            return round(float(spearmanr(values, finals, nan_policy="omit").statistic), 3)

    finals = [curve.accuracies[-1] for curve in curves]
    found = {}
    for epoch in [1, 2, 3, 4, 6, 8, 10, 12, 16]:
        if epoch < len(curves[0].accuracies):
            found[f"epoch {epoch}"] = {
                "accuracy": correlation([curve.accuracies[epoch - 1] for curve in curves]),
                "loss": -correlation([curve.losses[epoch - 1] for curve in curves]),
            }
    return found
