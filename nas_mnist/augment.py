"""Random affine maps for a whole batch at once, on the device where the batch lives."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .recipe import Augmentation


def affine(images: Tensor, how: Augmentation, *generators: torch.Generator) -> Tensor:
    """Rotate, scale, shear and shift every image by its own random amount, bilinear, zeros from outside.

    Takes and returns floating point images (N, C, H, W) whose background is 0. Each of the ``generators``,
    which live on the device of the images, draws for as many images, the first for those that come first.
    All amounts are uniform between minus and plus what ``how`` names.
    """
    count, _, height, width = images.shape
    shape, device = (5, count // len(generators), 1, 1), images.device
    drawn = [torch.rand(shape, generator=generator, device=device) for generator in generators]
    amounts = torch.cat(drawn, dim=1) * 2 - 1  # (5, N, 1, 1) in [-1, 1)
    angle = amounts[0] * math.radians(how.rotate)
    slant = torch.tan(amounts[1] * math.radians(how.shear))
    size = 1 + amounts[2] * how.scale
    cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
    shift_x, shift_y = amounts[3:] * (2 * how.translate)  # the grid is 2 wide
    x = _centres(width, device)
    y = _centres(height, device)[:, None]
    # Output pixels to input pixels, what `affine_grid` computes as a product of matrices in three times
    # the time; each (N, H, W).
    grid_x = shift_x + cos * x + (cos * slant - sin) * y
    grid_y = shift_y + sin * x + (sin * slant + cos) * y
    return F.grid_sample(images, torch.stack((grid_x, grid_y), dim=3), align_corners=False)


def _centres(size: int, device: torch.device) -> Tensor:
    """Where the centres of pixels lie along an edge that goes from -1 to 1."""
    return (torch.arange(size, device=device) * 2 + 1) / size - 1
