"""Searches replayed on recorded learning curves: the effort that a sampler and a pruning rule need.

A replayed search has one worker. It takes recorded candidates, each one once, until one that is trained to
the last epoch reaches the target. Its effort is the number of epochs trained until then.
"""

from __future__ import annotations

import math
import random
import statistics
import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

from scipy.stats import spearmanr

from ..models.cost import Budget
from ..space.space import SearchSpace
from ..study.pruner import is_behind, rung
from ..study.results import pareto_indices
from ..study.samplers import SamplerFactory
from .curves import Curve
from .samplers import OPTUNA_SAMPLERS, NearestSampler, RandomOrderSampler, Sampler, distributions_of

Losses = Sequence[float]  # validation losses by epoch, as far as a candidate was trained
PruningRule = Callable[[Losses, Sequence[Losses]], bool]  # of a candidate and of those before it
CORRELATED_EPOCHS = (1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 18)
EARLY_RUNGS = (1 / 20, 1 / 10, 1 / 5, 2 / 5)  # shares of the epochs


def no_pruning(own: Losses, others: Sequence[Losses]) -> bool:  # noqa: ARG001
    """Train every candidate to the last epoch."""
    return False


def late_median(own: Losses, others: Sequence[Losses], rung: int) -> bool:
    """The pruner of a search."""
    return len(own) == rung and is_behind(
        own[-1], [other[rung - 1] for other in others if len(other) >= rung]
    )


