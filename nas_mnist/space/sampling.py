"""What is drawn, and what draws: an Optuna trial, a random generator, or what was drawn before."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

Value = bool | int | float | str
Draws = dict[str, Value]  # by name


class Suggest(Protocol):
    """What a space draws through: the two methods of an Optuna trial that it needs."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any], /) -> Any: ...


class RandomDraws:
    """Uniform random draws; every draw is kept in ``draws``."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.draws: Draws = {}

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        """A whole number from ``low`` to ``high`` inclusive."""
        return self.draws.setdefault(name, self.rng.randrange(low, high + 1, step))  # type: ignore[return-value]

    def suggest_categorical(self, name: str, choices: Sequence[Any], /) -> Any:
        """One of ``choices``."""
        return self.draws.setdefault(name, self.rng.choice(choices))


class Replay:
    """Draws that were made before; raises `KeyError` for one that was not."""

    def __init__(self, draws: Mapping[str, Value]) -> None:
        self.draws = draws

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:  # noqa: ARG002
        """The stored draw."""
        return self.draws[name]  # type: ignore[return-value]

    def suggest_categorical(self, name: str, choices: Sequence[Any], /) -> Any:  # noqa: ARG002
        """The stored draw."""
        return self.draws[name]


def choose(suggest: Suggest, name: str, options: Sequence[Any]) -> Any:
    """One of the options. A single one is no choice; whole numbers at equal distances are a range."""
    if len(options) == 1:
        return options[0]
    step = options[1] - options[0] if all(type(option) is int for option in options) else 0
    if step > 0 and all(b - a == step for a, b in pairwise(options)):
        return suggest.suggest_int(name, options[0], options[-1], step=step)
    return suggest.suggest_categorical(name, options)
