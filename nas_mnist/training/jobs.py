"""The trainings that worker processes do: one architecture over seeds, or candidates on a search's images.

Both jobs are plain data, so that they can be sent to a new process, and import torch only there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.process_pool import WorkerContext, run_workers
from ..models.architecture import Architecture
from ..models.cost import BYTES_PER_VALUE
from ..recipes.recipe import Recipe

if TYPE_CHECKING:
    from ..core.defaults import Engine
    from ..data.dataset import DataSet, Images
    from .final import Run
    from .loop import EpochResult


MAX_SEEDS_TOGETHER = 32  # that CUDA trains at once
MAX_BYTES_TOGETHER = 8e9  # of their feature maps and gradients


class Source(NamedTuple):
    """Where a worker finds its images and on which device it trains."""

    dataset: str  # a name that `data.dataset.load` takes
    data_dir: Path | None
    device: str  # cpu, cuda or mps
    engine: Engine | None = None  # None: see `engine.backend.create_backend`


def load_split(context: WorkerContext, source: Source) -> tuple[Images, Images]:
    """The images for training and for validation on the source's device; sets the worker's threads."""
    import torch

    from ..data.dataset import load

    torch.set_num_threads(context.threads)
    train_data, val_data = load(source.dataset, source.data_dir).split()
    device = torch.device(source.device)
    return train_data.to(device), val_data.to(device)


@dataclass(frozen=True)
class RetrainJob:
    """Train one architecture on all training images; a job is one more seed.

    Sends ``epoch`` (seed, `EpochResult`) and ``done`` (the parts of a `Run`, with the weights as numpy
    arrays).
    """

    architecture: Architecture
    recipe: Recipe
    seeds: Sequence[int]
    source: Source
    last_only: bool  # score the test images after the last epoch only

    def __call__(self, context: WorkerContext) -> None:
        """Train until no job is left."""
        import torch

        from ..data.dataset import load

        torch.set_num_threads(context.threads)
        data = load(self.source.dataset, self.source.data_dir)
        while (job := context.next_job()) is not None:
            (run,) = self.retrain([self.seeds[job]], data, partial(context.send, "epoch"))
            weights = {name: tensor.numpy() for name, tensor in run.model.state_dict().items()}
            context.send("done", run.seed, run.epochs, weights, run.normalizer, run.evaluation)

    @property
    def seeds_at_once(self) -> int:
        """Seeds that one process trains at once: several on CUDA, as one network of as many copies."""
        if self.source.device != "cuda" or self.source.engine == "torch":
            return 1
        values = sum(prod(layer.out_shape) for layer in self.architecture.layers)  # feature maps of an image
        bytes_per_seed = 2 * BYTES_PER_VALUE * values * self.recipe.batch_size
        return max(1, min(MAX_SEEDS_TOGETHER, int(MAX_BYTES_TOGETHER / bytes_per_seed)))

    def retrain(
        self, seeds: Sequence[int], data: DataSet, on_epoch: Callable[[int, EpochResult], None]
    ) -> list[Run]:
        """Train some of the seeds at once, in this process."""
        import torch

        from .final import retrain

        return retrain(
            self.architecture,
            self.recipe,
            data,
            seeds=seeds,
            device=torch.device(self.source.device),
            last_only=self.last_only,
            engine=self.source.engine,
            on_epoch=on_epoch,
        )


def retrain_seeds(
    job: RetrainJob,
    data: DataSet,
    workers: int,
    on_epoch: Callable[[int, EpochResult], None],
    on_run: Callable[[Run], None],
) -> None:
    """Train a job's seeds in ``workers`` processes at once; with one worker in this process.

    On CUDA one process trains up to `MAX_SEEDS_TOGETHER` seeds at once. ``data`` is the job's data set.
    ``on_epoch`` is called after every epoch of every seed, ``on_run`` with every run that is done. Raises
    what `final.retrain` raises.
    """
    import torch

    from ..models.network import Network
    from .final import Run

    def rebuild(seed: int, epochs: Sequence[EpochResult], weights: dict[str, Any], *parts: Any) -> None:
        model = Network(job.architecture)
        model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
        on_run(Run(seed, tuple(epochs), model.eval(), *parts))

    if min(workers, len(job.seeds)) == 1:
        size = job.seeds_at_once
        for first in range(0, len(job.seeds), size):
            for run in job.retrain(job.seeds[first : first + size], data, on_epoch):
                on_run(run)
        return
    run_workers(job, workers, len(job.seeds), {"epoch": on_epoch, "done": rebuild})


class Validation(NamedTuple):
    """One training of a `ValidateJob`."""

    name: str  # for people
    key: str  # of the candidate
    architecture: Architecture
    recipe: Recipe
    seed: int


@dataclass(frozen=True)
class ValidateJob:
    """Train candidates on the training split and score them on the validation split; a job each.

    Sends ``epoch`` (the training's name, `EpochResult`) and ``score``: key, seed, accuracy (0 to 1), and the
    losses of the validation images, (N,) float32. A training that failed has accuracy 0 and no losses.
    """

    trainings: Sequence[Validation]
    source: Source
    images: int | None = None  # of the training split that are used; None: all

    def __call__(self, context: WorkerContext) -> None:
        """Train until no job is left."""
        import torch
        from torch.nn import functional as F

        from ..data.normalize import Normalizer
        from ..models.network import build
        from .evaluate import predict
        from .loop import TrainingError, device_failure, train

        train_data, val_data = load_split(context, self.source)
        train_data = train_data if self.images is None else train_data.sample(self.images)
        normalizer, engine = Normalizer.of(train_data.images), self.source.engine
        while (job := context.next_job()) is not None:
            name, key, architecture, recipe, seed = self.trainings[job]
            model, accuracy, losses = build(architecture, seed).to(train_data.images.device), 0.0, None
            try:
                for result in train(
                    model,
                    train_data,
                    recipe,
                    seed=seed,
                    score_on=val_data,
                    eval_epochs=(),
                    engine=engine,
                ):
                    context.send("epoch", name, result)
                    torch.set_num_threads(context.available_threads())
                    accuracy = result.score.accuracy if result.score else 0.0
                scores = predict(model, val_data.images, normalizer, engine=engine)
                losses = F.cross_entropy(scores, val_data.labels, reduction="none").cpu().numpy()
            except (TrainingError, RuntimeError, MemoryError) as error:  # too large for the device
                if not isinstance(error, TrainingError) and device_failure(error) is None:
                    raise
                accuracy, losses = 0.0, None
            context.send("score", key, seed, accuracy, losses)
