"""Kernels that augment images, and images and affine maps in their form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ...data.normalize import Normalizer
from .compile import LANES, compiled
from .values import Int, IntVector, Vector
from .writer import Writer

EDGE = 3  # zeros behind rows and columns: bytes that are read together with an image's last pixel


class PaddedImages:
    """A data set's images with zeros behind, and the factor and constant that normalise them."""

    map_shape: ClassVar = (3, 2)

    def __init__(self, images: Tensor, normalize: Normalizer) -> None:
        """``images`` (N, C, H, W) uint8."""
        self.shape = images.shape[1:]
        self.images = F.pad(images, (0, EDGE, 0, EDGE)).contiguous()
        factors = [1 / normalize.std, -normalize.mean / normalize.std]
        self.normal = torch.tensor(factors, dtype=torch.float32, device=images.device)

    def prepare_maps(self, maps: Tensor) -> Tensor:
        """Affine maps (N, 2, 3), as `affine_grid` takes them, in pixels: (N, 3, 2) float32.

        In x and y: the place from which an image's first pixel is read, and the way from there to the place
        of its neighbour on the right and below.
        """
        _, height, width = self.shape
        across, down, shift = maps.unbind(2)  # each (N, 2)
        first = shift + across * (1 / width - 1) + down * (1 / height - 1)
        sizes = torch.tensor([width, height], device=maps.device)
        places = ((first + 1) * sizes - 1) / 2
        return torch.stack([places, across * (sizes / width), down * (sizes / height)], dim=1)


def fits_32_bits(images: Tensor) -> bool:
    """Whether a kernel that counts bytes in 32 bits finds all images (N, C, H, W), zeros behind included."""
    count, channels, height, width = images.shape
    return count * channels * (height + EDGE) * (width + EDGE) < 1 << 31


def bilinear(
    w: Writer,
    source: Int,
    places: Sequence[Vector],
    limits: Sequence[Vector],
    row_bytes: Int,
    corner: Int | IntVector,
) -> Vector:
    """The values at places (x, y), by lane, between four pixels; outside of the image its nearest pixel.

    ``source``: pointer to uint8; ``limits``: the last column and row; ``row_bytes``: of an image with its
    zeros; ``corner``: the offset of an image's first pixel, for all lanes or by lane.
    """
    wholes, fractions = [], []
    for place, limit in zip(places, limits, strict=True):
        clipped = w.clip(place, 0.0, limit)
        below = w.floor(clipped)
        wholes.append(w.to_int(below))
        fractions.append(clipped - below)
    offsets = wholes[1] * row_bytes + wholes[0] + corner
    rows = []
    for start in (source, source + row_bytes):
        left, right = w.load_two_bytes(start, offsets)
        rows.append(left + fractions[0] * (right - left))
    return rows[0] + fractions[1] * (rows[1] - rows[0])


@compiled()
def warp_images(w: Writer) -> None:
    """Picks an image, maps it and normalises it; the batch tile is the image's place in the batch.

    Arguments: images (N, C, H + 3, W + 3) with zeros behind, uint8; positions (B,), int64; lines (B, 3, 2),
    as `PaddedImages.prepare_maps` gives them; images (B, stride); the two numbers factor and constant of a
    normalisation; C; H; W; the stride, at least C * H * W + `LANES`. Numbers are float32.
    """
    images, positions, lines, target, normal = (w.argument() for _ in range(5))
    channels, height, width, stride = (w.argument() for _ in range(4))
    full_width, full_height = width + EDGE, height + EDGE
    source = images + w.load_index(positions, w.batch_tile) * (channels * (full_width * full_height))
    start = w.batch_tile * stride
    numbers = [w.load_splat(lines, w.batch_tile * 6 + place) for place in range(6)]
    first, right, down = numbers[:2], numbers[2:4], numbers[4:]
    factor, constant = w.load_splat(normal), w.load_splat(normal, 1)
    limits = [w.to_float(width - 1), w.to_float(height - 1)]
    with w.loop(channels) as channel, w.loop(height) as y:
        line = [one + w.to_float(y) * by for one, by in zip(first, down, strict=True)]
        corner = channel * full_width * full_height
        row = start + (channel * height + y) * width
        with w.loop(width, step=LANES) as x:  # the next row overwrites what is too much
            across = w.to_float(w.iota(x))
            places = [one + across * by for one, by in zip(line, right, strict=True)]
            value = bilinear(w, source, places, limits, full_width, corner)
            w.store(value * factor + constant, target, row + x)
