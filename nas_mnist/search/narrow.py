"""Narrowed copies of a finalist: the same network with fewer channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt

from ..core.errors import InputError
from ..models.cost import Budget, cost_of
from ..models.width import fit_width_multiplier
from ..study.race import Finalist


def narrow(finalist: Finalist, params: int) -> Finalist | None:
    """The finalist with the largest width multiplier within ``params``; None if it has none."""
    try:
        architecture = fit_width_multiplier(finalist.architecture, Budget(max(params, 1)))
    except InputError:  # repeats of a given network that read the image's channels
        return None
    size = cost_of(architecture).params
    if size > params:
        return None
    key = architecture.key + finalist.key.removeprefix(finalist.architecture.key)
    return finalist._replace(name=f"trial-{finalist.trial}-{size}", key=key, architecture=architecture)


def between(sizes: Sequence[Finalist], meets: Callable[[Finalist], bool]) -> Finalist | None:
    """A copy of the first one, between the smallest that meets a wish and the next smaller of ``sizes``.

    None: there is no new one.
    """
    low = min((one.params for one in sizes if meets(one)), default=0)
    below = max((one.params for one in sizes if one.params < low), default=0)
    copy = narrow(sizes[0], round(sqrt(low * below))) if below else None
    return None if copy is None or copy.params in {one.params for one in sizes} else copy
