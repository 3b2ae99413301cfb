"""The search space: read from a TOML file, drawn from, and matched against.

A space draws through two methods, `suggest_int` and `suggest_categorical`, so that a live Optuna trial, a
replayed trial and a plain random draw are the same code.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from itertools import pairwise, product
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from .architecture import (
    Activation,
    Architecture,
    Channels,
    Classes,
    Conv,
    InputShape,
    Kernel,
    Norm,
    Padding,
    Pool,
    Rate,
    Repeat,
    Residual,
    Separable,
    digest,
)
from .cost import Budget, cost_of
from .errors import InputError, explain
from .files import read_text
from .filling import widest
from .recipe import parse_toml

Value = bool | int | float | str
Draws = dict[str, Value]
BlockKind = Literal["conv", "separable", "residual", "residual_separable"]
Downsample = Literal["none", "max", "average", "stride"]

SPACES = ("default", "filled", "tiny")  # in the package
MAX_OPTIONS = 1024  # values of one key
MATCHES = 2_000_000  # combinations that are held against an architecture: seconds
INHERITED = ("bias", "norm", "activation", "dropout", "middle")  # a stage's keys that [network] may set


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


def _as_options(value: Any) -> tuple[Any, ...]:
    """A fixed value, a list or a range from TOML as the tuple of the values it allows."""
    if isinstance(value, dict):
        if not {"min", "max"} <= set(value) <= {"min", "max", "step"}:
            raise ValueError("a range has the keys min, max and, if you like, step")
        low, high, step = value["min"], value["max"], value.get("step", 1)
        if not all(type(number) is int for number in (low, high, step)):
            raise ValueError("min, max and step are whole numbers")
        if step < 1:
            raise ValueError("step is at least 1")
        if high < low:
            raise ValueError("the range is empty: max is below min")
        if (high - low) // step >= MAX_OPTIONS:
            raise ValueError(f"at most {MAX_OPTIONS} values")
        return tuple(range(low, high + 1, step))
    options = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not options:
        raise ValueError("the list is empty: give at least one value")
    if len(options) > MAX_OPTIONS:
        raise ValueError(f"at most {MAX_OPTIONS} values")
    distinct = [one for at, one in enumerate(options) if not any(_same(one, two) for two in options[:at])]
    if len(distinct) < len(options):
        raise ValueError("a value stands twice")
    return options


def _same(one: Any, two: Any) -> bool:
    return isinstance(one, bool) == isinstance(two, bool) and bool(one == two)


_read = BeforeValidator(_as_options)
Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(ge=0, le=16, strict=True)]
Transition = Annotated[int, Field(ge=0, le=1024, strict=True)]

BlockKinds = Annotated[tuple[BlockKind, ...], _read]
ChannelCounts = Annotated[tuple[Channels, ...], _read]
Kernels = Annotated[tuple[Kernel, ...], _read]
Paddings = Annotated[tuple[Padding, ...], _read]
Flags = Annotated[tuple[Flag, ...], _read]
Norms = Annotated[tuple[Norm, ...], _read]
Activations = Annotated[tuple[Activation, ...], _read]
Rates = Annotated[tuple[Rate, ...], _read]
Share = Annotated[float, Field(gt=0, le=1)]


class _Keys(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NetworkSpace(_Keys):
    """What every stage shares unless it says otherwise; drawn once for the whole network."""

    bias: Flags = (False,)
    norm: Norms = ("before",)
    activation: Activations = ("relu",)
    dropout: Rates = (0.0,)
    middle: Flags = (False,)  # separable blocks: normalisation and activation after the depthwise part too


class StageSpace(_Keys):
    """An optional 1x1 transition, some blocks of one kind, an optional down-sampling by two.

    ``repeats`` further blocks come behind those, as wide as what they read. They share the weights of the
    last block so far where it, too, is as wide as what it reads; else they have one set of their own.
    """

    transition: Annotated[tuple[Transition, ...], _read] = (0,)
    blocks: Annotated[tuple[Count, ...], _read]
    block: BlockKinds = ("conv",)
    channels: ChannelCounts  # drawn for every block
    repeats: Annotated[tuple[Count, ...], _read] = Field((0,), exclude_if=(0,).__eq__)
    kernel: Kernels = (3,)
    padding: Paddings = ("same",)
    downsample: Annotated[tuple[Downsample, ...], _read] = ("none",)
    bias: Flags | None = None
    norm: Norms | None = None
    activation: Activations | None = None
    dropout: Rates | None = None
    middle: Flags | None = None


class HeadSpace(_Keys):
    """From maps to class scores. Kernel and padding count where the convolution comes before the pooling."""

    order: Annotated[tuple[Literal["conv_then_pool", "pool_then_conv"], ...], _read] = ("conv_then_pool",)
    kernel: Kernels = (1,)
    padding: Paddings = ("valid",)
    bias: Flags = (True,)
    norm: Flags = (False,)


class Survey(NamedTuple):
    """What plain random draws from a space cost."""

    tried: int
    feasible: int  # how many fit the budget
    smallest: int  # parameters of the smallest candidate


class SearchSpace(_Keys):
    """Every architecture that a search may draw.

    With ``fill``, nearly every draw fits the budget: ``channels`` and ``transition`` are relative widths, and
    all of a candidate's are multiplied with the largest number with which it stays within a drawn share of
    the budget.
    """

    input_shape: InputShape = (1, 28, 28)
    classes: Classes = 10
    fill: Annotated[tuple[Share, ...], _read] | None = None  # shares of the budget
    network: NetworkSpace = NetworkSpace()
    stages: tuple[StageSpace, ...] = Field(min_length=1, max_length=12)
    head: HeadSpace = HeadSpace()

    @classmethod
    def make(cls, data: object, where: str = "space") -> SearchSpace:
        """Check what a TOML document says; raises `InputError` with file, key and value."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise InputError(f"{where}: {explain(error)}") from None

    @classmethod
    def from_toml(cls, text: str, where: str = "space") -> SearchSpace:
        """Parse and check a TOML document; raises `InputError` with file, key and value."""
        return cls.make(parse_toml(text, where), where)

    @classmethod
    def load(cls, name: str = "default") -> SearchSpace:
        """The space called ``name`` in the package, or the one in a TOML file; raises `InputError`."""
        if name in SPACES:
            return cls.from_toml(resources.files("nas_mnist.spaces").joinpath(f"{name}.toml").read_text())
        path = Path(name).expanduser()
        if not name.endswith(".toml") and not os.path.lexists(path):
            known = ", ".join(SPACES)
            raise InputError(f"space: {name!r} is not known (use {known} or a file ending in .toml)")
        return cls.from_toml(read_text(path, "space"), name)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that are equal exactly when the spaces are."""
        return digest(self)

    def draw(self, suggest: Suggest, budget: Budget) -> Architecture:
        """Draw every choice, then make the candidate; the budget counts where the space has ``fill``.

        Raises `InputError` where the choices do not make a network that exists (a map that shrinks
        below one pixel); by then everything has been drawn.
        """
        share = None if self.fill is None else _suggest(suggest, "fill", self.fill)
        network = _draw(suggest, "network", self.network, INHERITED)
        blocks: list[Any] = []
        for number, stage in enumerate(self.stages, 1):
            blocks += _draw_stage(suggest, f"stage{number}", stage, network, self._so_far(blocks))
        drawn = Architecture.make(
            {
                "input_shape": self.input_shape,
                "classes": self.classes,
                "blocks": blocks,
                "head": _draw_head(suggest, self.head),
            }
        )
        return drawn if share is None else widest(drawn, budget.share(share))

    def encode(self, architecture: Architecture) -> Draws:
        """The draws that make this architecture; raises `InputError` where the space does not hold it.

        A space with ``fill`` makes other widths with every budget; it is taken to hold none, and so is one in
        which the architecture is not found within `MATCHES` tries.
        """
        fits = architecture.input_shape == self.input_shape and architecture.classes == self.classes
        tries = iter(range(MATCHES))
        if self.fill is None and fits:
            for network, _ in zip(_every(self.network, INHERITED), tries, strict=False):
                around = _named("network", self.network, network)
                around |= _named("head", self.head, architecture.head.model_dump())
                for stages in self._match_stages(architecture.blocks, 0, 0, network, tries):
                    draws = stages | around
                    if _redraws(self, draws, architecture):
                        return draws
        raise InputError(f"architecture {architecture.key}: not in this search space")

    def _match_stages(
        self, blocks: Sequence[Any], first: int, at: int, network: Draws, tries: Iterator[int]
    ) -> Iterator[Draws]:
        """All ways to read ``blocks`` from ``first`` on as stages from ``at`` on, while there are tries."""
        if at == len(self.stages):
            if first == len(blocks):
                yield {}
            return
        stage, name, so_far = self.stages[at], f"stage{at + 1}", self._so_far(blocks[:first])
        for end in range(first, len(blocks) + 1):
            for draws in _match_stage(name, stage, network, blocks[first:end], so_far, tries):
                for rest in self._match_stages(blocks, end, at + 1, network, tries):
                    yield draws | rest

    def _so_far(self, blocks: Sequence[Any]) -> _SoFar:
        """What the next stage finds before it."""
        weighted = [_unit(block) for block in blocks if block.kind not in ("pool", "repeat")]
        widths = [self.input_shape[0], *(unit.channels for unit in weighted)]
        same = len(widths) > 1 and widths[-1] == widths[-2] and weighted[-1].stride == 1
        return _SoFar(widths[-1], same)

    def survey(self, budget: Budget, tries: int, rng: random.Random) -> Survey:
        """What plain random draws cost: counted, never built."""
        smallest, feasible = 0, 0
        for _ in range(tries):
            try:
                cost = cost_of(self.draw(RandomDraws(rng), budget))
            except InputError:
                continue
            smallest = min(smallest or cost.params, cost.params)
            feasible += budget.fits(cost)
        return Survey(tries, feasible, smallest)


def _suggest(suggest: Suggest, name: str, options: Sequence[Any]) -> Any:
    """One of the options. A single one is no choice; whole numbers at equal distances are a range."""
    if len(options) == 1:
        return options[0]
    step = options[1] - options[0] if all(type(option) is int for option in options) else 0
    if step > 0 and all(b - a == step for a, b in pairwise(options)):
        return suggest.suggest_int(name, options[0], options[-1], step=step)
    return suggest.suggest_categorical(name, options)


def _draw(suggest: Suggest, prefix: str, keys: BaseModel, names: Sequence[str]) -> Draws:
    return {name: _suggest(suggest, f"{prefix}.{name}", getattr(keys, name)) for name in names}


class _SoFar(NamedTuple):
    """The blocks before a stage."""

    width: int  # channels that the stage reads
    repeatable: bool  # whether the last block with weights may be repeated


def _draw_stage(
    suggest: Suggest, prefix: str, stage: StageSpace, network: Draws, so_far: _SoFar
) -> list[Any]:
    own = [name for name in INHERITED if getattr(stage, name) is not None]
    drawn = _draw(
        suggest,
        prefix,
        stage,
        ("transition", "blocks", "repeats", "block", "kernel", "padding", "downsample"),
    )
    shared = network | _draw(suggest, prefix, stage, own)
    widths = [
        _suggest(suggest, f"{prefix}.channels{number}", stage.channels)
        for number in range(1, int(drawn["blocks"]) + 1)
    ]
    return _stage_blocks(drawn, shared, widths, so_far)


def _draw_head(suggest: Suggest, head: HeadSpace) -> Draws:
    order = _draw(suggest, "head", head, ("order",))
    before_pooling = order["order"] == "conv_then_pool"
    shape = _draw(suggest, "head", head, ("kernel", "padding")) if before_pooling else {}
    return order | shape | _draw(suggest, "head", head, ("bias", "norm"))


def _stage_blocks(drawn: Draws, shared: Draws, widths: Sequence[int], so_far: _SoFar) -> list[Any]:
    """The blocks that one stage's draws stand for."""
    blocks: list[Any] = []
    if drawn["transition"]:
        blocks.append(
            Conv(channels=drawn["transition"], kernel=1, bias=shared["bias"], norm="none", activation="none")
        )
    for number, channels in enumerate(widths, 1):
        last = number == len(widths)
        stride = 2 if last and drawn["downsample"] == "stride" else 1
        blocks.append(_block(drawn, shared, channels, stride))
    if drawn["repeats"]:
        blocks += _repeats(drawn, shared, blocks, so_far)
    if drawn["downsample"] in ("max", "average"):
        blocks.append(Pool(method=drawn["downsample"]))
    return blocks


