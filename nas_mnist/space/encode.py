"""The draws that make an architecture: a search space read backwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from ..core.errors import InputError
from ..models.architecture import Architecture, Block
from ..models.cost import Budget, cost_of
from .sampling import Draws, Replay
from .stages import stage_blocks, weighted

if TYPE_CHECKING:
    from .space import SearchSpace

MATCHES = 2_000_000  # combinations that are held against an architecture: seconds


def match(space: SearchSpace, architecture: Architecture) -> Draws | None:
    """The draws that make this architecture; None where they are not found within `MATCHES` tries."""
    tries = iter(range(MATCHES))
    for network, _ in zip(_every(space.network, space.network.drawn), tries, strict=False):
        around = _named("network", space.network, network)
        around |= _named("head", space.head, architecture.head.model_dump())
        for stages in _stages(space, architecture.blocks, 0, 0, network, tries):
            draws = stages | around
            if _redraws(space, draws, architecture):
                return draws
    return None


def _stages(
    space: SearchSpace, blocks: Sequence[Block], first: int, at: int, network: Draws, tries: Iterator[int]
) -> Iterator[Draws]:
    """All ways to read ``blocks`` from ``first`` on as stages from ``at`` on, while there are tries."""
    if at == len(space.stages):
        if first == len(blocks):
            yield {}
        return
    for end in range(first, len(blocks) + 1):
        for draws in _stage(space, at, blocks[:first], blocks[first:end], network, tries):
            for rest in _stages(space, blocks, end, at + 1, network, tries):
                yield draws | rest


def _stage(
    space: SearchSpace,
    at: int,
    before: Sequence[Block],
    blocks: Sequence[Block],
    network: Draws,
    tries: Iterator[int],
) -> Iterator[Draws]:
    """All ways to read ``blocks`` as exactly this stage, while there are tries."""
    stage, prefix = space.stages[at], f"stage{at + 1}"
    for drawn, _ in zip(_every(stage, stage.drawn), tries, strict=False):
        pooled = drawn["downsample"] in ("max", "average")
        first, end = int(bool(drawn["transition"])), len(blocks) - int(pooled) - int(drawn["repeats"])
        if end - first != drawn["blocks"]:
            continue
        widths = [unit.channels for unit in weighted(blocks[first:end])]
        if len(widths) < end - first or any(width not in stage.channels for width in widths):
            continue
        if stage_blocks(network | drawn, widths, before, space.input_shape[0]) == list(blocks):
            draws = _named(prefix, stage, drawn)
            if len(stage.channels) > 1:
                draws |= {f"{prefix}.channels{number}": width for number, width in enumerate(widths, 1)}
            yield draws


def _every(keys: BaseModel, names: Sequence[str]) -> Iterator[Draws]:
    """Every combination of the options of some keys."""
    for values in product(*(getattr(keys, name) for name in names)):
        yield dict(zip(names, values, strict=True))


def _named(prefix: str, keys: BaseModel, values: Mapping[str, Any]) -> Draws:
    """The values of those keys that are a choice, under the names they are drawn by."""
    return {
        f"{prefix}.{name}": value
        for name, value in values.items()
        if getattr(keys, name) is not None and len(getattr(keys, name)) > 1
    }


def _redraws(space: SearchSpace, draws: Draws, architecture: Architecture) -> bool:
    """Whether drawing from ``draws`` makes this architecture."""
    try:
        return space.draw(Replay(draws), Budget(cost_of(architecture).params)) == architecture
    except (KeyError, InputError):
        return False
