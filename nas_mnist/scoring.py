"""How a network is run on a device, and how its scores are judged."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .data import Images
from .fused import FusedNetwork, lending
from .gpu_engine import GpuNetwork
from .model import Network
from .stages import UnknownLayerError

CPU_BATCH, GPU_BATCH = 256, 2_000  # images a forward pass when scoring


@dataclass(frozen=True, slots=True)
class Normalizer:
    """Bytes to network input: ``(byte - mean) / std``."""

    mean: float  # of all training pixels, 0 to 255
    std: float

    @classmethod
    def of(cls, images: Tensor) -> Normalizer:
        """Measured on uint8 images (N, C, H, W)."""
        histogram = torch.bincount(images.flatten().cpu(), minlength=256).double()
        levels = torch.arange(256, dtype=torch.float64)
        mean = float((histogram * levels).sum() / histogram.sum())
        variance = float((histogram * (levels - mean) ** 2).sum() / histogram.sum())
        return cls(mean, max(math.sqrt(variance), 1.0))

    def __call__(self, images: Tensor) -> Tensor:
        """Network input (N, C, H, W) float32 of images with values from 0 to 255."""
        return (images.float() - self.mean) / self.std


@dataclass(frozen=True, slots=True)
class Score:
    """How a network does on some images."""

    loss: float  # mean cross-entropy, nats an image
    correct: int
    count: int

    @property
    def accuracy(self) -> float:
        """Share of images classified correctly, 0 to 1."""
        return self.correct / self.count


class Mistake(NamedTuple):
    """An image that was classified wrongly."""

    image: int  # its position in the data set
    label: int
    predicted: int
    confidence: float  # softmax of the predicted class, 0 to 1


@dataclass(frozen=True, slots=True)
class Judgement:
    """Which images a network gets wrong, and what it takes them for."""

    confusion: tuple[tuple[int, ...], ...]  # [label][predicted] images
    mistakes: tuple[Mistake, ...]  # in the order of the data set

    @classmethod
    def of(cls, scores: Tensor, labels: Tensor) -> Judgement:
        """Of class scores (N, classes) and labels (N,)."""
        scores, labels = scores.cpu().float(), labels.cpu()
        classes = scores.shape[1]
        confidence, predicted = scores.softmax(1).max(1)
        counts = torch.bincount(labels * classes + predicted, minlength=classes * classes)
        rows = counts.view(classes, classes).tolist()
        wrong = torch.nonzero(predicted != labels).flatten().tolist()
        mistakes = (
            Mistake(image, int(labels[image]), int(predicted[image]), float(confidence[image]))
            for image in wrong
        )
        return cls(tuple(map(tuple, rows)), tuple(mistakes))


def forward_on(
    model: Network, device: torch.device, gradients: Mapping[Tensor, Tensor] | None = None
) -> Callable[[Tensor], Tensor]:
    """The function that runs a network fast on a device, in float32.

    It takes normalised images and returns class scores, as the network does; it follows the network's mode,
    training or evaluation. ``gradients``: where a `FusedNetwork` or a `GpuNetwork` writes them.
    """
    if device.type == "cpu":
        return FusedNetwork(model, gradients)
    if device.type == "cuda":
        with contextlib.suppress(UnknownLayerError):
            return GpuNetwork(model, device, gradients)
    return model


@torch.inference_mode()
def predict(
    model: Network,
    images: Tensor,
    normalize: Normalizer,
    plain: bool = False,
) -> Tensor:
    """Class scores (N, classes) float32 of uint8 images (N, C, H, W) on the model's device.

    ``plain``: by torch's own modules.
    """
    model.eval()
    forward = model if plain else forward_on(model, images.device)
    parts = images.split(CPU_BATCH if images.device.type == "cpu" else GPU_BATCH)
    with lending(forward):
        return torch.cat([forward(normalize(part)) for part in parts])


def evaluate(
    model: Network,
    data: Images,
    normalize: Normalizer,
    plain: bool = False,
) -> Score:
    """Cross-entropy and correct predictions of ``model`` on ``data``; the rest as in `predict`."""
    scores = predict(model, data.images, normalize, plain)
    loss = F.cross_entropy(scores, data.labels)
    correct = (scores.argmax(1) == data.labels).sum()
    return Score(float(loss), int(correct), len(data))
