"""Random affine maps for images, on the device where they live."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..recipes.recipe import Augmentation


def draw(how: Augmentation, count: int, generator: torch.Generator) -> Tensor:
    """Random affine maps (count, 2, 3) float32, on the generator's device, as `affine_grid` takes them.

    What is made at a place (x, y), from -1 to 1, is read at the map's product with (x, y, 1). An image is
    rotated, scaled, sheared and shifted by amounts of its own, uniform between minus and plus what ``how``
    names.
    """
    amounts = torch.rand((5, count), generator=generator, device=generator.device) * 2 - 1  # in [-1, 1)
    angle = amounts[0] * math.radians(how.rotate)
    slant = torch.tan(amounts[1] * math.radians(how.shear))
    scale = 1 + amounts[2] * how.scale
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    right, down = amounts[3:] * (2 * how.translate)
    rows = cos, cos * slant - sin, right, sin, sin * slant + cos, down
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def warp(images: Tensor, maps: Tensor) -> Tensor:
    """Images (N, C, H, W), floating point, mapped as `draw` says, bilinear, zeros from outside."""
    height, width = images.shape[2:]
    x = _centres(width, images.device)
    y = _centres(height, images.device)[:, None]
    across, down, shift = maps[..., None, None].unbind(2)  # each (N, 2, 1, 1)
    # What `affine_grid` computes as a product of matrices in three times the time.
    places = shift + across * x + down * y  # (N, 2, H, W)
    return F.grid_sample(images, places.permute(0, 2, 3, 1), align_corners=False)


def _centres(size: int, device: torch.device) -> Tensor:
    """Where the centres of pixels lie along an edge that goes from -1 to 1."""
    return (torch.arange(size, device=device) * 2 + 1) / size - 1
