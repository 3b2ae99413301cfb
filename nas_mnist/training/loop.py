"""Training: a generator of epoch results. Knows neither Optuna nor the console.

Whoever iterates decides whether to report, to stop or to draw a bar. Images stay on the device as bytes,
and the host waits for the device once an epoch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from ..core.errors import InputError, NoResultError
from ..data.dataset import Images
from ..models.network import Network, side_by_side, take_apart
from ..recipes.recipe import Recipe
from .evaluate import Score, Scorer
from .step import Step


class TrainingError(NoResultError):
    """A failure that training may legitimately have; the message is its reason."""


_NO_MEMORY = ("can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED")  # CPU, MPS, cuBLAS
_NO_DEVICE = ("CUBLAS_STATUS_", "CUDNN_STATUS_")


def device_failure(error: RuntimeError | MemoryError) -> str | None:
    """What torch says of the device with this error; None: nothing, the program is wrong."""
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in text for sign in _NO_MEMORY):
        return "out of memory"
    failed = isinstance(error, torch.AcceleratorError) or any(sign in text for sign in _NO_DEVICE)
    return "device failed" if failed else None


@dataclass(frozen=True, slots=True)
class EpochResult:
    """One finished epoch."""

    epoch: int  # 1 is the first
    train_loss: float  # mean over the epoch's batches, nats an image
    learning_rate: float  # at the newest step
    seconds: float  # of training since the result before, scoring not included; its share of a joint training
    images: int  # trained on
    score: Score | None  # of the result so far (averaged weights where the recipe averages)


def train(
    model: Network,
    data: Images,
    recipe: Recipe,
    *,
    seed: int,
    score_on: Images | None = None,
    scored: Container[int] | None = None,
    plain: bool = False,
    teacher: Network | None = None,
) -> Iterator[EpochResult]:
    """Train ``model`` on ``data``, both on one device; yields one result an epoch.

    ``plain`` trains with torch's own modules in float32: slower, to hold the fast ways against.
    ``teacher`` is what the recipe names, trained (`teaching`), on the same device.

    ``seed`` decides the order of images, augmentation and dropout (torch's global generator is seeded).
    Every epoch is scored on ``score_on``, or those of ``scored`` and the last. With the last result the model
    holds the weights that were scored: the running average where the recipe keeps one. Raises `TrainingError`
    when the loss is not finite, or the device fails or is out of memory, and `InputError` for fewer images
    than one batch.
    """
    together = train_together(
        *([model], data, recipe),
        seeds=[seed],
        score_on=score_on,
        scored=scored,
        plain=plain,
        teacher=teacher,
    )
    for (result,) in together:
        yield result


def train_together(
    models: Sequence[Network],
    data: Images,
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    score_on: Images | None = None,
    scored: Container[int] | None = None,
    plain: bool = False,
    teacher: Network | None = None,
) -> Iterator[list[EpochResult]]:
    """Train networks of one architecture, a seed each, as one network of their copies; as `train` does.

    This is for CUDA, where one network of this size leaves the device mostly idle: most kernels of a step
    then do the work of all. Yields their results after every epoch; losses are those of separate trainings
    but for rounding and for dropout, which draws from one generator for all.
    """
    try:
        yield from _train(models, data, recipe, seeds, score_on, scored, plain, teacher)
    except (RuntimeError, MemoryError) as error:
        reason = None if isinstance(error, NoResultError) else device_failure(error)
        if reason is None:
            raise
        raise TrainingError(reason) from None


def _train(
    models: Sequence[Network],
    data: Images,
    recipe: Recipe,
    seeds: Sequence[int],
    score_on: Images | None,
    scored: Container[int] | None,
    plain: bool,
    teacher: Network | None,
) -> Iterator[list[EpochResult]]:
    recipe = recipe.fitted(len(data))
    check_enough(data, recipe)
    device = data.images.device
    model = side_by_side(models)
    torch.manual_seed(seeds[0])  # dropout draws from the global generator
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    step = Step(model, data, recipe, generators, plain, teacher)
    scorer = Scorer(step.result, device, plain)
    scorers = [scorer] if scorer.together or len(models) == 1 else [Scorer(one, device) for one in models]
    for epoch in range(1, recipe.epochs + 1):
        results = _train_epoch(step, epoch)
        last = epoch == recipe.epochs
        if last or len(scorers) > 1:
            take_apart(step.result, models)
        if score_on is not None and (last or scored is None or epoch in scored):
            scores = [score for one in scorers for score in one.judge(score_on, step.normalize)]
            results = [replace(result, score=score) for result, score in zip(results, scores, strict=True)]
        yield results


def _train_epoch(step: Step, epoch: int) -> list[EpochResult]:
    """One epoch's results, by copy, without scores."""
    started = time.perf_counter()
    step.begin_epoch()
    step.run(step.steps)
    losses = step.loss.tolist()  # waits for the device
    seconds = (time.perf_counter() - started) / len(losses)
    if not all(map(math.isfinite, losses)):
        raise TrainingError(f"loss not finite in epoch {epoch}")
    images, rate = step.steps * step.recipe.batch_size, float(step.rates[step.done - 1])
    return [EpochResult(epoch, loss / step.steps, rate, seconds, images, None) for loss in losses]


def check_enough(data: Images, recipe: Recipe) -> None:
    """Raise `InputError` where the images do not fill one batch."""
    if len(data) < recipe.fitted(len(data)).batch_size:
        raise InputError(f"recipe: batch_size {recipe.batch_size} is more than the {len(data):,} images")
