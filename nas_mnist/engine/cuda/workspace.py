"""What one pass on CUDA consists of: its batch tiles, its memory, and its launches in their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor

from ...core.errors import InputError
from ...models.layers import Layer
from ..kernels.compile import Call
from ..maps import TiledMaps
from .launch import CudaDType, Launch
from .writer import WARP

_WARPS = 4_096  # as many at once fill a large device
_MAX_BLOCKS = 65_535  # of a launch, in one direction of its grid
Memory = TypeVar("Memory")


class Workspace:
    """Memory and launches for batches of ``count`` images for each of the ``models`` side by side."""

    def __init__(self, count: int, models: int, dtype: CudaDType) -> None:
        self.count, self.models, self.dtype = count, models, dtype
        self.tiles = models * -(-count // WARP)
        self.mask = dtype.zeros((self.tiles, WARP))  # 1 where a lane has an image, else 0
        self.mask.view(models, -1)[:, :count] = 1
        self._memory: list[Any] = []  # that launches point to
        self.launches: list[Launch] = []

    def keep(self, memory: Memory) -> Memory:
        """Keep memory that launches point to."""
        self._memory.append(memory)
        return memory

    def maps(self, shape: Sequence[int], pad: int = 0) -> TiledMaps:
        """Memory for maps (C, H, W) of all images."""
        return self.keep(TiledMaps(shape, self.dtype, self.tiles, pad, (pad, pad)))

    def gradient_maps(self, layer: Layer) -> TiledMaps:
        """Memory for the gradient of a convolution's output."""
        return self.keep(TiledMaps.for_gradient(layer, self.dtype, self.tiles))

    def chunks(self, items: int, rows: int) -> int:
        """The number of chunks of a map's rows where every block ends with sums over its images."""
        return min(self.row_chunks(rows), max(1, _WARPS // max(1, items * self.tiles)))

    def row_chunks(self, rows: int) -> int:
        """The number of chunks of a map's rows where blocks are independent."""
        return max(1, min(rows, _MAX_BLOCKS // self.tiles))

    def launch(self, call: Call, items: int, chunks: int = 1, per_model: bool = False) -> None:
        """Add a launch for every batch tile, or ``per_model`` for every model.

        Raises `InputError` if the images are more than a launch can take.
        """
        tiles = self.models if per_model else self.tiles
        if tiles * chunks > _MAX_BLOCKS:
            raise InputError(f"batch_size: {self.count:,} images of this size (use fewer)")
        self.launches.append(Launch(self.dtype, call, items, tiles, chunks, self.models))

    def take_launches(self) -> list[Launch]:
        """The launches that were added since the last call."""
        launches, self.launches = self.launches, []
        return launches

    def put(self, images: Tensor, into: Tensor) -> None:
        """Copy (models * N, C, H, W) into tiles (tiles, C, H, W, WARP)."""
        images = images.unflatten(0, (self.models, -1))
        into = into.unflatten(0, (self.models, -1))
        whole, rest = divmod(self.count, WARP)
        together = images[:, : whole * WARP].unflatten(1, (whole, WARP))
        into[:, :whole].copy_(together.permute(0, 1, 3, 4, 5, 2))
        if rest:
            into[:, whole, ..., :rest].copy_(images[:, whole * WARP :].permute(0, 2, 3, 4, 1))
