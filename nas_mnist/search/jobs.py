"""What worker processes do: search, or train one architecture with several seeds.

Both are plain data, so that they can be sent to a new process, and import torch only there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.process_pool import Desk, run_workers
from ..models.architecture import Architecture
from ..models.cost import BYTES_PER_VALUE, Budget, Cost
from ..recipes.recipe import Recipe
from ..space.space import SearchSpace

if TYPE_CHECKING:
    from ..data.dataset import DataSet, Images
    from ..training.final import Run
    from ..training.loop import EpochResult
    from ..training.teaching import Teacher


TOGETHER = 32  # seeds that CUDA trains at once, at most
TOGETHER_BYTES = 8e9  # that their maps and gradients may take, at most


def begin(desk: Desk, dataset: str, data_dir: Path | None, device: str) -> tuple[Images, Images]:
    """Take the desk's threads; the images that train and those that choose, on the device."""
    import torch

    from ..data.dataset import load

    torch.set_num_threads(desk.threads)
    learn, choose = load(dataset, data_dir).split()
    return learn.to(torch.device(device)), choose.to(torch.device(device))


@dataclass(frozen=True)
class SearchTask:
    """Train candidates of a study up to a total.

    Sends ``candidate`` (trial number, `Cost`), ``epoch`` (trial number, `EpochResult`) and ``ended``
    (`TrialRow`).
    """

    storage: str
    study: str
    total: int  # candidates that count
    space: SearchSpace
    budget: Budget
    recipe: Recipe
    dataset: str
    data_dir: Path | None
    device: str  # cpu, cuda or mps
    seed: int
    timeout: float | None  # seconds
    vary_recipe: bool  # draw a recipe of its own for every candidate, around this one
    against: str | None = None  # as in `Objective`
    images: int | None = None  # to train on, an epoch; None: all but those that choose

    def __call__(self, desk: Desk) -> None:
        """Search until there is no further job."""
        import torch

        from ..report.notes import picture_trial
        from ..study.objective import Objective, Watcher
        from ..study.results import trial_row
        from ..study.storage import artifact_folder, losing
        from ..study.study import load_study, search

        learn, choose = begin(desk, self.dataset, self.data_dir, self.device)
        learn = learn if self.images is None else learn.sample(self.images)

        def epoch(trial: int, result: EpochResult) -> None:
            torch.set_num_threads(desk.share())  # more where another worker waits for this one
            desk.send("epoch", trial, result)

        def candidate(trial: int, cost: Cost) -> None:
            torch.set_num_threads(desk.share())
            desk.send("candidate", trial, cost)

        watcher = Watcher(
            candidate,
            epoch,
            partial(picture_trial, artifacts=artifact_folder(self.storage)),
        )
        objective = Objective(
            *(self.space, self.budget, self.recipe, learn, choose, self.seed, watcher, self.total),
            self.vary_recipe,
            self.against,
        )
        with losing(self.storage):
            search(
                load_study(self.storage, self.study),
                objective,
                self.total,
                seed=f"{self.seed}-{desk.number}",
                deadline=None if self.timeout is None else time.monotonic() + self.timeout,
                after_trial=lambda trial: desk.send("ended", trial_row(trial)),
                waiting=desk.idle,
            )


