"""Blocks that a space file describes: a sequence of convolutions, with or without a shortcut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, model_validator

from ..models.blocks import (
    MAX_CHANNELS,
    Activation,
    Conv,
    Depthwise,
    Frozen,
    Kernel,
    Norm,
    Part,
    Rate,
    Residual,
    Separable,
    Sequence,
)

MAX_WIDTH = 16.0  # channels of a layer, relative to the stage's


class OwnLayer(Frozen):
    """One convolution of an own block; a field that is None has the value of the stage."""

    kind: Literal["conv", "separable", "depthwise"]
    width: Annotated[float, Field(gt=0, le=MAX_WIDTH)] = 1.0  # channels, relative to the stage's
    kernel: Kernel | None = None
    bias: bool | None = None
    norm: Norm | None = None
    activation: Activation | None = None
    dropout: Rate | None = None

    @model_validator(mode="after")
    def _check_width(self) -> OwnLayer:
        if self.kind == "depthwise" and "width" in self.model_fields_set:
            raise ValueError(f"width: {self.width} (a depthwise layer is as wide as its input)")
        return self

    def part(self, channels: int, stride: int, fields: Mapping[str, Any], middle: bool) -> Part:
        """The layer in a stage of ``channels`` channels."""
        given = {name: getattr(self, name) for name in ("kernel", "bias", "norm", "activation", "dropout")}
        used = {**fields, "stride": stride} | {name: one for name, one in given.items() if one is not None}
        if self.kind == "depthwise":
            return Depthwise(**used)
        used["channels"] = min(max(round(self.width * channels), 1), MAX_CHANNELS)
        return Conv(**used) if self.kind == "conv" else Separable(middle=middle, **used)


class OwnBlock(Frozen):
    """A named sequence of convolutions, usable as ``block`` of a stage.

    With ``shortcut`` its input is added to its output. Where a stage ends with stride 2, the first layer
    with a kernel above 1 has that stride, or else the first layer.
    """

    shortcut: StrictBool = False
    layers: Annotated[tuple[OwnLayer, ...], Field(min_length=1, max_length=8)]

    @model_validator(mode="after")
    def _check_output(self) -> OwnBlock:
        widths = [layer.width for layer in self.layers if layer.kind != "depthwise"]
        if not widths:
            raise ValueError(
                "layers: all depthwise (use a conv or separable layer, too: it sets the channels)"
            )
        if widths[-1] != 1:
            raise ValueError(
                f"layers: the block's output has width {widths[-1]:g} (use 1 for the last layer)"
            )
        return self

    def block(
        self, channels: int, stride: int, fields: Mapping[str, Any], middle: bool
    ) -> Residual | Sequence:
        """The block with ``channels`` output channels; ``fields``: those of a convolution in this stage."""
        kernels = [layer.kernel or fields["kernel"] for layer in self.layers]
        strided = next((at for at, kernel in enumerate(kernels) if kernel > 1), 0)
        body = tuple(
            layer.part(channels, stride if at == strided else 1, fields, middle)
            for at, layer in enumerate(self.layers)
        )
        return Residual(body=body) if self.shortcut else Sequence(body=body)
