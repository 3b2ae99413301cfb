"""Training: a generator of epoch results. Knows neither Optuna nor the console.

Whoever iterates decides whether to report, to stop or to draw a bar. Images stay on the device as bytes;
a batch is gathered, augmented and normalised there, and the host waits for the device once an epoch.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .augment import affine
from .data import Images
from .device import keep_memory, number_type
from .errors import InputError, NoResultError
from .fused import FusedNetwork
from .model import Network
from .recipe import Recipe

SCORE_BATCH = 1000  # images a forward pass when scoring


class TrainingError(NoResultError):
    """A failure that training may legitimately have; the message is its reason."""


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says with this error that the device has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


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


@dataclass(frozen=True, slots=True)
class EpochResult:
    """One finished epoch."""

    epoch: int  # 1 is the first
    train_loss: float  # mean over the epoch's batches, nats an image
    learning_rate: float  # at the epoch's last step
    seconds: float  # of training, scoring not included
    images: int  # trained on in this epoch
    score: Score | None  # of the result so far (averaged weights where the recipe averages)


def train(
    model: Network,
    data: Images,
    recipe: Recipe,
    *,
    seed: int,
    score_on: Images | None = None,
    last_only: bool = False,
) -> Iterator[EpochResult]:
    """Train ``model`` on ``data``, both on one device; yields one result an epoch.

    ``seed`` decides the order of images, augmentation and dropout (torch's global generator is seeded).
    Every epoch is scored on ``score_on``, or the last one only: the last in float32, those before it in the
    device's `number_type`. With the last result the model holds the
    weights that were scored: the running average where the recipe keeps one. Raises `TrainingError` when
    the loss is not finite, and `InputError` for fewer images than one batch.
    """
    check_enough(data, recipe)
    device = data.images.device
    keep_memory()
    torch.manual_seed(seed)  # dropout draws from the global generator
    generator = torch.Generator(device).manual_seed(seed)
    normalize = Normalizer.of(data.images)
    model.to(memory_format=torch.channels_last)
    optimizer = _optimizer(model, recipe)
    forward, kind = _forward(model, device), number_type(device)
    average = copy.deepcopy(model) if recipe.average else None
    pairs = (_floats(average), _floats(model)) if average is not None else None
    steps = len(data) // recipe.batch_size  # an epoch
    step = 0
    for epoch in range(1, recipe.epochs + 1):
        started = time.perf_counter()
        model.train()
        total_loss = torch.zeros((), device=device)
        order = torch.randperm(len(data), generator=generator, device=device)
        for picked in order[: steps * recipe.batch_size].split(recipe.batch_size):
            rate = recipe.learning_rate * schedule(recipe, (step + 1) / (recipe.epochs * steps))
            for group in optimizer.param_groups:
                group["lr"] = rate
            images = data.images[picked].float()  # (B, C, H, W), 0 to 255
            if not recipe.augmentation.off:
                images = affine(images, recipe.augmentation, generator)
            images = normalize(images).to(kind, memory_format=torch.channels_last)
            loss = F.cross_entropy(
                forward(images), data.labels[picked], label_smoothing=recipe.label_smoothing
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            total_loss += loss.detach()
            if pairs is not None:
                torch._foreach_lerp_(*pairs, 1 - min(recipe.average, (1 + step) / (10 + step)))
        mean_loss = float(total_loss) / steps  # waits for the device
        seconds = time.perf_counter() - started
        if not math.isfinite(mean_loss):
            raise TrainingError(f"loss not finite in epoch {epoch}")
        result = model if average is None else average
        scored = score_on is not None and (epoch == recipe.epochs or not last_only)
        score_kind = torch.float32 if epoch == recipe.epochs else kind
        score = evaluate(result, score_on, normalize, score_kind) if scored and score_on is not None else None
        if epoch == recipe.epochs and average is not None:
            model.load_state_dict(average.state_dict())
        yield EpochResult(epoch, mean_loss, rate, seconds, steps * recipe.batch_size, score)


def check_enough(data: Images, recipe: Recipe) -> None:
    """Raise `InputError` where the images do not fill one batch."""
    if len(data) < recipe.batch_size:
        raise InputError(f"recipe: batch_size {recipe.batch_size} is more than the {len(data):,} images")


def schedule(recipe: Recipe, progress: float) -> float:
    """The share of the peak learning rate at ``progress`` (0 to 1) through all steps."""
    if progress < recipe.warmup:
        return progress / recipe.warmup
    done = (progress - recipe.warmup) / (1 - recipe.warmup)  # 0 to 1 after the warm-up
    if recipe.schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return 1 - done if recipe.schedule == "linear" else 1.0


@torch.inference_mode()
def predict(
    model: Network, images: Tensor, normalize: Normalizer, kind: torch.dtype = torch.float32
) -> Tensor:
    """Class scores (N, classes) float32 of uint8 images (N, C, H, W) on the model's device.

    The layers before the head compute in ``kind``, float32 or bfloat16.
    """
    model.eval()
    forward = _forward(model, images.device)
    return torch.cat(
        [
            forward(normalize(part).to(kind, memory_format=torch.channels_last))
            for part in images.split(SCORE_BATCH)
        ]
    )


def evaluate(model: Network, data: Images, normalize: Normalizer, kind: torch.dtype = torch.float32) -> Score:
    """Cross-entropy and correct predictions of ``model`` on ``data``; ``kind`` as in `predict`."""
    scores = predict(model, data.images, normalize, kind)
    loss = F.cross_entropy(scores, data.labels)
    correct = (scores.argmax(1) == data.labels).sum()
    return Score(float(loss), int(correct), len(data))


def _forward(model: Network, device: torch.device) -> Callable[[Tensor], Tensor]:
    """How a network runs fast on a device, in the number type of its input."""
    if device.type == "cpu":
        return FusedNetwork(model)

    def forward(images: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=images.dtype == torch.bfloat16):
            return model(images)  # type: ignore[no-any-return]

    return forward


def _optimizer(model: Network, recipe: Recipe) -> torch.optim.Optimizer:
    """Weight decay applies to convolution weights, not to biases and normalisation."""
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [
        {"params": weights, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(recipe.momentum, 0.999), fused=True)
    return torch.optim.SGD(
        groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True
    )


def _floats(model: Network) -> list[Tensor]:
    """All weights and normalisation statistics, detached."""
    return [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
