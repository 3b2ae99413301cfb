"""The search space: read from a TOML file, and drawn from.

A space draws through two methods, `suggest_int` and `suggest_categorical`, so that a live Optuna trial, a
replayed trial and a plain random draw are the same code.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ..core.errors import InputError, explain
from ..core.fileio import read_text
from ..models.architecture import (
    Activation,
    Architecture,
    Block,
    Channels,
    Classes,
    InputShape,
    Kernel,
    Norm,
    Padding,
    Rate,
    digest,
)
from ..models.cost import Budget, cost_of
from ..models.width import widest
from ..recipes.recipe import parse_toml
from .encode import match
from .sampling import Draws, RandomDraws, Suggest, choose
from .stages import stage_blocks

BlockKind = Literal["conv", "separable", "residual", "residual_separable"]
Downsample = Literal["none", "max", "average", "stride"]

SPACES = ("default", "filled", "tiny")  # in the package
MAX_OPTIONS = 1024  # values of one key


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

    @property
    def drawn(self) -> tuple[str, ...]:
        """The keys of which one value each is drawn."""
        return tuple(NetworkSpace.model_fields)


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

    @property
    def drawn(self) -> tuple[str, ...]:
        """The keys of which one value each is drawn; those that are not here have the network's."""
        own = [name for name in NetworkSpace.model_fields if getattr(self, name) is not None]
        return ("transition", "blocks", "repeats", "block", "kernel", "padding", "downsample", *own)


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
    least: dict[str, int]  # that a candidate has, by what is limited


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
            return cls.from_toml(
                resources.files("nas_mnist.space.presets").joinpath(f"{name}.toml").read_text()
            )
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
        share = None if self.fill is None else choose(suggest, "fill", self.fill)
        network = _draw(suggest, "network", self.network, self.network.drawn)
        blocks: list[Block] = []
        for number, stage in enumerate(self.stages, 1):
            prefix = f"stage{number}"
            drawn_once = _draw(suggest, prefix, stage, stage.drawn)
            widths = [
                choose(suggest, f"{prefix}.channels{place}", stage.channels)
                for place in range(1, int(drawn_once["blocks"]) + 1)
            ]
            blocks += stage_blocks(network | drawn_once, widths, blocks, self.input_shape[0])
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
        which the architecture is not found within `matching.MATCHES` tries.
        """
        fits = architecture.input_shape == self.input_shape and architecture.classes == self.classes
        draws = match(self, architecture) if self.fill is None and fits else None
        if draws is None:
            raise InputError(f"architecture {architecture.key}: not in this search space")
        return draws

    def survey(self, budget: Budget, tries: int, rng: random.Random) -> Survey:
        """What plain random draws cost: counted, never built."""
        least: dict[str, int] = {}
        feasible = 0
        for _ in range(tries):
            try:
                cost = cost_of(self.draw(RandomDraws(rng), budget))
            except InputError:
                continue
            for what, needed in budget.limited(cost).items():
                least[what] = min(least.get(what, needed), needed)
            feasible += budget.fits(cost)
        return Survey(tries, feasible, least)


def _draw(suggest: Suggest, prefix: str, keys: BaseModel, names: Sequence[str]) -> Draws:
    return {name: choose(suggest, f"{prefix}.{name}", getattr(keys, name)) for name in names}


def _draw_head(suggest: Suggest, head: HeadSpace) -> Draws:
    order = _draw(suggest, "head", head, ("order",))
    before_pooling = order["order"] == "conv_then_pool"
    shape = _draw(suggest, "head", head, ("kernel", "padding")) if before_pooling else {}
    return order | shape | _draw(suggest, "head", head, ("bias", "norm"))
