"""Random affine maps that augment images."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..recipes.recipe import Augmentation


def draw_affine_maps(augmentation: Augmentation, count: int, generator: torch.Generator) -> Tensor:
    """Random affine maps (count, 2, 3) float32 as `affine_grid` takes them, on the generator's device.

    The pixel at (x, y), each from -1 to 1, is read at the map's product with (x, y, 1). Every image has
    amounts of rotation, scale, shear and shift of its own, uniform between minus and plus the recipe's.
    """
    amounts = torch.rand((5, count), generator=generator, device=generator.device) * 2 - 1  # in [-1, 1)
    angle = amounts[0] * math.radians(augmentation.rotate)
    slant = torch.tan(amounts[1] * math.radians(augmentation.shear))
    scale = 1 + amounts[2] * augmentation.scale
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    right, down = amounts[3:] * (2 * augmentation.translate)
    rows = cos, cos * slant - sin, right, sin, sin * slant + cos, down
    return torch.stack(rows, dim=1).view(-1, 2, 3)
