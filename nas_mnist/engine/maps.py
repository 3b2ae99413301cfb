"""Maps in memory as kernels read them: groups of images side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .vectors import LANES, Kind

Array = np.ndarray[Any, Any]
_LINE = 64  # bytes of a cache line


def zeros(shape: Sequence[int], kind: np.dtype[Any]) -> Array:
    """Zeros that begin at a cache line."""
    size = int(np.prod(shape)) * kind.itemsize
    raw = np.zeros(size + _LINE, np.uint8)
    start = -raw.ctypes.data % _LINE
    return raw[start : start + size].view(kind).reshape(shape)


class Maps:
    """Maps (C, H, W) of all groups of images, or of one at a time, at an address that stays.

    There may be zeros around them and between their pixels, which kernels read and never write.
    """

    def __init__(
        self,
        shape: Sequence[int],
        kind: Kind,
        groups: int = 0,
        before: int = 0,
        behind: tuple[int, int] = (0, 0),
        apart: int = 1,
    ) -> None:
        """``groups``: 0 for one at a time.

        ``before`` and ``behind``: places around, ``behind`` by direction; ``apart``: from pixel to pixel.
        """
        channels, *size = self.shape = tuple(shape)
        height, width = (
            before + (pixels - 1) * apart + 1 + more for pixels, more in zip(size, behind, strict=True)
        )
        self.size = size  # height and width
        self.values: Any  # an array, or elsewhere than on a CPU a tensor
        if isinstance(kind, np.dtype):
            lanes, numbers = LANES, kind.itemsize
            self.values = zeros((max(groups, 1), channels, height, width, lanes), kind)
            self._edge = self.values.ctypes.data
        else:
            lanes, numbers = kind.lanes, kind.number.itemsize
            self.values = kind.zeros((groups, channels, height, width, lanes))
            self._edge = self.values.data_ptr()
        row, plane = width * lanes, height * width * lanes
        self._planes = [channels * plane if groups else 0, plane]
        self._places, self._pixels = [row, lanes], [row * apart, lanes * apart]
        self._first = self._edge + before * (row + lanes) * numbers
        self.dense = (height, width) == tuple(size)  # nothing around or between

    @property
    def arguments(self) -> list[int]:
        """As a kernel takes them: an address, and the distances of groups, channels, rows and pixels."""
        return [self._first, *self._planes, *self._pixels]

    @property
    def from_the_edge(self) -> list[int]:
        """The same for all places, those around and between the pixels too."""
        return [self._edge, *self._planes, *self._places]


def to_groups(images: Array, groups: Array) -> None:
    """Put (N, C, H, W) into (groups, C, H, W, LANES); what is left of the last group stays as it is."""
    whole, rest = divmod(len(images), LANES)
    together = images[: whole * LANES].reshape(whole, LANES, *images.shape[1:])
    groups[:whole] = together.transpose(0, 2, 3, 4, 1)
    if rest:
        groups[whole, ..., :rest] = images[whole * LANES :].transpose(1, 2, 3, 0)


def from_groups(groups: Array, count: int) -> Array:
    """(groups, C, H, W, LANES) as (N, C, H, W), in memory of its own."""
    together = groups.transpose(0, 4, 1, 2, 3).copy()
    return together.reshape(-1, *together.shape[2:])[:count]
