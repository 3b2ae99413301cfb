"""What `augment.warp` does, on a CPU: images are picked, mapped and normalised by one compiled loop."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..training.evaluate import Normalizer
from .threads import run, threads
from .vectors import LANES, Program, compile_kernel
from .warping import EDGE, mixed
from .writer import Writer

_FLOAT = np.dtype(np.float32)


def within_reach(images: Tensor) -> bool:
    """Whether a kernel that counts bytes in 32 bits finds all images (N, C, H, W), zeros around included."""
    count, channels, height, width = images.shape
    return count * channels * (height + sum(EDGE)) * (width + sum(EDGE)) < 1 << 31


class Warp:
    """Images that can be picked and mapped."""

    def __init__(self, images: Tensor, normalize: Normalizer) -> None:
        """Of uint8 images (N, C, H, W)."""
        before, behind = EDGE
        self.shape = images.shape[1:]
        self.images = F.pad(images, (before, behind) * 2).contiguous()
        self.normal = np.array([1 / normalize.std, -normalize.mean / normalize.std], _FLOAT)

    def lines(self, maps: Tensor) -> Tensor:
        """What `__call__` takes of maps (N, 2, 3) as `augment.draw` draws them: (N, 3, 2) float32.

        In pixels, (x, y): where an image's first one comes from, and how far that is for its neighbours.
        """
        _, height, width = self.shape
        across, down, shift = maps.unbind(2)  # each (N, 2)
        first = shift + across * (1 / width - 1) + down * (1 / height - 1)
        sizes = torch.tensor([width, height], device=maps.device)
        places = ((first + 1) * sizes - 1) / 2
        return torch.stack([places, across * (sizes / width), down * (sizes / height)], dim=1)

    def unchanged(self, count: int) -> Tensor:
        """What leaves so many images as they are: (N, 3, 2) float32."""
        one = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], device=self.images.device)
        return one.repeat(count, 1, 1)

    def __call__(self, picked: Tensor, lines: Tensor) -> Tensor:
        """Images (B, C, H, W) float32: those at positions (B,), mapped along ``lines``, normalised."""
        channels, height, width = self.shape
        apart = self.shape.numel() + LANES  # what is written too much of an image is not the next one's
        made = torch.empty((len(picked), apart))
        memory = self.images, picked.contiguous(), lines.contiguous(), made
        where = [one.data_ptr() for one in memory]
        row = [_kernel(), *where, self.normal.ctypes.data, channels, height, width, apart]
        run([Program([row])] * threads(), len(picked), (self, memory))
        return made[:, : self.shape.numel()].view(-1, *self.shape)


@cache
def _kernel() -> int:
    """Makes one image of the batch."""

    def write(w: Writer) -> None:
        images, picked, lines, made, normal = (w.argument() for _ in range(5))
        channels, height, width, apart = (w.argument() for _ in range(4))
        wide, tall = w.add(width, sum(EDGE)), w.add(height, sum(EDGE))
        source = w.mul(w.read_whole(picked, w.group), w.mul(channels, w.mul(wide, tall)))
        source = w.add(images, source)
        target = w.mul(w.group, apart)
        numbers = [w.one(lines, w.add(w.mul(w.group, 6), place)) for place in range(6)]
        first, right, down = numbers[:2], numbers[2:4], numbers[4:]
        factor, constant = w.one(normal), w.one(normal, 1)
        limits = [w.number_of(width), w.number_of(height)]

        with w.loop(channels) as channel, w.loop(height) as y:
            line = [w.plus(one, w.times(w.number_of(y), by)) for one, by in zip(first, down, strict=True)]
            corner = w.add(w.mul(w.mul(channel, wide), tall), w.mul(wide, EDGE[0]), EDGE[0])
            to = w.add(target, w.mul(w.add(w.mul(channel, height), y), width))
            with w.loop(width, step=LANES) as x:  # what is too much, the next row is written over
                across = w.number_of(w.count_from(x))
                places = [w.plus(start, w.times(across, by)) for start, by in zip(line, right, strict=True)]
                value = mixed(w, source, places, limits, wide, corner)
                w.store(w.plus(w.times(value, factor), constant), made, w.add(to, x))

    return compile_kernel(write, _FLOAT)
