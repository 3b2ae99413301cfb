"""Samplers of a replayed search: they choose among recorded candidates, each one once.

``ask`` returns the position of the next candidate in the table, ``tell`` takes its accuracy; None: pruned.
"""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import TrialState

from ..core.errors import InputError
from ..models.cost import Budget
from ..space.sampling import Params
from ..space.space import SearchSpace
from ..study.samplers import SamplerFactory, sampler_factory
from .curves import Curve

Distributions = dict[str, BaseDistribution]  # by the name of a parameter


class RandomOrderSampler:
    """Candidates in a random order."""

    def __init__(self, curves: Sequence[Curve], rng: random.Random) -> None:
        self.order = list(range(len(curves)))
        rng.shuffle(self.order)

    def ask(self) -> int:
        return self.order.pop()

    def tell(self, accuracy: float | None) -> None:
        pass


OPTUNA_SAMPLERS: dict[str, SamplerFactory] = {  # by the name in tables
    "TPE": sampler_factory("tpe"),
    "TPE, grouped": sampler_factory("tpe-grouped"),
    "GP": sampler_factory("gp"),
    "NSGA-II": sampler_factory("nsga2"),
    "mutation": sampler_factory("mutation"),
}


class NearestSampler:
    """A sampler of Optuna; each of its suggestions stands for the nearest recorded candidate that is left."""

    def __init__(
        self,
        curves: Sequence[Curve],
        make_sampler: SamplerFactory,
        space: SearchSpace,
        budget: Budget,
        distributions: Sequence[Distributions],  # by position
        rng: random.Random,
    ) -> None:
        self.curves, self.space, self.budget = curves, space, budget
        self.left = set(range(len(curves)))
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            sampler = make_sampler(rng.randrange(2**31))
        self.study = optuna.create_study(direction="maximize", sampler=sampler)
        self.by_name = {name: kind for kinds in distributions for name, kind in kinds.items()}

    def ask(self) -> int:
        self.trial = trial = self.study.ask()
        with contextlib.suppress(InputError):  # its parameters count, whether it fits or not
            self.space.draw(trial, self.budget)
        nearest = min(self.left, key=lambda at: (self.distance(trial.params, self.curves[at].params), at))
        self.left.remove(nearest)
        return nearest

    def tell(self, accuracy: float | None) -> None:
        """The suggestion gets the result of the candidate that stood for it."""
        state = TrialState.PRUNED if accuracy is None else TrialState.COMPLETE
        self.study.tell(self.trial, accuracy, state=state)

    def distance(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
        """The sum of the distances of all parameters, each 0 to 1; a parameter that one lacks counts 1."""
        return sum(
            _distance(self.by_name.get(name), one.get(name), other.get(name)) for name in {**one, **other}
        )


def _distance(distribution: BaseDistribution | None, one: Any, other: Any) -> float:
    if one is None or other is None or not isinstance(distribution, IntDistribution):
        return 0.0 if one == other else 1.0
    return abs(int(one) - int(other)) / max(distribution.high - distribution.low, 1)


Sampler = RandomOrderSampler | NearestSampler


def distributions_of(space: SearchSpace, budget: Budget, params: Params) -> Distributions:
    """The distributions that these parameters were drawn from."""
    trial = optuna.trial.FixedTrial(params)
    space.draw(trial, budget)
    return trial.distributions
