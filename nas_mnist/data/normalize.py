"""From the bytes of an image to the numbers that a network takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Normalizer:
    """Network input of bytes: ``(byte - mean) / std``."""

    mean: float  # of all training pixels, 0 to 255
    std: float  # the same scale; at least 1

    @classmethod
    def of(cls, images: Tensor) -> Normalizer:
        """Mean and standard deviation of uint8 images (N, C, H, W)."""
        histogram = torch.bincount(images.flatten().cpu(), minlength=256).double()
        levels = torch.arange(256, dtype=torch.float64)
        mean = float((histogram * levels).sum() / histogram.sum())
        variance = float((histogram * (levels - mean) ** 2).sum() / histogram.sum())
        return cls(mean, max(math.sqrt(variance), 1.0))

    def __call__(self, images: Tensor) -> Tensor:
        """Network input (N, C, H, W) float32 of images (N, C, H, W) with values from 0 to 255."""
        return (images.float() - self.mean) / self.std
