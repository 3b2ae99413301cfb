"""The layers of an architecture fused to the calls of an int8 program, and the program's memory.

A call is a convolution or a pooling with everything that follows it elementwise: normalisations, activations
and the addition of a residual block. Only the outputs of calls are stored, one byte a value, channel after
channel. The C export runs these calls from tables of the sizes that `flash_bytes` adds up, in the static
buffer that `plan_memory` lays out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from .layers import ACTIVATIONS, ELEMENTWISE, IMAGE, Layer

CALL_BYTES = 56  # a row of the table of calls
CHANNEL_BYTES = 5  # int16 multiplier, int16 bias, uint8 shift
GATE_BYTES = 2 * 257  # uint16 entries of the table of an activation's gate
GATE_TABLES = ("SiLU", "GELU")  # activations with a table, shared by all calls
_ROUNDS = 12  # of the search for a layout
_ACTIVATION_KINDS = frozenset(ACTIVATIONS.values())


class Call(NamedTuple):
    """One convolution or pooling and the elementwise layers behind it, in this order."""

    layer: Layer  # Conv2d, MaxPool2d or AvgPool2d
    position: int  # of that layer
    source: int  # the call whose output it reads; IMAGE is the image
    norm: int | None = None  # position of the normalisation of its output
    activation: str = ""  # class in torch.nn
    norm_after: int | None = None  # position of the normalisation behind the activation
    other: int | None = None  # the call whose output is added; IMAGE is the image
    last_activation: str = ""  # behind the addition
    averaged: bool = False  # the head: the class scores are averages over all pixels

    @property
    def in_place(self) -> bool:
        """Whether the output may take the place of the input that is read.

        Pooling writes behind its reads. A depthwise convolution needs a copy of the channel it reads, a 1x1
        convolution a copy of the pixel.
        """
        return self.layer.kind != "Conv2d" or self.is_depthwise or self.is_pointwise

    @property
    def is_depthwise(self) -> bool:
        """One filter a channel."""
        layer = self.layer
        return layer.kind == "Conv2d" and layer.groups == layer.in_shape[0] == layer.out_shape[0]

    @property
    def is_pointwise(self) -> bool:
        """A 1x1 convolution of every pixel."""
        layer = self.layer
        return (
            layer.kind == "Conv2d"
            and (layer.kernel, layer.stride, layer.padding, layer.groups) == ((1, 1), 1, 0, 1)
            and not self.is_depthwise
        )

    @property
    def scratch(self) -> int:
        """Bytes of the copy that a convolution in place needs."""
        channels, height, width = self.layer.in_shape
        return height * width if self.is_depthwise else channels if self.is_pointwise else 0

    @property
    def weights(self) -> int:
        """The number of its weights, biases not counted; shared ones count at their owner."""
        layer = self.layer
        if layer.kind != "Conv2d" or layer.weights_of is not None:
            return 0
        return layer.out_shape[0] * (layer.in_shape[0] // layer.groups) * prod(layer.kernel)


def fuse(layers: Sequence[Layer]) -> tuple[Call, ...]:
    """The calls of a network's layers; the last one makes the class scores."""
    calls: list[Call] = []
    made = {IMAGE: IMAGE}  # by position: the call whose output it is
    for position, layer in enumerate(layers):
        if layer.kind == "Add":
            body, shortcut = layer.inputs
            other = shortcut if body == position - 1 else body
            calls[-1] = calls[-1]._replace(other=made[other])
        elif layer.kind == "BatchNorm2d":
            last = calls[-1]
            calls[-1] = (
                last._replace(norm_after=position) if last.activation else last._replace(norm=position)
            )
        elif layer.kind in _ACTIVATION_KINDS:
            last, kind = calls[-1], layer.kind
            is_first = last.other is None
            calls[-1] = last._replace(activation=kind) if is_first else last._replace(last_activation=kind)
        elif layer.kind not in ELEMENTWISE:  # dropout does nothing
            calls.append(Call(layer, position, made[layer.inputs[0]]))
        made[position] = len(calls) - 1
    if calls[-1].layer.kind != "Conv2d":  # the global average of the class maps
        calls.pop()
    calls[-1] = calls[-1]._replace(averaged=True)
    return tuple(calls)


def flash_bytes(calls: Sequence[Call]) -> int:
    """Bytes of all tables: int8 weights, channels, calls, gates. The code comes on top."""
    channels = sum(
        call.layer.out_shape[0] * (1 if call.norm_after is None else 2)
        for call in calls
        if call.layer.kind == "Conv2d"
    )
    used = {name for call in calls for name in (call.activation, call.last_activation)}
    return (
        sum(call.weights for call in calls)
        + CHANNEL_BYTES * channels
        + CALL_BYTES * len(calls)
        + GATE_BYTES * len(used.intersection(GATE_TABLES))
    )


