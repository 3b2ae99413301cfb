"""Sources of parameter values: an Optuna trial, a random generator, or values that were drawn before."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

Value = bool | int | float | str
Params = dict[str, Value]  # by name: "stage2.kernel"


class TrialLike(Protocol):
    """The two methods of an Optuna trial through which a space draws."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any], /) -> Any: ...


class RandomSampler:
    """Independent uniform draws, kept in ``params``; a name that was drawn before keeps its value."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.params: Params = {}

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        """A whole number from ``low`` to ``high`` inclusive."""
        return self.params.setdefault(name, self.rng.randrange(low, high + 1, step))  # type: ignore[return-value]

    def suggest_categorical(self, name: str, choices: Sequence[Any], /) -> Any:
        """One of ``choices``."""
        return self.params.setdefault(name, self.rng.choice(choices))


class FixedParams:
    """Values given in advance; raises `KeyError` for a name without a value.

    Unlike `optuna.trial.FixedTrial` it needs no Optuna and does not check values against a distribution.
    """

    def __init__(self, params: Mapping[str, Value]) -> None:
        self.params = params

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:  # noqa: ARG002
        """The given value."""
        return self.params[name]  # type: ignore[return-value]

    def suggest_categorical(self, name: str, choices: Sequence[Any], /) -> Any:  # noqa: ARG002
        """The given value."""
        return self.params[name]


def suggest(trial: TrialLike, name: str, options: Sequence[Any]) -> Any:
    """One of the options: a range for whole numbers at equal distances, else a categorical choice.

    A single option is returned without a draw.
    """
    if len(options) == 1:
        return options[0]
    step = options[1] - options[0] if all(type(option) is int for option in options) else 0
    if step > 0 and all(b - a == step for a, b in pairwise(options)):
        return trial.suggest_int(name, options[0], options[-1], step=step)
    return trial.suggest_categorical(name, options)
