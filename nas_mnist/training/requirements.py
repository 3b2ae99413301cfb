"""Test accuracies over seeds as one summary, and the exercise's requirements. Loads no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..core.defaults import MAX_EPOCHS, MAX_PARAMS
from ..models.architecture import Architecture
from ..models.cost import Budget, cost_of

MIN_ACCURACY = 0.994  # of the exercise; it also asks for fewer than `MAX_PARAMS` parameters


@dataclass(frozen=True)
class Summary:
    """The accuracies of several runs, as shares from 0 to 1."""

    runs: int
    mean: float
    std: float | None  # sample standard deviation; None for a single run
    interval: tuple[float, float] | None  # 95 %, Student's t; None for a single run


@dataclass(frozen=True)
class Requirement:
    """One requirement, the value that was reached, and the verdict."""

    what: str
    got: str
    met: bool


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
    """The accuracy that the exercise requires of MNIST, 0 to 1; None for other data sets."""
    return MIN_ACCURACY if dataset.startswith("mnist") else None


def exact_budget(budget: Budget, dataset: str) -> Budget:
    """A search's budget as "at most": on MNIST the exercise asks for fewer than its 20,000 parameters."""
    is_exercise = required_accuracy(dataset) is not None and budget.max_params == MAX_PARAMS
    return replace(budget, max_params=MAX_PARAMS - 1) if is_exercise else budget


def requirements(
    architecture: Architecture,
    epochs: int,
    accuracy: float | None,
    dataset: str,
    budget: Budget | None,
    target: float | None = None,
) -> list[Requirement]:
    """What was asked: on MNIST by the exercise, and by the ``budget`` of a search (None: no search).

    ``accuracy`` is that of the test images (None: they are not read yet), ``target`` one that was asked for
    instead of the exercise's; 0 to 1.
    """
    limits = [] if budget is None else _budget_rows(architecture, exact_budget(budget, dataset), dataset)
    asked = required_accuracy(dataset) if target is None else target
    reached = [] if accuracy is None or asked is None else [_accuracy_row(accuracy, asked)]
    if required_accuracy(dataset) is None:
        return [*reached, *limits]
    all_convolutional = all(layer.kind != "Linear" for layer in architecture.layers)
    return [
        *reached,
        *limits,
        Requirement(f"epochs <= {MAX_EPOCHS}", str(epochs), epochs <= MAX_EPOCHS),
        Requirement("no fully connected layer", "none" if all_convolutional else "some", all_convolutional),
    ]


def _accuracy_row(accuracy: float, asked: float) -> Requirement:
    met = accuracy >= asked
    misleading = (round(accuracy, 4) >= asked) != met
    got = f"{accuracy:.4%}" if misleading else f"{accuracy:.2%}"
    return Requirement(f"accuracy >= {100 * asked:.10g}%", got, met)


def _budget_rows(architecture: Architecture, budget: Budget, dataset: str) -> list[Requirement]:
    costs, exercise = budget.usage(cost_of(architecture)), exact_budget(Budget(MAX_PARAMS), dataset)
    return [
        Requirement(
            f"{what} < {limit + 1:,}"
            if (what, limit) in exercise.limits.items() and limit < MAX_PARAMS
            else f"{what} <= {limit:,}, the budget",
            f"{costs[what]:,}",
            costs[what] <= limit,
        )
        for what, limit in budget.limits.items()
    ]
