"""The networks that a search is given: the reference, those of ``--start``, or the whole zoo."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..core.defaults import ANSWERS
from ..core.errors import InputError
from ..lookup import resolve
from ..models import zoo
from ..models.architecture import Architecture
from ..models.cost import Budget, cost_of
from ..models.width import fit_width_multiplier
from ..recipes.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from ..data.dataset import DataSet

REFERENCE, WHOLE_ZOO = "reference", "zoo"


class Given(NamedTuple):
    """A network that a search is given."""

    name: str
    architecture: Architecture
    recipe: Recipe | None  # its own; None: it trains by the search's


def given_networks(start: Sequence[str], budget: Budget, data: DataSet) -> tuple[Given, ...]:
    """The reference, if it fits budget and data, then the networks called ``start``, each one once.

    Raises `InputError` for a network that does not fit.
    """
    found: dict[str, Given] = {}  # by key
    reference = _entry(REFERENCE)
    with contextlib.suppress(InputError):
        _check(reference.architecture, budget, data)
        found[reference.architecture.key] = reference
    for name in start:
        for given in _zoo(budget, data) if name == WHOLE_ZOO else [_one(name, budget, data)]:
            found.setdefault(given.architecture.key, given)
    return tuple(found.values())


def _one(name: str, budget: Budget, data: DataSet) -> Given:
    if name in ANSWERS:
        raise InputError(f"--start: {name!r} (use a name of the zoo, a file, a folder of results, or zoo)")
    try:
        network = resolve(name, others=[WHOLE_ZOO])
    except InputError as error:
        raise InputError(f"--start: {str(error).removeprefix('network: ')}") from None
    try:
        _check(network.architecture, budget, data)
    except InputError as error:
        raise InputError(f"--start: {name}: {error}") from None
    return _entry(name) if name in zoo.names() else Given(network.name, network.architecture, None)


def _entry(name: str) -> Given:
    entry = zoo.load(name)
    return Given(name, entry.architecture, load_recipe(entry.recipe))


def _check(architecture: Architecture, budget: Budget, data: DataSet) -> None:
    """Raise `InputError` for a network that cannot be a candidate."""
    from ..training.final import check_fits

    check_fits(architecture, data)
    excess = budget.excess(cost_of(architecture))
    if over := [f"{by:,} {unit}" for unit, by in excess.items() if by > 0]:
        raise InputError(f"{', '.join(over)} too many (use at most {budget}; --start zoo narrows networks)")


def _zoo(budget: Budget, data: DataSet) -> list[Given]:
    """All of the zoo for this data set, widened or narrowed to the budget."""
    networks = []
    for entry in map(_entry, zoo.names()):
        fields = entry.architecture.model_dump() | {"input_shape": data.shape, "classes": data.classes}
        try:
            architecture = fit_width_multiplier(Architecture.make(fields), budget)
        except InputError:  # images too small for its pooling
            continue
        if budget.fits(cost_of(architecture)):
            networks.append(entry._replace(name=f"{entry.name} resized", architecture=architecture))
    return networks
