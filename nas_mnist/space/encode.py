"""From an architecture back to the parameters that draw it from a search space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from ..core.errors import InputError
from ..models.architecture import Architecture
from ..models.blocks import Block, Frozen
from ..models.cost import Budget, cost_of
from .sampling import FixedParams, Params
from .space import SearchSpace
from .stages import last_convolutions, stage_blocks

MAX_TRIES = 2_000_000  # combinations of options that are compared with an architecture: seconds


def encode(space: SearchSpace, architecture: Architecture) -> Params:
    """The parameters with which ``space`` draws this architecture.

    Raises `InputError` where the space does not contain it, or where `MAX_TRIES` comparisons do not find it.
    A space with ``fill`` depends on the budget and is taken to contain no given architecture.
    """
    fits = architecture.input_shape == space.input_shape and architecture.classes == space.classes
    params = _find(space, architecture) if space.fill is None and fits else None
    if params is None:
        raise InputError(f"architecture {architecture.key}: not in this search space")
    return params


def _find(space: SearchSpace, architecture: Architecture) -> Params | None:
    tries = iter(range(MAX_TRIES))  # shared by all searches below
    for network, _ in zip(_combinations(space.network, space.network.drawn_keys), tries, strict=False):
        common = _prefixed("network", space.network, network)
        common |= _prefixed("head", space.head, architecture.head.model_dump())
        for stages in _match_stages(space, architecture.blocks, 0, 0, network, tries):
            params = stages | common
            if _draws(space, params, architecture):
                return params
    return None


def _match_stages(
    space: SearchSpace, blocks: Sequence[Block], start: int, stage: int, network: Params, tries: Iterator[int]
) -> Iterator[Params]:
    """All ways to read ``blocks[start:]`` as the stages from ``stage`` on, while tries are left."""
    if stage == len(space.stages):
        if start == len(blocks):
            yield {}
        return
    for end in range(start, len(blocks) + 1):
        for params in _match_stage(space, stage, blocks[:start], blocks[start:end], network, tries):
            for rest in _match_stages(space, blocks, end, stage + 1, network, tries):
                yield params | rest


def _match_stage(
    space: SearchSpace,
    stage: int,
    before: Sequence[Block],
    blocks: Sequence[Block],
    network: Params,
    tries: Iterator[int],
) -> Iterator[Params]:
    """All ways to read ``blocks`` as exactly this stage, while tries are left."""
    keys, prefix = space.stages[stage], f"stage{stage + 1}"
    for params, _ in zip(_combinations(keys, keys.drawn_keys), tries, strict=False):
        pooled = params["downsample"] in ("max", "average")
        start, end = int(bool(params["transition"])), len(blocks) - int(pooled) - int(params["repeats"])
        if end - start != params["blocks"]:
            continue
        widths = [convolution.channels for convolution in last_convolutions(blocks[start:end])]
        if len(widths) < end - start or any(width not in keys.channels for width in widths):
            continue
        if stage_blocks(network | params, widths, before, space.input_shape[0]) == list(blocks):
            named = _prefixed(prefix, keys, params)
            if len(keys.channels) > 1:
                named |= {f"{prefix}.channels{number}": width for number, width in enumerate(widths, 1)}
            yield named


def _combinations(keys: Frozen, names: Sequence[str]) -> Iterator[Params]:
    """Every combination of the options of some keys."""
    for values in product(*(getattr(keys, name) for name in names)):
        yield dict(zip(names, values, strict=True))


def _prefixed(prefix: str, keys: Frozen, values: Mapping[str, Any]) -> Params:
    """The values of keys with more than one option, by the names of their parameters."""
    return {
        f"{prefix}.{name}": value
        for name, value in values.items()
        if getattr(keys, name) is not None and len(getattr(keys, name)) > 1
    }


def _draws(space: SearchSpace, params: Params, architecture: Architecture) -> bool:
    """Whether ``params`` draw this architecture."""
    try:
        return space.draw(FixedParams(params), Budget(cost_of(architecture).params)) == architecture
    except (KeyError, InputError):
        return False