def _repeats(drawn: Draws, shared: Draws, blocks: Sequence[Any], so_far: _SoFar) -> list[Any]:
    """The further blocks behind those of a stage."""
    reads = [so_far.width, *(_unit(block).channels for block in blocks)]
    repeatable = reads[-1] == reads[-2] and _unit(blocks[-1]).stride == 1 if blocks else so_far.repeatable
    first = [] if repeatable else [_block(drawn, shared, reads[-1], 1)]
    return [*first, *[Repeat()] * (int(drawn["repeats"]) - len(first))]


def _unit(block: Conv | Separable | Residual) -> Conv | Separable:
    """What gives a block its width."""
    return block.body[-1] if block.kind == "residual" else block


def _block(drawn: Draws, shared: Draws, channels: int, stride: int) -> Conv | Separable | Residual:
    keys: dict[str, Any] = {name: shared[name] for name in ("bias", "norm", "activation", "dropout")}
    kind = str(drawn["block"])
    padding = "same" if kind.startswith("residual") else drawn["padding"]  # so that shortcut and body meet
    keys |= {"channels": channels, "stride": stride, "kernel": drawn["kernel"], "padding": padding}
    unit = Separable(middle=shared["middle"], **keys) if kind.endswith("separable") else Conv(**keys)
    return Residual(body=(unit,)) if kind.startswith("residual") else unit


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


