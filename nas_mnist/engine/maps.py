"""Feature maps in memory as kernels read them: batch tiles of as many images as a vector has lanes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..models.layers import Layer
from .kernels.compile import DType

Array = np.ndarray[Any, Any]


class TiledMaps:
    """Maps (tiles, C, H, W, lanes) of all tiles of a batch, or of one tile at a time, at a fixed address.

    There may be zeros around the maps and between their pixels, which kernels read and never write.
    """

    def __init__(
        self,
        shape: Sequence[int],
        dtype: DType,
        tiles: int = 0,
        before: int = 0,
        after: tuple[int, int] = (0, 0),
        spacing: int = 1,
    ) -> None:
        """``shape`` (C, H, W); ``tiles`` 0: one tile at a time.

        ``before``: rows and columns of zeros before the first pixel; ``after``: rows, and columns, behind the
        last one; ``spacing``: the distance from pixel to pixel.
        """
        channels, *self.size = self.shape = tuple(shape)
        height, width = (
            before + (pixels - 1) * spacing + 1 + more for pixels, more in zip(self.size, after, strict=True)
        )
        lanes, itemsize = dtype.lanes, dtype.number.itemsize
        self.values = dtype.zeros((max(tiles, 1), channels, height, width, lanes))
        self._start = self.values.data_ptr()
        row, plane = width * lanes, height * width * lanes
        self._planes = [channels * plane if tiles else 0, plane]
        self._places, self._pixels = [row, lanes], [row * spacing, lanes * spacing]
        self._first_pixel = self._start + before * (row + lanes) * itemsize
        self.dense = (height, width) == tuple(self.size)  # nothing around or between the pixels

    @classmethod
    def for_gradient(cls, layer: Layer, dtype: DType, tiles: int = 0) -> TiledMaps:
        """Memory for the gradient of a convolution's output, with the zeros that the backward pass reads.

        The gradient of the input is a convolution with stride 1 of these maps with the flipped weights.
        """
        sizes = zip(layer.in_shape[1:], layer.out_shape[1:], strict=True)
        height, width = (into + layer.padding - ((out - 1) * layer.stride + 1) for into, out in sizes)
        before = layer.kernel[0] - 1 - layer.padding
        return cls(layer.out_shape, dtype, tiles, before, (height, width), layer.stride)

    @property
    def arguments(self) -> list[int]:
        """Arguments of a kernel: an address, and the distances of tiles, channels, rows and pixels."""
        return [self._first_pixel, *self._planes, *self._pixels]

    @property
    def padded_arguments(self) -> list[int]:
        """The same for all places, those around and between the pixels included."""
        return [self._start, *self._planes, *self._places]


def to_tiles(images: Array, tiles: Array) -> None:
    """Put (N, C, H, W) into (tiles, C, H, W, lanes); the empty lanes of the last tile stay as they are."""
    lanes = tiles.shape[-1]
    whole, rest = divmod(len(images), lanes)
    together = images[: whole * lanes].reshape(whole, lanes, *images.shape[1:])
    tiles[:whole] = together.transpose(0, 2, 3, 4, 1)
    if rest:
        tiles[whole, ..., :rest] = images[whole * lanes :].transpose(1, 2, 3, 0)


def from_tiles(tiles: Array, count: int) -> Array:
    """(tiles, C, H, W, lanes) as (count, C, H, W), in memory of its own."""
    together = tiles.transpose(0, 4, 1, 2, 3).copy()
    return together.reshape(-1, *together.shape[2:])[:count]
