"""Images and affine maps in the form of the kernels that warp them (`kernels.affine`)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.normalize import Normalizer
from .kernels.affine import EDGE


class PaddedImages:
    """A data set's images with zeros around, and the factor and constant that normalise them."""

    map_shape: ClassVar = (3, 2)

    def __init__(self, images: Tensor, normalize: Normalizer) -> None:
        """``images`` (N, C, H, W) uint8."""
        before, after = EDGE
        self.shape = images.shape[1:]
        self.images = F.pad(images, (before, after) * 2).contiguous()
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
    """Whether a kernel that counts bytes in 32 bits finds all images (N, C, H, W), zeros around included."""
    count, channels, height, width = images.shape
    return count * channels * (height + sum(EDGE)) * (width + sum(EDGE)) < 1 << 31
