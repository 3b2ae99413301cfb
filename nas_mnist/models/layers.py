"""From an architecture to its layers with input and output shapes.

The topology is written here and nowhere else: the counter, the builder and the printed table all read
the same layers. The formulas for output sizes are those of `torch.nn.Conv2d` and `torch.nn.MaxPool2d`.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .architecture import Architecture, Conv, Head, Pool, Residual, Separable

Shape = tuple[int, int, int]  # channels, height, width

ACTIVATIONS = {
    "relu": "ReLU",
    "leaky_relu": "LeakyReLU",
    "silu": "SiLU",
    "hardswish": "Hardswish",
    "gelu": "GELU",
}
ELEMENTWISE = frozenset({"BatchNorm2d", "Dropout2d", *ACTIVATIONS.values()})  # keep their input's shape
IMAGE = -1  # as an input: the image itself

# The bound that keeps a stranger's file from asking for terabytes: one map of 256 x 256 pixels with
# 1,024 channels has 67 million values.
MAX_VALUES = 1 << 26


class Layer(NamedTuple):
    """One `torch.nn` module, or the addition of a residual block, with everything that is known of it."""

    kind: str  # the class in torch.nn, or "Add"
    path: str  # the block that asked for it: "blocks[2].body[0]"
    inputs: tuple[int, ...]  # positions of the layers it reads; IMAGE is the image
    in_shape: Shape
    out_shape: Shape
    params: int = 0
    macs: int = 0  # multiply-adds for one image; additions of a bias do not count
    kernel: tuple[int, int] = (1, 1)  # height, width
    stride: int = 1
    padding: int = 0
    groups: int = 1
    bias: bool = False
    rate: float = 0.0  # dropout probability
    weights_of: int | None = None  # position of the layer whose weights it uses; None: it has its own


def expand(architecture: Architecture) -> tuple[Layer, ...]:
    """The layers of an architecture in the order in which they run.

    Raises `ValueError` with field, value and what is allowed where a shape would shrink below one pixel
    or the two arms of a residual block do not meet.
    """
    chain = _Chain(architecture.input_shape)
    for position, block in enumerate(architecture.blocks):
        chain.path = f"blocks[{position}]"
        if block.kind == "pool":
            chain.pool(block)
        elif block.kind == "repeat":
            chain.repeat()
        else:
            chain.weighted(block)
    chain.path = "head"
    chain.head(architecture.head, architecture.classes)
    return tuple(chain.layers)


class _Weighted(NamedTuple):
    """A block that may be repeated."""

    block: Conv | Separable | Residual
    first: int  # position of its first layer
    inputs: int  # channels that it reads


class _Chain:
    """The layers so far, and where the next one is attached."""

    def __init__(self, shape: Shape) -> None:
        self.layers: list[Layer] = []
        self.shape = shape  # of the newest layer's output
        self.at = IMAGE  # position of the newest layer
        self.path = ""
        self.newest: _Weighted | None = None

    def _add(self, layer: Layer) -> None:
        if prod(layer.out_shape) > MAX_VALUES:
            raise ValueError(f"{self.path}: {prod(layer.out_shape):,} values a map (at most {MAX_VALUES:,})")
        self.at = len(self.layers)
        self.layers.append(layer)
        self.shape = layer.out_shape

    def _conv(self, channels: int, kernel: int, stride: int, same: bool, bias: bool, groups: int = 1) -> None:
        inputs, height, width = self.shape
        padding = kernel // 2 if same else 0
        out_h = (height + 2 * padding - kernel) // stride + 1
        out_w = (width + 2 * padding - kernel) // stride + 1
        if out_h < 1 or out_w < 1:
            allowed = f"use at most {min(height, width)}, or 'same' padding"
            raise ValueError(
                f"{self.path}.kernel: {kernel} does not fit a map of {height}x{width} ({allowed})"
            )
        weights = channels * (inputs // groups) * kernel * kernel
        self._add(
            Layer(
                "Conv2d",
                self.path,
                (self.at,),
                self.shape,
                (channels, out_h, out_w),
                weights + (channels if bias else 0),
                weights * out_h * out_w,
                (kernel, kernel),
                stride,
                padding,
                groups,
                bias,
            )
        )

    def _elementwise(self, kind: str, params: int = 0, rate: float = 0.0) -> None:
        self._add(Layer(kind, self.path, (self.at,), self.shape, self.shape, params, rate=rate))

    def _norm(self) -> None:
        self._elementwise("BatchNorm2d", params=2 * self.shape[0])  # scale and shift a channel

    def _activation(self, name: str) -> None:
        if name != "none":
            self._elementwise(ACTIVATIONS[name])

    def _norm_and_activation(self, norm: str, activation: str) -> None:
        if norm == "before":
            self._norm()
        self._activation(activation)
        if norm == "after":
            self._norm()

    def weighted(self, block: Conv | Separable | Residual) -> None:
        """A block that a later one may repeat."""
        self.newest = _Weighted(block, len(self.layers), self.shape[0])
        self._run(block)

    def repeat(self) -> None:
        """The newest block with weights once more, its convolutions with the weights that they have there."""
        if self.newest is None:
            raise ValueError(f"{self.path}: nothing to repeat (put it behind a block that has weights)")
        block, first, inputs = self.newest
        if self.shape[0] != inputs:
            raise ValueError(
                f"{self.path}: reads {self.shape[0]} channels where the block that it repeats reads {inputs} "
                "(make that block as wide as what it reads)"
            )
        at = len(self.layers)
        self._run(block)
        for place in range(at, len(self.layers)):
            if self.layers[place].kind == "Conv2d":
                self.layers[place] = self.layers[place]._replace(params=0, weights_of=first + place - at)

    def _run(self, block: Conv | Separable | Residual) -> None:
        if block.kind == "residual":
            self.residual(block)
        else:
            self.convolution(block)

    def convolution(self, block: Conv | Separable) -> None:
        """Convolution(s), normalisation, activation, channel dropout."""
        same = block.padding == "same"
        if block.kind == "separable":
            inputs = self.shape[0]
            self._conv(inputs, block.kernel, block.stride, same, block.bias, groups=inputs)
            if block.middle:
                self._norm_and_activation(block.norm, block.activation)
            self._conv(block.channels, 1, 1, True, block.bias)
        else:
            self._conv(block.channels, block.kernel, block.stride, same, block.bias)
        self._norm_and_activation(block.norm, block.activation)
        if block.dropout:
            self._elementwise("Dropout2d", rate=block.dropout)

    def residual(self, block: Residual) -> None:
        """A body beside a shortcut; the sum of the two."""
        path, start, start_shape = self.path, self.at, self.shape
        stride = 1
        for position, part in enumerate(block.body):
            self.path = f"{path}.body[{position}]"
            self.convolution(part)
            stride *= part.stride
        body, body_shape = self.at, self.shape
        shortcut, shortcut_shape = start, start_shape
        if start_shape[0] != body_shape[0] or stride != 1:
            self.path, self.at, self.shape = f"{path}.shortcut", start, start_shape
            self._conv(body_shape[0], 1, stride, False, False)
            shortcut, shortcut_shape = self.at, self.shape
        self.path = path
        if shortcut_shape != body_shape:
            made, wanted = (f"{shape[1]}x{shape[2]}" for shape in (body_shape, shortcut_shape))
            raise ValueError(
                f"{path}.body: {made} where the shortcut has {wanted} (use 'same' padding in the body)"
            )
        self._add(Layer("Add", path, (body, shortcut), body_shape, body_shape))
        self._activation(block.activation)

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

    def _pool(self, kind: str, out: Shape, kernel: tuple[int, int], stride: int) -> None:
        self._add(Layer(kind, self.path, (self.at,), self.shape, out, kernel=kernel, stride=stride))

    def _global_average(self) -> None:
        channels, height, width = self.shape
        if (height, width) != (1, 1):  # nothing to average in a single pixel
            self._pool("AvgPool2d", (channels, 1, 1), (height, width), 1)

    def head(self, head: Head, classes: int) -> None:
        """One map a class and the global average, in the order that the head asks for."""
        if head.order == "pool_then_conv":
            self._global_average()
        self._conv(classes, head.kernel, 1, head.padding == "same", head.bias)
        if head.norm:
            self._norm()
        if head.order == "conv_then_pool":
            self._global_average()