@dataclass(frozen=True)
class RetrainTask:
    """Train one architecture on all training images, once a seed; a job is one more seed.

    Sends ``epoch`` (seed, `EpochResult`) and ``done`` (the parts of a `Run`, the weights as numpy arrays).
    """

    architecture: Architecture
    recipe: Recipe
    seeds: Sequence[int]
    dataset: str
    data_dir: Path | None
    device: str
    last_only: bool  # score the test images after the last epoch only
    plain: bool = False  # train with torch's own modules in float32
    teacher: Teacher | None = None  # that the recipe names

    def __call__(self, desk: Desk) -> None:
        """Train until there is no further job."""
        import torch

        from ..data.dataset import load

        torch.set_num_threads(desk.threads)
        data = load(self.dataset, self.data_dir)
        while (job := desk.claim()) is not None:
            seed = self.seeds[job]
            (run,) = self.retrain([seed], data, partial(desk.send, "epoch"))
            weights = {name: tensor.numpy() for name, tensor in run.model.state_dict().items()}
            desk.send("done", seed, run.epochs, weights, run.normalizer, run.judgement)

    @property
    def at_once(self) -> int:
        """Seeds that one process trains at once."""
        if self.device != "cuda" or self.plain:
            return 1
        numbers = sum(prod(layer.out_shape) for layer in self.architecture.layers)  # of an image's maps
        each = 2 * BYTES_PER_VALUE * numbers * self.recipe.batch_size
        return max(1, min(TOGETHER, int(TOGETHER_BYTES / each)))

    def retrain(
        self, seeds: Sequence[int], data: DataSet, on_epoch: Callable[[int, EpochResult], None]
    ) -> list[Run]:
        """Train with some seeds at once, in this process."""
        import torch

        from ..training.final import retrain

        return retrain(
            *(self.architecture, self.recipe, data),
            seeds=seeds,
            device=torch.device(self.device),
            last_only=self.last_only,
            plain=self.plain,
            teacher=self.teacher,
            on_epoch=on_epoch,
        )


class Final(NamedTuple):
    """One training of `FinalsTask`."""

    name: str  # for people
    key: str  # of the candidate
    architecture: Architecture
    recipe: Recipe
    seed: int
    teacher: Teacher | None = None  # that the recipe names


@dataclass(frozen=True)
class FinalsTask:
    """Train candidates again on the images that train, and score them on those held out; a job each.

    Sends ``epoch`` (the job's name, `EpochResult`) and ``score`` (key, seed, accuracy from 0 to 1; 0 for a
    training that failed).
    """

    jobs: Sequence[Final]
    dataset: str
    data_dir: Path | None
    device: str
    images: int | None = None  # to train on, an epoch; None: all but those that choose

    def __call__(self, desk: Desk) -> None:
        """Train until there is no further job."""
        import torch

        from ..models.network import build
        from ..training.loop import TrainingError, train

        learn, choose = begin(desk, self.dataset, self.data_dir, self.device)
        learn = learn if self.images is None else learn.sample(self.images)
        while (job := desk.claim()) is not None:
            name, key, architecture, recipe, seed, teacher = self.jobs[job]
            model, accuracy = build(architecture, seed).to(learn.images.device), 0.0
            taught: Any = {"teacher": teacher and teacher.network(learn.images.device)}
            try:
                for result in train(model, learn, recipe, seed=seed, score_on=choose, scored=(), **taught):
                    desk.send("epoch", name, result)
                    torch.set_num_threads(desk.share())  # more where another worker has nothing left to do
                    accuracy = result.score.accuracy if result.score else 0.0
            except TrainingError:
                accuracy = 0.0
            desk.send("score", key, seed, accuracy)


def retrain_seeds(
    task: RetrainTask,
    data: DataSet,
    workers: int,
    on_epoch: Callable[[int, EpochResult], None],
    on_run: Callable[[Run], None],
) -> None:
    """Train a task's seeds by that many processes at once; one: by this process.

    With CUDA one process trains up to `TOGETHER` seeds at once, as one network. ``data`` is the task's data
    set; ``on_epoch`` hears of every seed's epochs, ``on_run`` of every run that is done. Raises what
    `retrain.retrain` raises.
    """
    import torch

    from ..models.network import Network
    from ..training.final import Run

    def done(seed: int, epochs: Sequence[EpochResult], weights: dict[str, Any], *rest: Any) -> None:
        model = Network(task.architecture)
        model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
        on_run(Run(seed, tuple(epochs), model.eval(), *rest))

    if min(workers, len(task.seeds)) == 1:
        at_once = task.at_once
        parts = [task.seeds[first : first + at_once] for first in range(0, len(task.seeds), at_once)]
        for part in parts:
            for run in task.retrain(part, data, on_epoch):
                on_run(run)
        return
    run_workers(task, workers, len(task.seeds), {"epoch": on_epoch, "done": done})
