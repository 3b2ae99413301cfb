"""``python -m nas_mnist.bench record``: store how random candidates of a space learn."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ..core.cli import (
    HOW_WELL,
    OUTPUT,
    WHAT,
    DataDir,
    Dataset,
    Device,
    Workers,
    as_path,
    as_table,
    check_data_dir,
    integer,
    option,
)
from ..core.defaults import MAX_EPOCHS, MAX_PARAMS, MAX_SEED
from ..core.errors import InputError, NoResultError
from ..core.fileio import check_writable
from ..core.process_pool import WorkerContext, auto_workers, parse_workers, run_workers
from ..models.architecture import Architecture
from ..models.cost import Budget, cost_of
from ..recipes.recipe import Recipe, load_recipe
from ..space.sampling import Params, RandomSampler
from ..space.space import SearchSpace
from ..training.jobs import Source, load_split

if TYPE_CHECKING:
    from ..data.dataset import Images
    from .curves import Curve, CurvesMetadata

DEFAULT_TABLE = "reports/curves/mnist.csv"
MAX_MISSES = 20_000  # draws in a row without a new candidate, after which a space counts as exhausted


def record(
    curves: Annotated[
        str, option(OUTPUT, "FILE.csv", f"Make or extend this table ({DEFAULT_TABLE}).")
    ] = DEFAULT_TABLE,
    candidates: Annotated[int, integer(HOW_WELL, 1, 100_000, "Extend the table to N rows (200).")] = 200,
    max_params: Annotated[
        int, integer(WHAT, 1, 10**9, f"The parameter budget ({MAX_PARAMS:,}).")
    ] = MAX_PARAMS,
    space: Annotated[str, option(WHAT, "NAME|FILE.toml", "Draw from this space (default).")] = "default",
    recipe: Annotated[str, option(HOW_WELL, "NAME|FILE.toml", "Train by this recipe (default).")] = "default",
    epochs: Annotated[int | None, integer(HOW_WELL, 1, MAX_EPOCHS, "Train N epochs (the recipe's).")] = None,
    images: Annotated[int | None, integer(HOW_WELL, 100, 10**7, "Images an epoch (all).")] = None,
    dataset: Dataset = "mnist",
    data_dir: DataDir = None,
    device: Device = "auto",
    workers: Workers = "auto",
    seed: Annotated[int, integer(HOW_WELL, 0, MAX_SEED, "Seed of the candidates (0).")] = 0,
) -> None:
    """Train random candidates without pruning, and store their learning curves.

    The same command with more candidates extends the table.
    """
    path = as_table("--curves", curves)
    check_data_dir(data_dir, dataset)
    processes = parse_workers(workers)
    SearchSpace.load(space)  # an error in it is reported before any data are read
    used_recipe = load_recipe(recipe).with_epochs(epochs)
    check_writable(path.parent, "--curves")

    import torch

    from ..data.dataset import load
    from ..report.progress import make_console
    from ..study.candidate import check_space
    from ..training.device import pick_device
    from ..training.loop import check_batches
    from .curves import CurvesMetadata, write_curves

    device_type = pick_device(device).type
    data = load(dataset, as_path(data_dir))
    budget, train_data = Budget(max_params), data.split()[0]
    fitted_space = SearchSpace.load_for(space, data.shape, data.classes, data.name, budget)
    count = len(train_data) if images is None else images
    if count > len(train_data):
        raise InputError(f"--images: {count:,} (use at most {len(train_data):,})")
    check_batches(train_data.take(torch.arange(count)), used_recipe, fitted_space.normalises)
    check_space(fitted_space, budget, seed)
    space_fields, recipe_fields = (part.model_dump(mode="json") for part in (fitted_space, used_recipe))
    fingerprint = f"{data.name} {data.fingerprint}"
    metadata = CurvesMetadata(space_fields, max_params, recipe_fields, fingerprint, count, seed)
    known = _read_known(path, metadata)
    missing = sorted(set(range(candidates)) - {curve.candidate for curve in known})
    source = Source(dataset, as_path(data_dir), device_type)
    job = RecordJob(tuple(missing), fitted_space, budget, used_recipe, count, seed, source)
    console = make_console()

    def keep(curve: Curve) -> None:
        known.append(curve)
        write_curves(path, metadata, known)
        reached = f"{curve.n_params:,} parameters, {curve.accuracies[-1]:.2%}, {curve.seconds:.0f} s"
        console.print(f"candidate {curve.candidate}: {reached}")

    if missing:
        try:
            run_workers(job, processes or auto_workers(device_type), len(missing), {"curve": keep})
        except KeyboardInterrupt:
            console.print(f"Kept in {path}: {len(known)} of {candidates} curves; the same command continues")
            raise
    console.print(f"Written: {path}")


def _read_known(path: Path, metadata: CurvesMetadata) -> list[Curve]:
    """The curves of a table, which may not exist; raises `InputError` for one made under other conditions."""
    from .curves import read_curves

    if not path.exists():
        return []
    stored, known = read_curves(path)
    if differ := [name for name, value in asdict(metadata).items() if asdict(stored)[name] != value]:
        raise InputError(f"--curves: {path} was made with another {', '.join(differ)} (use a new file)")
    return known


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
    """One worker's share of a recording: a job is one candidate; sends ``curve`` (`Curve`).

    Raises `NoResultError` where the space has fewer candidates within the budget.
    """

    candidates: tuple[int, ...]  # the numbers of those to train, by job
    space: SearchSpace
    budget: Budget
    recipe: Recipe
    images: int  # to train on, an epoch: the first ones
    seed: int  # of the random candidates
    source: Source

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
        from .curves import Curve

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
