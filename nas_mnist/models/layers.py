"""From blocks to layers with input and output shapes.

The topology is written here and nowhere else: the counter, the builder and the printed table read the same
layers. Output sizes follow the formulas of `torch.nn.Conv2d` and `torch.nn.MaxPool2d`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from .blocks import Block, Conv, Head, Part, Pool, Residual, Separable, WeightedBlock

Shape = tuple[int, int, int]  # channels, height, width

ACTIVATIONS = {
    "relu": "ReLU",
    "leaky_relu": "LeakyReLU",
    "silu": "SiLU",
    "hardswish": "Hardswish",
    "gelu": "GELU",
}
ELEMENTWISE = frozenset({"BatchNorm2d", "Dropout2d", *ACTIVATIONS.values()})  # keep their input's shape
IMAGE = -1  # the image's position among a layer's inputs

MAX_VALUES = 1 << 26  # of one layer's output: 1,024 channels of 256 x 256 pixels


class Layer(NamedTuple):
    """One `torch.nn` module, or the addition of a residual block, with its shapes and costs."""

    kind: str  # the class in torch.nn, or "Add"
    path: str  # the block it belongs to: "blocks[2].body[0]"
    inputs: tuple[int, ...]  # positions of the layers it reads; IMAGE is the image
    in_shape: Shape
    out_shape: Shape
    params: int = 0
    macs: int = 0  # multiply-adds for one image, without the addition of a bias
    kernel: tuple[int, int] = (1, 1)  # height, width
    stride: int = 1
    padding: int = 0
    groups: int = 1
    bias: bool = False
    rate: float = 0.0  # dropout probability
    weights_of: int | None = None  # position of the layer whose weights it shares; None: its own weights


def expand(input_shape: Shape, blocks: Sequence[Block], head: Head, classes: int) -> tuple[Layer, ...]:
    """The layers of blocks and head in the order in which they run.

    Raises `ValueError` with field, value and what is allowed where a shape would shrink below one pixel or
    the two arms of a residual block differ in shape.
    """
    builder = LayerBuilder(input_shape)
    for position, block in enumerate(blocks):
        builder.path = f"blocks[{position}]"
        if block.kind == "pool":
            builder.pool(block)
        elif block.kind == "repeat":
            builder.repeat()
        else:
            builder.weighted(block)
    builder.path = "head"
    builder.head(head, classes)
    return tuple(builder.layers)


class _Repeatable(NamedTuple):
    block: WeightedBlock
    position: int  # of its first layer
    in_channels: int


class LayerBuilder:
    """The layers so far, and the place where the next one is attached."""

    def __init__(self, shape: Shape) -> None:
        self.layers: list[Layer] = []
        self.shape = shape  # of the newest layer's output
        self.position = IMAGE  # of the newest layer
        self.path = ""
        self.repeatable: _Repeatable | None = None  # the last block with weights

    def weighted(self, block: WeightedBlock) -> None:
        """A block with weights, which a later block may repeat."""
        self.repeatable = _Repeatable(block, len(self.layers), self.shape[0])
        self._weighted(block)

    def repeat(self) -> None:
        """The last block with weights once more; its convolutions share their weights."""
        if self.repeatable is None:
            raise ValueError(f"{self.path}: nothing to repeat (put it behind a block that has weights)")
        block, original, in_channels = self.repeatable
        if self.shape[0] != in_channels:
            raise ValueError(
                f"{self.path}: reads {self.shape[0]} channels where the block that it repeats reads "
                f"{in_channels} (make that block as wide as what it reads)"
            )
        start = len(self.layers)
        self._weighted(block)
        for position in range(start, len(self.layers)):
            layer = self.layers[position]
            if layer.kind == "Conv2d":
                self.layers[position] = layer._replace(params=0, weights_of=original + position - start)

    def pool(self, block: Pool) -> None:
        """Max or average pooling, no padding."""
        channels, height, width = self.shape
        out_h = (height - block.kernel) // block.stride + 1
        out_w = (width - block.kernel) // block.stride + 1
        if out_h < 1 or out_w < 1:
            raise ValueError(
                f"{self.path}.kernel: {block.kernel} does not fit a map of {height}x{width} "
                f"(use at most {min(height, width)})"
            )
        kind = "MaxPool2d" if block.method == "max" else "AvgPool2d"
        self._pool(kind, (channels, out_h, out_w), (block.kernel, block.kernel), block.stride)

    def head(self, head: Head, classes: int) -> None:
        """One map a class and the global average, in the head's order."""
        if head.order == "pool_then_conv":
            self._global_average()
        self._conv(classes, head.kernel, same=head.padding == "same", bias=head.bias)
        if head.norm:
            self._norm()
        if head.order == "conv_then_pool":
            self._global_average()

    def _weighted(self, block: WeightedBlock) -> None:
        if block.kind == "residual":
            self._residual(block)
        elif block.kind == "sequence":
            self._body(block.body)
        else:
            self._convolution(block)

    def _body(self, body: Sequence[Part]) -> None:
        """Convolutions one after the other."""
        path = self.path
        for number, part in enumerate(body):
            self.path = f"{path}.body[{number}]"
            self._convolution(part)
        self.path = path

    def _convolution(self, block: Part) -> None:
        """One convolution or two, normalisation, activation, channel dropout."""
        same = block.padding == "same"
        channels = self.shape[0]
        if isinstance(block, Conv):
            self._conv(block.channels, block.kernel, block.stride, same, block.bias)
        else:
            self._conv(channels, block.kernel, block.stride, same, block.bias, groups=channels)
        if isinstance(block, Separable):
            if block.middle:
                self._norm_and_activation(block.norm, block.activation)
            self._conv(block.channels, kernel=1, bias=block.bias)
        self._norm_and_activation(block.norm, block.activation)
        if block.dropout:
            self._elementwise("Dropout2d", rate=block.dropout)

    def _residual(self, block: Residual) -> None:
        """The sum of a body and a shortcut."""
        path, start, start_shape = self.path, self.position, self.shape
        self._body(block.body)
        stride = prod(part.stride for part in block.body)
        body, body_shape = self.position, self.shape
        shortcut, shortcut_shape = start, start_shape
        if start_shape[0] != body_shape[0] or stride != 1:
            self.path, self.position, self.shape = f"{path}.shortcut", start, start_shape
            self._conv(body_shape[0], kernel=1, stride=stride)
            shortcut, shortcut_shape = self.position, self.shape
        self.path = path
        if shortcut_shape != body_shape:
            made, wanted = (f"{shape[1]}x{shape[2]}" for shape in (body_shape, shortcut_shape))
            raise ValueError(
                f"{path}.body: {made} where the shortcut has {wanted} (use 'same' padding in the body)"
            )
        self._add(Layer("Add", path, (body, shortcut), body_shape, body_shape))
        self._activation(block.activation)

    def _conv(
        self,
        channels: int,
        kernel: int,
        stride: int = 1,
        same: bool = True,
        bias: bool = False,
        groups: int = 1,
    ) -> None:
        in_channels, height, width = self.shape
        padding = kernel // 2 if same else 0
        out_h = (height + 2 * padding - kernel) // stride + 1
        out_w = (width + 2 * padding - kernel) // stride + 1
        if out_h < 1 or out_w < 1:
            raise ValueError(
                f"{self.path}.kernel: {kernel} does not fit a map of {height}x{width} "
                f"(use at most {min(height, width)}, or 'same' padding)"
            )
        weights = channels * (in_channels // groups) * kernel * kernel
        self._add(
            Layer(
                kind="Conv2d",
                path=self.path,
                inputs=(self.position,),
                in_shape=self.shape,
                out_shape=(channels, out_h, out_w),
                params=weights + (channels if bias else 0),
                macs=weights * out_h * out_w,
                kernel=(kernel, kernel),
                stride=stride,
                padding=padding,
                groups=groups,
                bias=bias,
            )
        )

    def _norm_and_activation(self, norm: str, activation: str) -> None:
        if norm == "before":
            self._norm()
        self._activation(activation)
        if norm == "after":
            self._norm()

    def _norm(self) -> None:
        self._elementwise("BatchNorm2d", params=2 * self.shape[0])  # scale and shift a channel

    def _activation(self, name: str) -> None:
        if name != "none":
            self._elementwise(ACTIVATIONS[name])

    def _elementwise(self, kind: str, params: int = 0, rate: float = 0.0) -> None:
        self._add(Layer(kind, self.path, (self.position,), self.shape, self.shape, params, rate=rate))

    def _global_average(self) -> None:
        channels, height, width = self.shape
        if (height, width) != (1, 1):  # a single pixel is its own average
            self._pool("AvgPool2d", (channels, 1, 1), (height, width), stride=1)

    def _pool(self, kind: str, out: Shape, kernel: tuple[int, int], stride: int) -> None:
        self._add(Layer(kind, self.path, (self.position,), self.shape, out, kernel=kernel, stride=stride))

    def _add(self, layer: Layer) -> None:
        values = prod(layer.out_shape)
        if values > MAX_VALUES:
            raise ValueError(f"{self.path}: {values:,} values a map (at most {MAX_VALUES:,})")
        self.position = len(self.layers)
        self.layers.append(layer)
        self.shape = layer.out_shape
