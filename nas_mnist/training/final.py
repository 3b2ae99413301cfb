"""Train one architecture on all training images and read the test images: the result that counts.

The result is the test accuracy after the last epoch. The best epoch is chosen on the test images; it is
kept apart, for comparison with published logs only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..core.defaults import Engine
from ..core.errors import InputError
from ..data.dataset import DataSet
from ..data.normalize import Normalizer
from ..models.architecture import Architecture
from ..models.network import Network, build
from ..recipes.recipe import Recipe
from .evaluate import Evaluation, Score, predict
from .loop import EpochResult, check_batches, train_together


@dataclass(frozen=True)
class Run:
    """One training on all training images."""

    seed: int
    epochs: tuple[EpochResult, ...]  # with test scores, of every epoch or of the last one only
    model: Network  # on the CPU, with the weights that were scored
    normalizer: Normalizer
    evaluation: Evaluation  # of the test images, by that model

    @property
    def result(self) -> Score:
        """The test score after the last epoch."""
        score = self.epochs[-1].score
        assert score is not None
        return score

    @property
    def best_on_test(self) -> EpochResult | None:
        """The epoch with the best test score, which is chosen on the test images and is no result.

        None if only the last epoch was scored.
        """
        scored = [epoch for epoch in self.epochs if epoch.score]
        if len(scored) < 2:
            return None
        return max(scored, key=lambda epoch: epoch.score.accuracy if epoch.score else 0.0)

    @property
    def seconds(self) -> float:
        """Training time without scoring."""
        return sum(epoch.seconds for epoch in self.epochs)


def retrain(
    architecture: Architecture,
    recipe: Recipe,
    data: DataSet,
    *,
    seeds: Sequence[int],
    device: torch.device,
    last_only: bool,
    engine: Engine | None = None,
    on_epoch: Callable[[int, EpochResult], None] = lambda *_: None,
) -> list[Run]:
    """Train on all training images, all seeds at once; one `Run` a seed.

    The test images are scored after every epoch, or with ``last_only`` after the last one. ``on_epoch`` is
    called with the seed and the result of every epoch. Raises what `loop.train_together` raises.
    """
    train_data, test_data = data.train.to(device), data.read_test().to(device)
    models = [build(architecture, seed).to(device) for seed in seeds]
    epochs: list[list[EpochResult]] = [[] for _ in seeds]
    for results in train_together(
        models,
        train_data,
        recipe,
        seeds=seeds,
        score_on=test_data,
        eval_epochs=() if last_only else None,
        engine=engine,
    ):
        for seed, so_far, result in zip(seeds, epochs, results, strict=True):
            so_far.append(result)
            on_epoch(seed, result)
    normalizer = Normalizer.of(train_data.images)
    scores = [predict(model, test_data.images, normalizer, engine=engine) for model in models]
    evaluations = [Evaluation.of(of_model, test_data.labels) for of_model in scores]
    return [
        Run(seed, tuple(so_far), model.cpu(), normalizer, evaluation)
        for seed, so_far, model, evaluation in zip(seeds, epochs, models, evaluations, strict=True)
    ]


def check_fits(architecture: Architecture, data: DataSet, recipe: Recipe | None = None) -> None:
    """Raise `InputError` if a network does not take this data set's images or classes.

    With a ``recipe`` also if all training images do not fit its batches.
    """
    if architecture.input_shape != data.shape:
        wanted, got = (" x ".join(map(str, shape)) for shape in (data.shape, architecture.input_shape))
        raise InputError(f"architecture: input_shape {got} does not fit {data.name} (use {wanted})")
    if architecture.classes != data.classes:
        raise InputError(
            f"architecture: classes {architecture.classes} does not fit {data.name} (use {data.classes})"
        )
    if recipe is not None:
        check_batches(data.train, recipe, architecture.normalises)
