"""Samplers of a replayed search: they choose among recorded candidates, each one once.

``ask`` returns the position of the next candidate in the table, ``tell`` takes its result.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import TrialState

from ..core.errors import InputError
from ..models.cost import Budget
from ..space.sampling import Params
from ..space.space import SearchSpace
from ..study.pruner import Accuracies
from .curves import Curve

Distributions = dict[str, BaseDistribution]  # by the name of a parameter


class RandomOrderSampler:
    """Candidates in a random order."""

    def __init__(self, curves: Sequence[Curve], rng: random.Random) -> None:
        self.order = list(range(len(curves)))
        rng.shuffle(self.order)

    def ask(self) -> int:
        return self.order.pop()

    def tell(self, position: int, accuracies: Accuracies, pruned: bool) -> None:
        pass


class NearestTpeSampler:
    """Optuna's TPE; each of its suggestions stands for the nearest recorded candidate that is left."""

    def __init__(
        self,
        curves: Sequence[Curve],
        rng: random.Random,
        space: SearchSpace,
        budget: Budget,
        distributions: Sequence[Distributions],  # by position
    ) -> None:
        self.curves, self.space, self.budget = curves, space, budget
        self.left = set(range(len(curves)))
        sampler = optuna.samplers.TPESampler(seed=rng.randrange(2**31))
        self.study = optuna.create_study(direction="maximize", sampler=sampler)
        self.distributions = list(distributions)
        self.by_name = {name: kind for kinds in self.distributions for name, kind in kinds.items()}

    def ask(self) -> int:
        trial = self.study.ask()
        with contextlib.suppress(InputError):  # its parameters count, whether it fits or not
            self.space.draw(trial, self.budget)
        self.study.tell(trial, state=TrialState.FAIL)
        nearest = min(self.left, key=lambda at: (self.distance(trial.params, self.curves[at].params), at))
        self.left.remove(nearest)
        return nearest

    def tell(self, position: int, accuracies: Accuracies, pruned: bool) -> None:
        result = optuna.trial.create_trial(
            state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
            value=None if pruned else accuracies[max(accuracies)],
            params=self.curves[position].params,
            distributions=self.distributions[position],
            intermediate_values=dict(accuracies),
        )
        self.study.add_trial(result)

    def distance(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
        """The sum of the distances of all parameters, each 0 to 1; a parameter that one lacks counts 1."""
        return sum(
            _distance(self.by_name.get(name), one.get(name), other.get(name)) for name in {**one, **other}
        )


def _distance(distribution: BaseDistribution | None, one: Any, other: Any) -> float:
    if one is None or other is None or not isinstance(distribution, IntDistribution):
        return 0.0 if one == other else 1.0
    return abs(int(one) - int(other)) / max(distribution.high - distribution.low, 1)


Sampler = RandomOrderSampler | NearestTpeSampler


def distributions_of(space: SearchSpace, budget: Budget, params: Params) -> Distributions:
    """The distributions that these parameters were drawn from."""
    trial = optuna.trial.FixedTrial(params)
    space.draw(trial, budget)
    return trial.distributions
