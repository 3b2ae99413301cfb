"""What the benchmark measures beside training: counting, building, storing, and whole commands."""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from ..core.errors import InputError
from ..data.dataset import Images
from ..models.architecture import Architecture
from ..models.cost import Budget, cost_of
from ..models.layers import expand
from ..models.network import Network, build
from ..recipes.recipe import Recipe, load_recipe
from ..space.sampling import RandomDraws
from ..space.space import SearchSpace
from ..training.evaluate import Score
from ..training.loop import EpochResult

CANDIDATES = 3_000
STORED = (10, 100, 1_000)  # trials
STARTING = {"search --help": ["search", "--help"], "describe reference": ["describe", "reference"]}
# What a GPU is asked to do in about a minute.
WHOLE = {
    "search --trials 50": ["search", "--trials", "50", "--device", "cuda"],
    "search --trials 50 --workers 4": ["search", "--trials", "50", "--device", "cuda", "--workers", "4"],
    "reproduce reference --seeds 10": ["reproduce", "reference", "--seeds", "10", "--device", "cuda"],
}


def measure_counting() -> dict[str, float]:
    """Candidates a second on one core: expanded and counted, and drawn, validated, expanded and counted."""
    space, rng = SearchSpace.load(), random.Random(0)
    candidates: list[Architecture] = []
    started = time.perf_counter()
    while len(candidates) < CANDIDATES:
        try:
            candidates.append(space.draw(RandomDraws(rng), Budget(20_000)))
        except InputError:
            continue
        cost_of(candidates[-1])
    drawn = time.perf_counter() - started
    started = time.perf_counter()
    for candidate in candidates:
        expand(candidate)
        cost_of(candidate)
    counted = time.perf_counter() - started
    return {
        "counted_per_second": round(CANDIDATES / counted),
        "drawn_and_counted_per_second": round(CANDIDATES / drawn),
        "layers_on_average": round(float(np.mean([len(one.layers) for one in candidates])), 1),
    }


def measure_building(architecture: Architecture) -> dict[str, float]:
    """Milliseconds to build a network."""
    seconds = []
    for seed in range(20):
        started = time.perf_counter()
        build(architecture, seed)
        seconds.append(time.perf_counter() - started)
    return {"milliseconds": round(1000 * statistics.median(seconds), 2)}


def measure_storage() -> dict[str, float]:
    """Milliseconds of a trial without its training, around the 10th, the 100th and the 1,000th.

    That is drawing (TPE), counting, comparing with those before, building and storing; most of the
    trials are stopped early, as in a search.
    """
    import optuna

    from ..study.objective import Objective, Watcher
    from ..study.pruner import Halving
    from ..study.storage import open_storage

    nothing = Images(torch.zeros(1, 1, 28, 28, dtype=torch.uint8), torch.zeros(1, dtype=torch.long))
    watcher = Watcher(lambda *_: None, lambda *_: None)
    recipe = load_recipe("default")
    objective = Objective(SearchSpace.load(), Budget(20_000), recipe, nothing, nothing, 0, watcher)
    costs = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch("nas_mnist.training.loop.train", partial(_without_training, random.Random(0))),
    ):
        storage = open_storage(f"sqlite:///{Path(folder) / 'bench.db'}")
        sampler = optuna.samplers.TPESampler(seed=0)
        pruner = Halving(recipe.epochs)
        study = optuna.create_study(storage=storage, sampler=sampler, pruner=pruner, direction="maximize")
        for goal in STORED:
            study.optimize(objective, n_trials=goal - len(study.trials) - 5)
            started = time.perf_counter()
            study.optimize(objective, n_trials=5)
            costs[f"milliseconds_at_{goal}_trials"] = round(1000 * (time.perf_counter() - started) / 5, 1)
        storage.remove_session()
    return costs


def _without_training(
    rng: random.Random, _: Network, data: Images, recipe: Recipe, *, scored: Container[int], **__: Any
) -> Iterator[EpochResult]:
    """The results of a training that did not take place: networks differ, and all learn."""
    talent = rng.random()
    for epoch in range(1, recipe.epochs + 1):
        correct = round(10_000 * (1 - (1 - talent / 2) / (5 + epoch)))
        score = Score(0.1, correct, 10_000) if epoch in scored else None
        yield EpochResult(epoch, 0.1, recipe.learning_rate, 0.0, len(data), score)


def measure_commands(
    commands: Mapping[str, Sequence[str]], times: int, data_dir: Path | None = None
) -> dict[str, float]:
    """Seconds of whole processes, medians; what they write is thrown away."""
    seconds = {}
    folder = str(data_dir) if data_dir else os.environ.get("NAS_MNIST_DATA", "")
    here = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    known = os.environ | {"PYTHONPATH": here, "NAS_MNIST_DATA": folder and str(Path(folder).resolve())}
    for name, arguments in commands.items():
        command, taken = [sys.executable, "-m", "nas_mnist", *arguments], []
        for _ in range(times):
            with tempfile.TemporaryDirectory() as work:
                started = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True, cwd=work, env=known)
                taken.append(time.perf_counter() - started)
        seconds[name] = round(statistics.median(taken), 3)
    return seconds
