"""Random maps for a whole batch of images at once, on the device where the batch lives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .recipe import Augmentation

_BUMPS = 6  # along an edge, of which a bend is made: with 28 pixels, smooth within 4 or 5
_BUMP = 0.8  # their standard deviation, as a share of the distance between them


class Maps(NamedTuple):
    """Where every image of a batch is read, for every place of what is made of it.

    Places are (x, y), and images go from -1 to 1: what is made at a place is read at matrix times place,
    plus shift, plus bend.
    """

    shifts: Tensor  # (2, N)
    matrices: Tensor  # (2, 2, N)
    bends: Tensor | None  # (N, 2, H, W); None: none


def draw(
    how: Augmentation, count: int, size: Sequence[int], device: torch.device, *generators: torch.Generator
) -> Maps:
    """Random maps for ``count`` images of some height and width.

    An image is rotated, scaled, sheared and shifted by amounts of its own, uniform between minus and plus
    what ``how`` names, and bent by smooth random fields (elastic distortions: Simard et al. 2003,
    doi.org/10.1109/ICDAR.2003.1227801). Each of the ``generators`` draws for as many images, the first for
    those that come first.
    """
    each = count // len(generators)
    drawn = [torch.rand((5, each), generator=generator, device=device) for generator in generators]
    amounts = torch.cat(drawn, dim=1) * 2 - 1  # (5, N) in [-1, 1)
    angle = amounts[0] * math.radians(how.rotate)
    slant = torch.tan(amounts[1] * math.radians(how.shear))
    scale = 1 + amounts[2] * how.scale
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    matrices = torch.stack((cos, cos * slant - sin, sin, sin * slant + cos)).unflatten(0, (2, 2))
    shifts = amounts[3:] * (2 * how.translate)
    if not how.elastic:
        return Maps(shifts, matrices, None)
    shape = (each, 2, _BUMPS, _BUMPS)
    heights = torch.cat([torch.randn(shape, generator=one, device=device) for one in generators])
    down, right = (_bumps(length, device) for length in size)
    return Maps(shifts, matrices, down.T @ heights @ right * (2 * how.elastic))


def warp(images: Tensor, maps: Maps) -> Tensor:
    """Images (N, C, H, W), floating point, mapped as `draw` says, bilinear, zeros from outside."""
    height, width = images.shape[2:]
    x = _centres(width, images.device)
    y = _centres(height, images.device)[:, None]
    # What `affine_grid` computes as a product of matrices in three times the time; each (N, H, W).
    places = [
        shift[:, None, None] + row[0][:, None, None] * x + row[1][:, None, None] * y
        for shift, row in zip(maps.shifts, maps.matrices, strict=True)
    ]
    grid = torch.stack(places, dim=3)
    if maps.bends is not None:
        grid += maps.bends.permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, align_corners=False)


def _bumps(length: int, device: torch.device) -> Tensor:
    """Bumps along an edge, (_BUMPS, length): of Gaussians that overlap, their squares' sum one everywhere.

    So random heights of variance one make a smooth line of variance one.
    """
    apart = 2 / (_BUMPS - 1)
    centres = torch.arange(_BUMPS, device=device)[:, None] * apart - 1
    bumps = torch.exp(-((_centres(length, device) - centres) / (_BUMP * apart)).square() / 2)
    return bumps / bumps.square().sum(0).sqrt()


def _centres(size: int, device: torch.device) -> Tensor:
    """Where the centres of pixels lie along an edge that goes from -1 to 1."""
    return (torch.arange(size, device=device) * 2 + 1) / size - 1
