"""The blocks of an architecture and its head: frozen data, each field checked when it is made."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MAX_CHANNELS = 1024  # output channels of one convolution


def _check_int(value: object) -> object:
    if type(value) is not int:
        raise ValueError("use 1, 3, 5 or 7")
    return value


Activation = Literal["none", "relu", "leaky_relu", "silu", "hardswish", "gelu"]
Norm = Literal["none", "before", "after"]  # batch normalisation: off, before or after the activation
Padding = Literal["same", "valid"]
Kernel = Annotated[Literal[1, 3, 5, 7], BeforeValidator(_check_int)]  # pixels, square
Channels = Annotated[int, Field(ge=1, le=MAX_CHANNELS, strict=True)]
Stride = Annotated[int, Field(ge=1, le=4, strict=True)]
Rate = Annotated[float, Field(ge=0, lt=1), AfterValidator(lambda rate: rate + 0.0)]  # -0.0 becomes 0.0
Size = Annotated[int, Field(ge=4, le=256, strict=True)]  # pixels
InputShape = tuple[Annotated[int, Field(ge=1, le=4, strict=True)], Size, Size]  # channels, height, width
Classes = Annotated[int, Field(ge=2, le=1000, strict=True)]


class Frozen(BaseModel):
    """The base of all parts: immutable, no unknown fields, finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Layer(Frozen):
    kernel: Kernel = 3
    stride: Stride = 1
    padding: Padding = "same"
    bias: bool = False
    norm: Norm = "before"
    activation: Activation = "relu"
    dropout: Rate = 0.0  # probability that a whole channel is set to zero


class Depthwise(_Layer):
    """One filter a channel, then normalisation and activation in the order of `norm`, then channel dropout.

    The output has as many channels as the input.
    """

    kind: Literal["depthwise"] = "depthwise"


class _Convolution(_Layer):
    channels: Channels  # of the output


class Conv(_Convolution):
    """Convolution, then normalisation and activation in the order of `norm`, then channel dropout.

    With kernel 1, ``norm="none"`` and ``activation="none"`` it is a plain 1x1 transition.
    """

    kind: Literal["conv"] = "conv"


class Separable(_Convolution):
    """Depthwise convolution with the block's kernel, stride and padding, then a 1x1 convolution.

    With `middle`, normalisation and activation also follow the depthwise convolution.
    """

    kind: Literal["separable"] = "separable"
    middle: bool = False


Part = Annotated[Conv | Separable | Depthwise, Field(discriminator="kind")]
Body = Annotated[tuple[Part, ...], Field(min_length=1, max_length=8)]


class Sequence(Frozen):
    """Convolutions one after the other; a repeat runs all of them."""

    kind: Literal["sequence"] = "sequence"
    body: Body


class Residual(Frozen):
    """The sum of a body and a shortcut.

    The shortcut is the block's input, or a 1x1 convolution of it where channels or size differ.
    """

    kind: Literal["residual"] = "residual"
    body: Body
    activation: Activation = "none"  # after the addition


class Pool(Frozen):
    """Max or average pooling without padding: an odd row or column at the edge is dropped."""

    kind: Literal["pool"] = "pool"
    method: Literal["max", "average"] = "max"
    kernel: int = Field(2, ge=2, le=64, strict=True)  # pixels
    stride: int = Field(2, ge=1, le=64, strict=True)


class Repeat(Frozen):
    """The last weighted block once more: the same convolution weights, a normalisation of its own.

    The input needs as many channels as the repeated block reads. Pooling may lie between the two.
    """

    kind: Literal["repeat"] = "repeat"


class Head(Frozen):
    """From feature maps to class scores: one map a class, and the global average.

    `conv_then_pool` convolves the maps and averages the scores. `pool_then_conv` averages the maps and
    mixes them with a 1x1 convolution.
    """

    order: Literal["conv_then_pool", "pool_then_conv"] = "conv_then_pool"
    kernel: Kernel = 1
    padding: Padding = "valid"
    bias: bool = True
    norm: bool = False  # batch normalisation of the class maps

    @model_validator(mode="after")
    def _check_kernel(self) -> Head:
        if self.order == "pool_then_conv" and self.kernel != 1:
            raise ValueError(f"kernel: {self.kernel} needs more than one pixel (after pooling use 1)")
        return self


WeightedBlock = Conv | Separable | Depthwise | Sequence | Residual
Block = Annotated[WeightedBlock | Pool | Repeat, Field(discriminator="kind")]
BLOCK_KINDS = frozenset({"conv", "separable", "depthwise", "sequence", "residual", "pool", "repeat"})