def halving(own: Losses, others: Sequence[Losses], rungs: Container[int]) -> bool:
    """Prune the worse half at each rung (ASHA, Li et al. 2020, arxiv.org/abs/1810.05934)."""
    epoch = len(own)
    known = [other[epoch - 1] for other in others if len(other) >= epoch]
    ahead = sum(loss < own[-1] for loss in known)
    return epoch in rungs and ahead >= max((len(known) + 1) // 2, 1)


def pruning_rules(epochs: int) -> dict[str, PruningRule]:
    """The rules that are compared, by name, for trainings of ``epochs`` epochs."""
    early = {max(round(share * epochs), 1) for share in EARLY_RUNGS}
    return {
        "no pruning": no_pruning,
        "late median (search)": partial(late_median, rung=rung(epochs)),
        "halving at half": partial(halving, rungs={rung(epochs)}),
        "halving, early rungs": partial(halving, rungs=early),
    }


class ReplayResult(NamedTuple):
    """One replayed search."""

    epochs: int  # trained
    reached: bool  # the target


def replay(curves: Sequence[Curve], sampler: Sampler, rule: PruningRule, target: float) -> ReplayResult:
    """Search until a candidate has at least ``target`` (0 to 1) after its last epoch, or all are tried."""
    spent = 0
    before: list[Losses] = []
    for _ in curves:
        position = sampler.ask()
        curve = curves[position]
        losses = _train(curve, rule, before)
        before.append(losses)
        spent += len(losses)
        pruned = len(losses) < len(curve.losses)
        sampler.tell(None if pruned else curve.accuracies[-1])
        if not pruned and curve.accuracies[-1] >= target:
            return ReplayResult(spent, True)
    return ReplayResult(spent, False)


def _train(curve: Curve, rule: PruningRule, before: Sequence[Losses]) -> Losses:
    """The losses of a candidate until it is pruned, or all."""
    losses = [math.inf if math.isnan(loss) else loss for loss in curve.losses]
    ends = (epoch for epoch in range(1, len(losses)) if rule(losses[:epoch], before))
    return losses[: next(ends, len(losses))]


class EffortToTarget(NamedTuple):
    """The effort of one kind of search, over many replays."""

    epochs: float  # mean until the target is reached, where a search that tries all without it starts anew
    error: float  # standard error of that mean
    reached: float  # share of the replays that reach it without starting anew


def effort_to_target(results: Sequence[ReplayResult]) -> EffortToTarget:
    """The mean effort for one success: all epochs by the number of successes."""
    successes = sum(one.reached for one in results)
    if not successes:
        return EffortToTarget(math.inf, math.nan, 0.0)
    mean = sum(one.epochs for one in results) / successes
    # The delta method, for a ratio of two means.
    deviation = statistics.pstdev(one.epochs - mean * one.reached for one in results)
    share = successes / len(results)
    return EffortToTarget(mean, deviation / share / math.sqrt(len(results)), share)


def compare_searches(
    curves: Sequence[Curve],
    space: SearchSpace,
    budget: Budget,
    target: float,
    repeats: int,
    seed: int,
    own: Mapping[str, SamplerFactory] = MappingProxyType({}),
) -> dict[str, dict[str, EffortToTarget]]:
    """The effort by sampler and by pruning rule; replay number N has the same seed for every rule.

    ``own``: further samplers of Optuna, by name.
    """
    distributions = [distributions_of(space, budget, curve.params) for curve in curves]
    samplers: dict[str, Callable[[random.Random], Sampler]] = {
        "random": lambda rng: RandomOrderSampler(curves, rng),
    }
    optuna_samplers = {**OPTUNA_SAMPLERS, **own}
    for name, make_sampler in optuna_samplers.items():
        samplers[name] = partial(NearestSampler, curves, make_sampler, space, budget, distributions)

    def effort(make: Callable[[random.Random], Sampler], rule: PruningRule) -> EffortToTarget:
        generators = (random.Random(f"{seed}-{repeat}") for repeat in range(repeats))
        return effort_to_target([replay(curves, make(rng), rule, target) for rng in generators])

    rules = pruning_rules(len(curves[0].accuracies))
    of_random = {name: effort(samplers["random"], rule) for name, rule in rules.items()}
    return {"random": of_random} | {
        name: {"no pruning": effort(samplers[name], no_pruning)} for name in optuna_samplers
    }


class PrunedFront(NamedTuple):
    """The effect of pruning on the front of accuracy against a cost, over many replays."""

    epochs: float  # mean share of those that training without pruning takes
    members: int  # of the front without pruning
    kept: float  # mean share of these that are trained to the last epoch
    lost: float  # mean accuracy (0 to 1) that the front lacks at their costs


def pruned_front(curves: Sequence[Curve], costs: Sequence[int], repeats: int, seed: int) -> PrunedFront:
    """Train all candidates in random orders, pruned as a search for a front does.

    A candidate is compared with those that cost no more.
    """
    finals = [curve.accuracies[-1] for curve in curves]
    members = pareto_indices(costs, finals)
    epochs = len(curves[0].accuracies)
    rule = partial(late_median, rung=rung(epochs))
    spent, kept, lost = [], [], []
    for repeat in range(repeats):
        order = list(range(len(curves)))
        random.Random(f"{seed}-{repeat}").shuffle(order)
        seen: dict[int, Losses] = {}
        trained: list[int] = []  # to the last epoch
        for at in order:
            others = [seen[other] for other in seen if costs[other] <= costs[at]]
            seen[at] = _train(curves[at], rule, others)
            trained += [at] if len(seen[at]) == epochs else []
        spent.append(sum(map(len, seen.values())) / (epochs * len(curves)))
        kept.append(len({*members} & {*trained}) / len(members))
        for member in members:
            best = max((finals[at] for at in trained if costs[at] <= costs[member]), default=0.0)
            lost.append(finals[member] - best)
    return PrunedFront(statistics.mean(spent), len(members), statistics.mean(kept), statistics.mean(lost))


def rank_correlations(curves: Sequence[Curve]) -> dict[str, dict[str, float]]:
    """Spearman's rank correlation of early accuracies and losses with the accuracy after the last epoch.

    The sign of the loss is turned, so that 1 is best for both.
    """

    def correlation(values: Sequence[float]) -> float:
        with warnings.catch_warnings(action="ignore"):  # constant values have no ranks
            return round(float(spearmanr(values, finals, nan_policy="omit").statistic), 3)

    finals = [curve.accuracies[-1] for curve in curves]
    return {
        f"epoch {epoch}": {
            "accuracy": correlation([curve.accuracies[epoch - 1] for curve in curves]),
            "loss": -correlation([curve.losses[epoch - 1] for curve in curves]),
        }
        for epoch in CORRELATED_EPOCHS
        if epoch < len(curves[0].accuracies)
    }
