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

from ..data.dataset import Images
from ..engine.cuda.launch import runs_on
from ..engine.cuda.network import GpuNetwork
from ..engine.fused import FusedNetwork, lending
from ..engine.stages import UnknownLayerError
from ..models.network import Network

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

    It takes normalised images and returns class scores, as the network does (of several side by side as
    `GpuNetwork` does, where it is one); it follows the network's mode, training or evaluation.
    ``gradients``: where a `FusedNetwork` or a `GpuNetwork` writes them.
    """
    if device.type == "cpu":
        return FusedNetwork(model, gradients)
    if runs_on(device):
        with contextlib.suppress(UnknownLayerError):
            return GpuNetwork(model, device, gradients)
    return model


class Scorer:
    """Scores images by a network as it is when asked, as often as it is asked."""

    def __init__(self, model: Network, device: torch.device, plain: bool = False) -> None:
        """``plain``: by torch's own modules.

        Several networks side by side can be scored where they have kernels (`together`).
        """
        self.model = model
        self.forward = model if plain else forward_on(model, device)

    @property
    def together(self) -> bool:
        """Whether networks side by side are scored at once."""
        return isinstance(self.forward, GpuNetwork)

    @torch.inference_mode()
    def predict(self, images: Tensor, normalize: Normalizer) -> Tensor:
        """Class scores (copies, N, classes) float32 of uint8 images (N, C, H, W) on the model's device."""
        self.model.eval()
        size = CPU_BATCH if images.device.type == "cpu" else GPU_BATCH
        if isinstance(self.forward, GpuNetwork):
            size = min(size, self.forward.batch)
        with lending(self.forward):
            parts = [self._scores(normalize(part)) for part in images.split(size)]
        return torch.cat(parts, dim=1)

    def _scores(self, images: Tensor) -> Tensor:
        """Those of normalised images that are few enough."""
        copies = self.model.copies
        everyones = images if copies == 1 else images.repeat(copies, 1, 1, 1)
        scores = self.forward(everyones)
        return scores.view(copies, -1, scores.shape[1])

    def judge(self, data: Images, normalize: Normalizer) -> list[Score]:
        """Cross-entropy and correct predictions of every network."""
        found = []
        for scores in self.predict(data.images, normalize):
            loss = F.cross_entropy(scores, data.labels)
            correct = (scores.argmax(1) == data.labels).sum()
            found.append(Score(float(loss), int(correct), len(data)))
        return found


def predict(model: Network, images: Tensor, normalize: Normalizer, plain: bool = False) -> Tensor:
    """Class scores (N, classes) of images (N, C, H, W) by one network; the rest as in `Scorer`."""
    return Scorer(model, images.device, plain).predict(images, normalize)[0]


def evaluate(model: Network, data: Images, normalize: Normalizer, plain: bool = False) -> Score:
    """Cross-entropy and correct predictions of one network."""
    return Scorer(model, data.images.device, plain).judge(data, normalize)[0]