def last_reads(calls: Sequence[Call]) -> dict[int, int]:
    """By call, or IMAGE: the last call that reads its output."""
    return {
        read: number
        for number, call in enumerate(calls)
        for read in (call.source, call.other)
        if read is not None
    }


class Place(NamedTuple):
    """The bytes of one call, from the beginning of the buffer; 0 where it has none."""

    source: int
    target: int
    other: int
    scratch: int


class Memory(NamedTuple):
    """The layout of the static buffer."""

    size: int  # bytes
    image: int  # first byte of the image
    places: tuple[Place, ...]  # one a call


def plan_memory(calls: Sequence[Call], image_values: int) -> Memory:
    """Lay all outputs out in one buffer, where possible in place of an input that is not read again.

    The layout is greedy, the largest block first, as that of TensorFlow Lite's runtime for microcontrollers.
    """
    blocks = _Blocks(calls, image_values)
    size, offsets = _lay_out(blocks.sizes)
    places = tuple(
        Place(
            source=offsets[blocks.block_of[call.source]],
            target=offsets[blocks.block_of[number]] if number in blocks.block_of else 0,
            other=0 if call.other is None else offsets[blocks.block_of[call.other]],
            scratch=offsets[blocks.scratch[number]] if number in blocks.scratch else 0,
        )
        for number, call in enumerate(calls)
    )
    return Memory(size, offsets[blocks.block_of[IMAGE]], places)


Sizes = dict[int, int]  # by call: bytes in use while it runs


class _Blocks:
    """Bytes that lie together: outputs that take each other's place, or the scratch of one call."""

    def __init__(self, calls: Sequence[Call], image_values: int) -> None:
        self.calls, self.last_read = calls, last_reads(calls)
        self.sizes: list[Sizes] = []
        self.block_of: dict[int, int] = {}  # by call; the last one writes no output
        self.scratch: dict[int, int] = {}  # by call that works in place
        self._output(IMAGE, image_values)
        for number, call in enumerate(calls[:-1]):
            self._output(number, prod(call.layer.out_shape))
            if call.scratch and self.block_of[number] == self.block_of[call.source]:
                self.scratch[number] = len(self.sizes)
                self.sizes.append({number: call.scratch})

    def _output(self, number: int, size: int) -> None:
        """Give an output its place; it is in use from its call to the last one that reads it."""
        replaced = None if number == IMAGE else self._replaced(number)
        if replaced is None:
            self.block_of[number] = len(self.sizes)
            self.sizes.append({})
        else:
            self.block_of[number] = self.block_of[replaced]
        used = self.sizes[self.block_of[number]]
        for step in range(max(number, 0), self.last_read[number] + 1):
            used[step] = max(used.get(step, 0), size)

    def _replaced(self, number: int) -> int | None:
        """The input whose place the output takes."""
        call = self.calls[number]
        if call.other is not None and (call.other != call.source or call.in_place):
            return call.other if self.last_read[call.other] == number else None
        return call.source if call.in_place and self.last_read[call.source] == number else None


def _lay_out(blocks: Sequence[Sizes]) -> tuple[int, list[int]]:
    """The size of the buffer and the first byte of each block.

    Blocks are placed one by one, the largest first. While the buffer is larger than the bytes in use at some
    time, the block that ends last moves to the front of the order (squeaky wheel optimisation).
    """
    in_use: Counter[int] = Counter()
    for block in blocks:
        in_use.update(block)
    order = sorted(range(len(blocks)), key=lambda number: -max(blocks[number].values()))
    best: tuple[int, list[int]] | None = None
    for _ in range(_ROUNDS):
        offsets = _place_in_order(blocks, order)
        size, last = max((offsets[one] + max(block.values()), one) for one, block in enumerate(blocks))
        if best is None or size < best[0]:
            best = size, [offsets[number] for number in range(len(blocks))]
        if size == max(in_use.values()) or last == order[0]:
            break
        order.remove(last)
        order.insert(0, last)
    assert best is not None
    return best


def _place_in_order(blocks: Sequence[Sizes], order: Sequence[int]) -> dict[int, int]:
    """The first byte of each block: the lowest one that is free whenever the block is in use."""
    offsets: dict[int, int] = {}
    for number in order:
        block = blocks[number]
        taken = [  # first byte, end, bytes that the new block needs at that time
            (offset, offset + size, block[step])
            for other, offset in offsets.items()
            for step, size in blocks[other].items()
            if step in block
        ]
        offsets[number] = next(
            start
            for start in sorted({0, *(end for _, end, _ in taken)})
            if all(start >= end or start + size <= first for first, end, size in taken)
        )
    return offsets
