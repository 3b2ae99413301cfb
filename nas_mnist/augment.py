"""Random affine maps for a whole batch at once, on the device where the batch lives."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .recipe import Augmentation


def draw(
    how: Augmentation, count: int, device: torch.device, *generators: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random maps from places in the output to places in the input: shifts (2, N) and matrices (2, 2, N).

    Places are (x, y), and images go from -1 to 1. An image is rotated, scaled, sheared and shifted by
    amounts of its own, uniform between minus and plus what ``how`` names. Each of the ``generators`` draws
    for as many images, the first for those that come first.
    """
    shape = (5, count // len(generators))
    drawn = [torch.rand(shape, generator=generator, device=device) for generator in generators]
    amounts = torch.cat(drawn, dim=1) * 2 - 1  # (5, N) in [-1, 1)
    angle = amounts[0] * math.radians(how.rotate)
    slant = torch.tan(amounts[1] * math.radians(how.shear))
    size = 1 + amounts[2] * how.scale
    cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
    matrices = torch.stack((cos, cos * slant - sin, sin, sin * slant + cos)).unflatten(0, (2, 2))
    return amounts[3:] * (2 * how.translate), matrices


def affine(images: Tensor, shifts: Tensor, matrices: Tensor) -> Tensor:
    """Images (N, C, H, W), floating point, mapped as `draw` says, bilinear, zeros from outside."""
    height, width = images.shape[2:]
    x = _centres(width, images.device)
    y = _centres(height, images.device)[:, None]
    # What `affine_grid` computes as a product of matrices in three times the time; each (N, H, W).
    grid_x, grid_y = (
        shift[:, None, None] + row[0][:, None, None] * x + row[1][:, None, None] * y
        for shift, row in zip(shifts, matrices, strict=True)
    )
    return F.grid_sample(images, torch.stack((grid_x, grid_y), dim=3), align_corners=False)


def _centres(size: int, device: torch.device) -> Tensor:
    """Where the centres of pixels lie along an edge that goes from -1 to 1."""
    return (torch.arange(size, device=device) * 2 + 1) / size - 1