def _match_stage(
    prefix: str,
    stage: StageSpace,
    network: Draws,
    blocks: Sequence[Any],
    so_far: _SoFar,
    tries: Iterator[int],
) -> Iterator[Draws]:
    """All ways to read ``blocks`` as exactly this stage, while there are tries."""
    own = [name for name in INHERITED if getattr(stage, name) is not None]
    names = ("transition", "blocks", "repeats", "block", "kernel", "padding", "downsample", *own)
    for drawn, _ in zip(_every(stage, names), tries, strict=False):
        pooled = drawn["downsample"] in ("max", "average")
        first, end = int(bool(drawn["transition"])), len(blocks) - int(pooled) - int(drawn["repeats"])
        if end - first != drawn["blocks"]:
            continue
        units = [block for block in blocks[first:end] if block.kind not in ("pool", "repeat")]
        widths = [_unit(block).channels for block in units]
        if len(units) < end - first or any(width not in stage.channels for width in widths):
            continue
        own_keys = network | {name: drawn[name] for name in own}
        if _stage_blocks(drawn, own_keys, widths, so_far) == list(blocks):
            draws = _named(prefix, stage, drawn)
            if len(stage.channels) > 1:
                draws |= {f"{prefix}.channels{number}": width for number, width in enumerate(widths, 1)}
            yield draws


def _redraws(space: SearchSpace, draws: Draws, architecture: Architecture) -> bool:
    """Whether drawing from ``draws`` makes this architecture."""
    try:
        return space.draw(Replay(draws), Budget(cost_of(architecture).params)) == architecture
    except (KeyError, InputError):
        return False
