"""Feature maps as kernels read and write them."""

from __future__ import annotations

from .values import Index, Int, Vector
from .writer import Writer


class MapPointer:
    """Feature maps among a kernel's arguments: a pointer and four strides, which count numbers.

    Maps lie in batch tiles (tiles, C, H, W, lanes): a vector has one pixel of as many images. The strides are
    those of tiles, channels, rows and pixels.
    """

    def __init__(self, w: Writer) -> None:
        self.w, self.pointer = w, w.argument()
        strides = [w.argument() for _ in range(4)]
        tile_stride, self.channel_stride, self.row_stride, self.pixel_stride = strides
        self.start = w.batch_tile * tile_stride

    def at(self, channel: Int, row: Int, pixel: Int = 0) -> Index:
        """The offset of a pixel."""
        in_map = row * self.row_stride + pixel * self.pixel_stride
        return self.start + channel * self.channel_stride + in_map

    def load(self, offset: Int) -> Vector:
        return self.w.load(self.pointer, offset)

    def store(self, value: Vector, offset: Int) -> None:
        self.w.store(value, self.pointer, offset)
