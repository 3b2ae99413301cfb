"""Class scores of images by a network, and what follows from them: loss, accuracy, mistakes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.defaults import Engine
from ..data.dataset import Images
from ..data.normalize import Normalizer
from ..engine.backend import create_backend
from ..models.network import Network


@dataclass(frozen=True, slots=True)
class Score:
    """Loss and accuracy of a network on some images."""

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
class Evaluation:
    """Confusion matrix and mistakes of a network on some images."""

    confusion: tuple[tuple[int, ...], ...]  # [label][predicted] images
    mistakes: tuple[Mistake, ...]  # in the order of the data set

    @classmethod
    def of(cls, scores: Tensor, labels: Tensor) -> Evaluation:
        """From class scores (N, classes) and labels (N,)."""
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


class Scorer:
    """Scores images by a network with the weights that it has at each call."""

    def __init__(self, model: Network, device: torch.device, engine: Engine | None = None) -> None:
        """Networks side by side only if the backend evaluates them together, as `together` says."""
        self.model, self.backend = model, create_backend(model, device, engine)

    @property
    def together(self) -> bool:
        """Whether networks side by side are evaluated at once."""
        return self.backend.evaluates_together

    @torch.inference_mode()
    def predict(self, images: Tensor, normalize: Normalizer) -> Tensor:
        """Class scores (copies, N, classes) float32 of uint8 images (N, C, H, W) on the model's device."""
        self.model.eval()
        with self.backend.reserve_threads():
            batches = images.split(self.backend.max_batch)
            return torch.cat([self.backend.scores(normalize(batch)) for batch in batches], dim=1)

    def evaluate(self, data: Images, normalize: Normalizer) -> list[Score]:
        """The score of every network."""
        found = []
        for scores in self.predict(data.images, normalize):
            loss = F.cross_entropy(scores, data.labels)
            correct = (scores.argmax(1) == data.labels).sum()
            found.append(Score(float(loss), int(correct), len(data)))
        return found


def predict(model: Network, images: Tensor, normalize: Normalizer, engine: Engine | None = None) -> Tensor:
    """Class scores (N, classes) float32 of uint8 images (N, C, H, W) by one network, on its device."""
    return Scorer(model, images.device, engine).predict(images, normalize)[0]


def evaluate(model: Network, data: Images, normalize: Normalizer, engine: Engine | None = None) -> Score:
    """The score of one network on ``data``, both on one device."""
    return Scorer(model, data.images.device, engine).evaluate(data, normalize)[0]
