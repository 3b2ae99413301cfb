"""Random affine maps for a whole batch at once, on the device where the batch lives."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .recipe import Augmentation


def affine(images: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Rotate, scale, shear and shift every image by its own random amount, bilinear, zeros from outside.

    Takes and returns floating point images (N, C, H, W) whose background is 0; ``generator`` lives on
    the device of the images. All amounts are uniform between minus and plus what ``how`` names.
    """
    count = images.shape[0]
    amounts = torch.rand((5, count), generator=generator, device=images.device) * 2 - 1  # (5, N) in [-1, 1)
    angle = amounts[0] * math.radians(how.rotate)
    slant = torch.tan(amounts[1] * math.radians(how.shear))
    size = 1 + amounts[2] * how.scale
    cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
    shift_x, shift_y = amounts[3:] * (2 * how.translate)  # the grid is 2 wide
    rows = [cos, cos * slant - sin, shift_x, sin, sin * slant + cos, shift_y]
    theta = torch.stack(rows, dim=1).view(count, 2, 3).to(images.dtype)  # output grid -> input grid
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)  # (N, H, W, 2)
    return F.grid_sample(images, grid, align_corners=False)
