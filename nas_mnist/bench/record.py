"""Recording of learning curves: random candidates of a space, trained to the last epoch without pruning."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import InputError, NoResultError
from ..core.process_pool import WorkerContext, run_workers
from ..models.architecture import Architecture
from ..models.cost import Budget, cost_of
from ..recipes.recipe import Recipe
from ..space.sampling import Params, RandomSampler
from ..space.space import SearchSpace
from ..training.jobs import Source, load_split
from .curves import Curve, CurvesMetadata, read_curves, write_curves

if TYPE_CHECKING:
    from ..data.dataset import Images

MAX_MISSES = 20_000  # draws in a row without a new candidate, after which a space counts as exhausted


def random_candidates(space: SearchSpace, budget: Budget, seed: int) -> Iterator[tuple[Params, Architecture]]:
    """Distinct random candidates within a budget, in an order that the seed decides.

    Ends after `MAX_MISSES` draws in a row without a new one.
    """
    rng, seen, missed = random.Random(seed), set(), 0
    while missed < MAX_MISSES:
        sampler = RandomSampler(rng)
        missed += 1
        try:
            architecture = space.draw(sampler, budget)
        except InputError:
            continue
        if architecture.key not in seen and budget.fits(cost_of(architecture)):
            missed = 0
            seen.add(architecture.key)
            yield sampler.params, architecture


@dataclass(frozen=True)
class RecordJob:
    """One worker's share of a recording: a job is one candidate; sends ``curve`` (`Curve`)."""

    candidates: tuple[int, ...]  # the numbers of those to train, by job
    space: SearchSpace
    budget: Budget
    recipe: Recipe
    images: int  # to train on, an epoch: the first ones
    seed: int  # of the random candidates
    source: Source

    def metadata(self, data: str) -> CurvesMetadata:
        """The conditions of the recording; ``data`` is the name and the fingerprint of the images."""
        space, recipe = (part.model_dump(mode="json") for part in (self.space, self.recipe))
        return CurvesMetadata(space, self.budget.max_params, recipe, data, self.images, self.seed)

    def __call__(self, context: WorkerContext) -> None:
        """Train until no job is left."""
        import torch

        train_data, val_data = load_split(context, self.source)
        train_data = train_data.take(torch.arange(self.images, device=train_data.images.device))
        drawn, position = random_candidates(self.space, self.budget, self.seed), 0
        while (job := context.next_job()) is not None:
            number = self.candidates[job]
            found = next(islice(drawn, number - position, None), None)
            if found is None:
                raise NoResultError(f"the space has no candidate {number} within {self.budget}")
            position = number + 1
            context.send("curve", self._train(number, *found, train_data, val_data))

    def _train(
        self, number: int, params: Params, architecture: Architecture, train_data: Images, val_data: Images
    ) -> Curve:
        from ..models.network import build
        from ..training.loop import TrainingError, train

        model = build(architecture, number).to(train_data.images.device)
        seconds, scores = 0.0, []
        try:
            for epoch in train(model, train_data, self.recipe, seed=number, score_on=val_data):
                seconds += epoch.seconds
                if epoch.score is not None:
                    scores.append(epoch.score)
        except TrainingError:
            scores = []
        missing, cost = self.recipe.epochs - len(scores), cost_of(architecture)
        return Curve(
            candidate=number,
            params=params,
            n_params=cost.params,
            macs=cost.macs,
            seconds=round(seconds, 1),
            accuracies=tuple([score.accuracy for score in scores] + [0.0] * missing),
            losses=tuple([round(score.loss, 5) for score in scores] + [math.nan] * missing),
        )


def record_curves(
    job: RecordJob,
    metadata: CurvesMetadata,
    path: Path,
    total: int,
    workers: int,
    on_curve: Callable[[Curve], None],
) -> None:
    """Train candidates until the table at ``path`` has ``total``; writes the table after each of them.

    Raises `NoResultError` where the space has fewer candidates within the budget.
    """
    curves = read_curves(path)[1] if path.exists() else []
    missing = set(range(total)) - {curve.candidate for curve in curves}
    job = replace(job, candidates=tuple(sorted(missing)))

    def keep(curve: Curve) -> None:
        curves.append(curve)
        write_curves(path, metadata, curves)
        on_curve(curve)

    if missing:
        run_workers(job, workers, len(missing), {"curve": keep})
