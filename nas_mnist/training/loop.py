"""Training: a generator of epoch results, which knows neither Optuna nor the console.

The caller iterates, and may report, prune or stop after every epoch. Images stay on the device as bytes, and
the host waits for the device once an epoch.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from ..core.defaults import Engine
from ..core.errors import InputError, NoResultError
from ..data.dataset import Images
from ..engine.backend import resolve_engine
from ..models.network import Network, stack_models, unstack_models
from ..recipes.recipe import Recipe
from .evaluate import Score, Scorer
from .step import TrainStep


class TrainingError(NoResultError):
    """A failure that training may legitimately have; the message is its reason."""


_NO_MEMORY = ("can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED")  # CPU, MPS, cuBLAS
_NO_DEVICE = ("CUBLAS_STATUS_", "CUDNN_STATUS_")


def device_failure(error: RuntimeError | MemoryError) -> str | None:
    """The reason if an error of torch's is a failure of the device, else None."""
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
    learning_rate: float  # of the newest step
    seconds: float  # of training, without scoring; of networks trained together, an equal share
    images: int  # trained on
    score: Score | None  # of the network so far (its averaged weights if the recipe averages)


def train(
    model: Network,
    data: Images,
    recipe: Recipe,
    *,
    seed: int,
    score_on: Images | None = None,
    eval_epochs: Container[int] | None = None,
    engine: Engine | None = None,
) -> Iterator[EpochResult]:
    """Train ``model`` on ``data``, both on one device; yields one result an epoch.

    ``seed`` decides the order of images, augmentation and dropout (torch's global generator is seeded).
    The last epoch and those in ``eval_epochs`` (None: every epoch) are scored on ``score_on``. With the last
    result the model holds the weights that were scored: the averaged ones if the recipe averages.

    ``engine``: ``"auto"`` trains by our kernels if there are some, ``"torch"`` by torch's modules; None: as
    the environment variable NAS_MNIST_ENGINE says, else ``"auto"``. Warns if ``"auto"`` has to do without
    kernels because llvmlite cannot be loaded.

    Raises `TrainingError` when the loss is not finite, or the device fails or is out of memory, and
    `InputError` for fewer images than one batch, for batches of one image with batch normalisation, and for
    an unknown engine.
    """
    for (result,) in train_together(
        *([model], data, recipe), seeds=[seed], score_on=score_on, eval_epochs=eval_epochs, engine=engine
    ):
        yield result


def train_together(
    models: Sequence[Network],
    data: Images,
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    score_on: Images | None = None,
    eval_epochs: Container[int] | None = None,
    engine: Engine | None = None,
) -> Iterator[list[EpochResult]]:
    """Train networks of one architecture, a seed each, side by side as one network; otherwise as `train`.

    This is for CUDA: one network of this size leaves the device mostly idle, and most kernels of a step do
    the work of all networks. Yields the results of all networks after every epoch. Losses are those of
    separate trainings but for rounding and for dropout, which draws from one generator for all.
    """
    try:
        yield from _train(models, data, recipe, seeds, score_on, eval_epochs, engine)
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
    eval_epochs: Container[int] | None,
    engine: Engine | None,
) -> Iterator[list[EpochResult]]:
    recipe = recipe.scaled_to(len(data))
    check_batches(data, recipe, models[0].architecture.normalises)
    device = data.images.device
    engine, note = resolve_engine(engine, device)
    if note:
        warnings.warn(note, stacklevel=2)
    model = stack_models(models)
    torch.manual_seed(seeds[0])  # dropout draws from the global generator
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    step = TrainStep(model, data, recipe, generators, engine)
    scorer = Scorer(step.result, device, engine)
    together = scorer.together or len(models) == 1
    scorers = [scorer] if together else [Scorer(one, device, engine) for one in models]
    for epoch in range(1, recipe.epochs + 1):
        results = _train_epoch(step, epoch)
        last = epoch == recipe.epochs
        if last or not together:
            unstack_models(step.result, models)
        if score_on is not None and (last or eval_epochs is None or epoch in eval_epochs):
            scores = [score for one in scorers for score in one.evaluate(score_on, step.normalize)]
            results = [replace(result, score=score) for result, score in zip(results, scores, strict=True)]
        yield results


def _train_epoch(step: TrainStep, epoch: int) -> list[EpochResult]:
    """Train for one epoch; the results of all networks, without scores."""
    started = time.perf_counter()
    step.begin_epoch()
    step.run(step.steps)
    losses = step.loss.tolist()  # waits for the device
    seconds = (time.perf_counter() - started) / len(losses)
    if not all(map(math.isfinite, losses)):
        raise TrainingError(f"loss not finite in epoch {epoch}")
    images, lr = step.steps * step.recipe.batch_size, step.lr
    return [EpochResult(epoch, loss / step.steps, lr, seconds, images, None) for loss in losses]


def check_batches(data: Images, recipe: Recipe, normalises: bool) -> None:
    """Raise `InputError` if the images do not fill one batch, or a batch has one image to normalise."""
    batch_size = recipe.scaled_to(len(data)).batch_size
    if len(data) < batch_size:
        raise InputError(f"recipe: batch_size {batch_size} is more than the {len(data):,} images")
    if batch_size == 1 and normalises:
        raise InputError("recipe: batch_size 1 leaves batch normalisation no variance (use at least 2)")
