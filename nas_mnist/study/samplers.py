"""Samplers and pruners of a search: Optuna's by name, one's own as MODULE:CLASS or as an object."""

from __future__ import annotations

import copy
import importlib
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from ..core.defaults import SAMPLERS
from ..core.errors import InputError, choices

SamplerFactory = Callable[[int], BaseSampler]  # of a seed

_KNOWN: dict[str, SamplerFactory] = {
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "tpe-grouped": lambda seed: optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(population_size=10, seed=seed),
    # Generations of ten by mutation alone, close to regularised evolution (Real et al. 2019).
    "mutation": lambda seed: optuna.samplers.NSGAIISampler(population_size=10, crossover_prob=0.0, seed=seed),
}
assert tuple(_KNOWN) == SAMPLERS


class Tuning(NamedTuple):
    """A sampler and a pruner of one's own, as they are given to a search; None: those of the search."""

    sampler: BaseSampler | type[BaseSampler] | None = None
    pruner: BasePruner | None = None

    @property
    def sampler_name(self) -> str | None:
        """MODULE:CLASS of the sampler; None: that of the search."""
        if self.sampler is None:
            return None
        found = self.sampler if isinstance(self.sampler, type) else type(self.sampler)
        return f"{found.__module__}:{found.__qualname__}"

    def pickled(self) -> bytes:
        """For worker processes, with classes that a notebook or a script defines.

        Raises `InputError` for another type, and for objects that cannot be sent to a process.
        """
        import cloudpickle

        is_class = isinstance(self.sampler, type) and issubclass(self.sampler, BaseSampler)
        if self.sampler is not None and not is_class and not isinstance(self.sampler, BaseSampler):
            raise InputError(f"sampler: {self.sampler!r:.60} (use a name or a sampler of Optuna)")
        if self.pruner is not None and not isinstance(self.pruner, BasePruner):
            raise InputError(f"pruner: {self.pruner!r:.60} (use an object, as optuna.pruners.MedianPruner())")
        try:
            return bytes(cloudpickle.dumps(self))
        except Exception as error:  # of any library in the object
            reason = " ".join(str(error).split())[:80]
            raise InputError(f"sampler: it cannot be sent to worker processes ({reason})") from None


def own_failure(error: BaseException) -> str | None:
    """An exception in a sampler or pruner of one's own, with its line, in words; None: it has none there."""
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    places = (str(Path(__file__).parents[1]), *libraries, "<frozen")
    own = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(places)
    ]
    if not own:
        return None
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:80]
    return f"the sampler or pruner failed: {reason} ({own[-1].filename}, line {own[-1].lineno})"


def make_sampler(what: str | BaseSampler | type[BaseSampler], seed: int) -> BaseSampler:
    """The sampler that ``what`` stands for, in the state that follows from ``seed``.

    A class gets ``seed=`` if its constructor takes it. An object is copied; of its random state Optuna only
    promises that `reseed_rng` renews it, so its draws differ from process to process. Raises `InputError`.
    """
    if isinstance(what, BaseSampler):
        sampler = copy.deepcopy(what)
        sampler.reseed_rng()
        return sampler
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        if isinstance(what, str):
            return sampler_factory(what)(seed)
        return _from_class(what, what.__name__)(seed)


def sampler_factory(name: str) -> SamplerFactory:
    """The factory behind a name or MODULE:CLASS; raises `InputError`."""
    if ":" not in name:
        if name not in _KNOWN:
            advice = choices(name, SAMPLERS, " or MODULE:CLASS")
            raise InputError(f"sampler: {name[:80]!r} {advice}")
        return _KNOWN[name]
    module_name, _, class_name = name.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:  # as `python -m` has it
        sys.path.insert(0, folder)
    try:
        found: Any = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # the module is a program of the user's
        reason = " ".join(str(error).split())[:80]
        raise InputError(f"sampler: {name[:80]!r} cannot be imported ({reason})") from None
    return _from_class(found, name)


def _from_class(found: Any, name: str) -> SamplerFactory:
    if not callable(found) or (isinstance(found, type) and not issubclass(found, BaseSampler)):
        raise InputError(f"sampler: {name[:80]!r} is no sampler (use a subclass of optuna's BaseSampler)")

    def make(seed: int) -> BaseSampler:
        try:
            try:
                made = found(seed=seed)
            except TypeError:  # no such argument
                made = found()
        except Exception as error:
            reason = " ".join(str(error).split())[:80]
            raise InputError(f"sampler: {name[:80]!r} cannot be made ({reason})") from None
        if not isinstance(made, BaseSampler):
            raise InputError(f"sampler: {name[:80]!r} makes no sampler (use optuna's BaseSampler)")
        return made

    return make
