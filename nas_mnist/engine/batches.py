"""The images of a step: picked, augmented and normalised, by torch."""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.normalize import Normalizer


class Batches(NamedTuple):
    """The batches of an epoch, on the device; of networks side by side, one after the other in a row."""

    order: Tensor  # (steps, images a step) int64: positions in the data set
    maps: Tensor | None  # (steps, images a step, rows, columns) float32, as the backend prepares them

    def at(self, step: Tensor) -> tuple[Tensor, Tensor | None]:
        """Positions (N,) and maps of one step; ``step`` is a tensor (1,), so that the device is not asked."""
        maps = None if self.maps is None else self.maps.index_select(0, step)[0]
        return self.order.index_select(0, step)[0], maps


class ImageLoader(Protocol):
    """Makes network input of a data set's images (N, C, H, W) uint8."""

    map_shape: ClassVar[tuple[int, int]]  # rows and columns of a prepared map

    def __init__(self, images: Tensor, normalize: Normalizer) -> None: ...

    def prepare_maps(self, maps: Tensor) -> Tensor:
        """Affine maps (N, 2, 3), as `affine_grid` takes them, in the form that a call takes."""

    def __call__(self, picked: Tensor, maps: Tensor | None) -> Tensor:
        """Network input (B, C, H, W) float32: images at positions (B,), warped by their prepared maps."""


class TorchImages:
    """The `ImageLoader` that does `affine_grid`'s arithmetic and `grid_sample`."""

    map_shape: ClassVar = (2, 3)

    def __init__(self, images: Tensor, normalize: Normalizer) -> None:
        """``images`` (N, C, H, W) uint8."""
        self.images, self.normalize = images, normalize

    def prepare_maps(self, maps: Tensor) -> Tensor:
        """The maps as they are."""
        return maps

    def __call__(self, picked: Tensor, maps: Tensor | None) -> Tensor:
        """Network input (B, C, H, W) float32: images at positions (B,), warped by their maps."""
        images = self.images[picked]
        return self.normalize(images if maps is None else warp(images.float(), maps))


def warp(images: Tensor, maps: Tensor) -> Tensor:
    """Images (N, C, H, W), floating point, warped by affine maps (N, 2, 3); bilinear.

    As in `affine_grid`, the pixel at (x, y), each from -1 to 1, is read at the map's product with (x, y, 1),
    and outside of the image at its nearest pixel.
    """
    height, width = images.shape[2:]
    x = _centres(width, images.device)
    y = _centres(height, images.device)[:, None]
    across, down, shift = maps[..., None, None].unbind(2)  # each (N, 2, 1, 1)
    # `affine_grid` computes this as a product of matrices, in three times the time.
    places = (shift + across * x + down * y).unbind(1)  # x and y, each (N, H, W)
    # Clamped to the outermost centres: as `padding_mode="border"`, which MPS lacks.
    inside = [one.clamp(1 / n - 1, 1 - 1 / n) for one, n in zip(places, (width, height), strict=True)]
    return F.grid_sample(images, torch.stack(inside, dim=3), align_corners=False)


def _centres(size: int, device: torch.device) -> Tensor:
    """Centres of the pixels along an edge that goes from -1 to 1."""
    return (torch.arange(size, device=device) * 2 + 1) / size - 1
