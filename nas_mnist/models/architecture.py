"""What a candidate *is*: frozen data, validated once when it is made, JSON both ways, a stable key.

An `Architecture` is a list of blocks between an image and a head that has no fully connected layer.
Whoever holds one holds a network that exists: every shape has been worked out when it was made.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from ..core.errors import InputError, explain
from .layers import Layer, expand


def _whole(value: object) -> object:
    if type(value) is not int:
        raise ValueError("use 1, 3, 5 or 7")
    return value


Activation = Literal["none", "relu", "leaky_relu", "silu", "hardswish", "gelu"]
Norm = Literal["none", "before", "after"]  # batch normalisation: off, before or after the activation
Padding = Literal["same", "valid"]
Kernel = Annotated[Literal[1, 3, 5, 7], BeforeValidator(_whole)]
Channels = Annotated[int, Field(ge=1, le=1024, strict=True)]
Stride = Annotated[int, Field(ge=1, le=4, strict=True)]
Rate = Annotated[float, Field(ge=0, lt=1), AfterValidator(lambda rate: rate + 0.0)]  # no negative zero
Size = Annotated[int, Field(ge=4, le=256, strict=True)]  # pixels
InputShape = tuple[Annotated[int, Field(ge=1, le=4, strict=True)], Size, Size]  # channels, height, width
Classes = Annotated[int, Field(ge=2, le=1000, strict=True)]

MAX_JSON_BYTES = 1_000_000


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Convolution(_Data):
    channels: Channels  # output maps
    kernel: Kernel = 3  # pixels
    stride: Stride = 1
    padding: Padding = "same"
    bias: bool = False
    norm: Norm = "before"
    activation: Activation = "relu"
    dropout: Rate = 0.0  # probability that a whole channel is set to zero


class Conv(_Convolution):
    """Convolution, then normalisation and activation in the order that `norm` says, then channel dropout.

    With kernel 1, `norm="none"` and `activation="none"` it is the 1x1 transition of published networks.
    """

    kind: Literal["conv"] = "conv"


class Separable(_Convolution):
    """Depthwise convolution (which carries kernel, stride and padding), then a 1x1 convolution.

    `middle` puts the block's normalisation and activation between the two as well.
    """

    kind: Literal["separable"] = "separable"
    middle: bool = False


class Residual(_Data):
    """The sum of a body and its input; a 1x1 convolution fits the input where channels or size differ."""

    kind: Literal["residual"] = "residual"
    body: tuple[Annotated[Conv | Separable, Field(discriminator="kind")], ...] = Field(
        min_length=1, max_length=8
    )
    activation: Activation = "none"  # after the addition


class Pool(_Data):
    """Max or average pooling without padding: an odd row or column at the edge is dropped."""

    kind: Literal["pool"] = "pool"
    method: Literal["max", "average"] = "max"
    kernel: int = Field(2, ge=2, le=64, strict=True)
    stride: int = Field(2, ge=1, le=64, strict=True)


class Repeat(_Data):
    """The last block before it that has weights, once more: the same convolutions, its own normalisation.

    That block must be as wide as what the repeat reads. Pooling may lie between the two.
    """

    kind: Literal["repeat"] = "repeat"


class Head(_Data):
    """From maps to class scores: a convolution to one map a class and global average pooling.

    `conv_then_pool` convolves the maps and averages the scores; `pool_then_conv` averages the maps
    first and mixes them with a 1x1 convolution.
    """

    order: Literal["conv_then_pool", "pool_then_conv"] = "conv_then_pool"
    kernel: Kernel = 1
    padding: Padding = "valid"
    bias: bool = True
    norm: bool = False  # batch normalisation of the class maps

    @model_validator(mode="after")
    def _one_pixel_has_no_neighbours(self) -> Head:
        if self.order == "pool_then_conv" and self.kernel != 1:
            raise ValueError(f"kernel: {self.kernel} needs more than one pixel (after pooling use 1)")
        return self


Block = Annotated[Conv | Separable | Residual | Pool | Repeat, Field(discriminator="kind")]
_TAGS = frozenset({"conv", "separable", "residual", "pool", "repeat"})


class Architecture(_Data):
    """An all-convolutional classifier: blocks, then a head.

    Raises `InputError` (through `make` and `from_json`) or pydantic's `ValidationError` (through the
    constructor) where no such network can exist; both name the field, the value and what is allowed.
    """

    input_shape: InputShape = (1, 28, 28)
    classes: Classes = 10
    blocks: tuple[Block, ...] = Field(min_length=1, max_length=64)
    head: Head = Head()

    @model_validator(mode="after")
    def _must_exist(self) -> Architecture:
        _ = self.layers  # works out every shape; raises where one is impossible
        return self

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layers with their shapes, in the order in which they run."""
        return expand(self)

    @cached_property
    def key(self) -> str:
        """16 hexadecimal digits that are equal exactly when the architectures are."""
        return digest(self)

    @classmethod
    def make(cls, data: Any) -> Architecture:
        """Validate plain data (dictionaries, lists, numbers); raises `InputError` with one line."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise InputError(explain(error, _TAGS)) from None

    @classmethod
    def from_json(cls, text: str | bytes) -> Architecture:
        """Read what `to_json` wrote, alone or as ``architecture`` beside other things.

        Raises `InputError` with one line.
        """
        if len(text) > MAX_JSON_BYTES:
            raise InputError(f"architecture: {len(text):,} bytes of JSON (at most {MAX_JSON_BYTES:,})")
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"architecture: not JSON ({error})") from None
        if not isinstance(data, dict):
            raise InputError(f"architecture: a JSON {type(data).__name__} (use an object with 'blocks')")
        return cls.make(data.get("architecture", data))

    def to_json(self) -> str:
        """Indented JSON with every field, defaults included."""
        return self.model_dump_json(indent=2) + "\n"


def digest(data: BaseModel) -> str:
    """16 hexadecimal digits of the SHA-256 of a model's canonical JSON (sorted keys, every field)."""
    canonical = json.dumps(data.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
