"""The values that a key of a search space allows: a fixed value, a list or a range, always as a tuple."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ..models.blocks import MAX_CHANNELS, Activation, Channels, Kernel, Norm, Padding, Rate

MAX_OPTIONS = 1024  # values of one key


def parse_options(value: Any) -> tuple[Any, ...]:
    """A value from TOML as the tuple of the values it allows; raises `ValueError`."""
    if isinstance(value, dict):
        return _parse_range(value)
    options = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not options:
        raise ValueError("the list is empty: give at least one value")
    if len(options) > MAX_OPTIONS:
        raise ValueError(f"at most {MAX_OPTIONS} values")
    if any(_same(one, two) for at, one in enumerate(options) for two in options[:at]):
        raise ValueError("a value stands twice")
    return options


def _parse_range(value: dict[str, Any]) -> tuple[int, ...]:
    """``{ min, max, step }`` with both ends included."""
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


def _same(one: Any, two: Any) -> bool:
    return isinstance(one, bool) == isinstance(two, bool) and bool(one == two)  # True is not 1


BLOCK_NAMES = ("conv", "separable", "residual", "residual_separable", "inverted")
BlockName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$", strict=True)]  # of `BLOCK_NAMES`, or own
Downsample = Literal["none", "max", "average", "stride"]
HeadOrder = Literal["conv_then_pool", "pool_then_conv"]
Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(ge=0, le=16, strict=True)]
Expansion = Annotated[int, Field(ge=1, le=8, strict=True)]
TransitionChannels = Annotated[int, Field(ge=0, le=MAX_CHANNELS, strict=True)]  # 0: no transition
MultiplyAdds = Annotated[int, Field(ge=1, le=10**12, strict=True)]  # for one image
Share = Annotated[float, Field(gt=0, le=1)]

_parse = BeforeValidator(parse_options)
BlockNames = Annotated[tuple[BlockName, ...], _parse]
ChannelCounts = Annotated[tuple[Channels, ...], _parse]
Counts = Annotated[tuple[Count, ...], _parse]
Expansions = Annotated[tuple[Expansion, ...], _parse]
Downsamples = Annotated[tuple[Downsample, ...], _parse]
HeadOrders = Annotated[tuple[HeadOrder, ...], _parse]
Kernels = Annotated[tuple[Kernel, ...], _parse]
Paddings = Annotated[tuple[Padding, ...], _parse]
Flags = Annotated[tuple[Flag, ...], _parse]
Norms = Annotated[tuple[Norm, ...], _parse]
Activations = Annotated[tuple[Activation, ...], _parse]
Rates = Annotated[tuple[Rate, ...], _parse]
Shares = Annotated[tuple[Share, ...], _parse]
Transitions = Annotated[tuple[TransitionChannels, ...], _parse]
