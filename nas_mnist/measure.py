"""What the benchmark measures: each function returns plain numbers, ready for JSON.

Contenders take turns (`turns`), so that a machine whose speed drifts is unfair to none of them.
"""

from __future__ import annotations

import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from .architecture import Architecture
from .contenders import Contender, convolutions, in_memory, loaded, ours, plain
from .cost import Budget, cost_of
from .data import DataSet, Images
from .device import bfloat16_unit
from .draws import RandomDraws
from .errors import InputError
from .layers import expand
from .model import Network, build
from .recipe import Recipe, load_recipe
from .scoring import Normalizer, Score, evaluate
from .space import SearchSpace
from .tasks import TOGETHER
from .training import EpochResult, train, train_together
from .workers import Desk, auto_workers, run_workers

CANDIDATES = 3_000
STORED = (10, 100, 1_000)  # trials


def measure_training(architecture: Architecture, data: Images, check: Images, repeats: int) -> dict[str, Any]:
    """Images a second of ways to train one network with the published recipe, turn by turn.

    ``plain``: a tutorial's loop (dataset, loader, contiguous float32); ``in memory``: the same with the
    images as one tensor; ``ours``: `train`; ``convolutions``: the network's convolutions alone, forward
    and backward, each in the layout that is fastest for it, in float32 (on CUDA in bfloat16, too). Where a
    processor multiplies bfloat16, also the loop in memory in bfloat16, and the convolutions in the faster of
    both types. The accuracies on ``check`` of what the newest turn trained, from the same initial weights,
    show that all of them learn.
    """
    normalize = Normalizer.of(data.images)
    device = data.images.device
    trained: dict[str, Network] = {}  # by the newest turn
    contenders: dict[str, Contender] = {
        "plain": lambda: plain(trained, "plain", architecture, loaded(data, normalize), device),
        "in memory": lambda: plain(trained, "in memory", architecture, in_memory(data, normalize), device),
        "ours": lambda: ours(trained, architecture, data),
        "convolutions": convolutions(architecture, device),
    }
    if device.type == "cpu" and bfloat16_unit():
        contenders["in memory, bfloat16"] = lambda: plain(
            *(trained, "in memory, bfloat16", architecture, in_memory(data, normalize), device), half=True
        )
        contenders["convolutions, either type"] = convolutions(architecture, device, half=True)
    speeds = turns(contenders, repeats)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    return {
        "params": cost_of(architecture).params,
        "images_per_second": {
            name: {"median": round(medians[name]), "min": round(min(values)), "max": round(max(values))}
            for name, values in speeds.items()
        },
        "ours_to_in_memory": _ratio(speeds["ours"], speeds["in memory"]),
        "convolution_share_of_our_step": _ratio(speeds["ours"], speeds["convolutions"]),
        "to_plain": {name: _ratio(values, speeds["plain"]) for name, values in speeds.items()},
        "seconds_for_20_epochs": round(20 * 60_000 / medians["ours"], 1),
        "accuracy_after_one_turn": {
            name: round(evaluate(model, check, normalize).accuracy, 4) for name, model in trained.items()
        },
    }


def load_average() -> float | None:
    """How many processes wanted to run in the last minute; None where the system does not tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def turns(contenders: dict[str, Contender], repeats: int) -> dict[str, list[float]]:
    """One uncounted turn each, then ``repeats`` rounds in which every contender has a turn."""
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, contender in contenders.items():
            speed = contender()
            if turn:
                speeds[name].append(speed)
    return speeds


def _ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of the ratios, turn by turn."""
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3)


def measure_together(architecture: Architecture, data: Images, repeats: int) -> dict[str, float]:
    """Images a second of several seeds, all of them counted, turn by turn: one after the other, and at once.

    On CUDA also one after the other without recorded steps.
    """
    recipe = load_recipe("default").with_epochs(1)
    device = data.images.device
    seeds = range(TOGETHER if device.type == "cuda" else 2)

    def together() -> float:
        models = [build(architecture, seed).to(device) for seed in seeds]
        (epochs,) = train_together(models, data, recipe, seeds=seeds)
        return sum(epoch.images for epoch in epochs) / sum(epoch.seconds for epoch in epochs)

    def one() -> float:
        (epoch,) = train(build(architecture, 0).to(device), data, recipe, seed=0)
        return epoch.images / epoch.seconds

    def unrecorded() -> float:
        with mock.patch("nas_mnist.step.EAGER", math.inf):
            return one()

    contenders = {"one after the other": one, f"{len(seeds)} seeds at once": together}
    if device.type == "cuda":
        contenders["one after the other, steps not recorded"] = unrecorded
    speeds = turns(contenders, repeats)
    found: dict[str, float] = {name: round(statistics.median(speed)) for name, speed in speeds.items()}
    return found | {
        f"times faster at once than {name}": _ratio(speeds[f"{len(seeds)} seeds at once"], speeds[name])
        for name in contenders
        if name.startswith("one")
    }


# What makes training fast on a CPU: the name that is replaced, and by what, to go without it.
TRICKS: dict[str, tuple[str, Any]] = {
    "compiled kernels": ("nas_mnist.scoring.FusedNetwork", lambda network: network),
    "augmentation in one loop": ("nas_mnist.step.Warp", lambda *_: None),
    "two convolutions a stage": ("nas_mnist.stages.LONGEST", 1),
    "torch's threads for programs": ("nas_mnist.fused.own_threads", nullcontext),
}


def measure_tricks(architecture: Architecture, data: Images, repeats: int) -> dict[str, float]:
    """How many times faster one network trains with each of `TRICKS` than without it, turn by turn."""

    def without(trick: str) -> float:
        with mock.patch(*TRICKS[trick]):
            return turn()

    def turn() -> float:
        return ours({}, architecture, data, augmented=True)

    contenders: dict[str, Contender] = {"all": turn}
    contenders |= {trick: partial(without, trick) for trick in TRICKS}
    speeds = turns(contenders, repeats)
    return {trick: _ratio(speeds["all"], speeds[trick]) for trick in TRICKS}


@dataclass(frozen=True)
class TurnTask:
    """What a worker does when workers are compared: `train`, again and again."""

    architecture: Architecture
    data: Images

    def __call__(self, desk: Desk) -> None:
        """Send ``trained`` (images a second) for every turn but the worker's first."""
        torch.set_num_threads(desk.threads)
        ours({}, self.architecture, self.data)
        while desk.claim() is not None:
            desk.send("trained", ours({}, self.architecture, self.data))


def measure_workers(architecture: Architecture, data: Images, repeats: int) -> dict[str, float]:
    """Images a second of one process with all threads and of as many workers as `auto_workers` says.

    They take turns, each time as new processes.
    """

    def speed(count: int) -> float:
        found: list[float] = []
        run_workers(TurnTask(architecture, data), count, 2 * count, {"trained": found.append})
        return count * statistics.median(found)

    one, *more = sorted({1, auto_workers(data.images.device.type)})
    speeds = turns({str(count): partial(speed, count) for count in (one, *more)}, repeats)
    told: dict[str, float] = {
        f"images_per_second_of_{count}": round(statistics.median(found)) for count, found in speeds.items()
    }
    for count in map(str, more):
        ratios = [many / alone for many, alone in zip(speeds[count], speeds["1"], strict=True)]
        told[f"times_faster_with_{count}"] = round(statistics.median(ratios), 3)
        told["slowest_turn"], told["fastest_turn"] = round(min(ratios), 3), round(max(ratios), 3)
    return told


def measure_time_to(
    architecture: Architecture, data: DataSet, device: torch.device, seeds: int
) -> dict[str, Any]:
    """Seconds of training with the default recipe until the validation accuracy reaches 99 % and 99.4 %."""
    learn, choose = (part.to(device) for part in data.split())
    recipe = load_recipe("default")
    reached: dict[str, list[float]] = {"99.0%": [], "99.4%": []}
    for seed in range(seeds):
        model, seconds = build(architecture, seed).to(device), 0.0
        missing = dict.fromkeys(reached)
        for result in train(model, learn, recipe, seed=seed, score_on=choose):
            seconds += result.seconds
            accuracy = result.score.accuracy if result.score else 0.0
            for goal in [goal for goal in missing if accuracy >= float(goal[:-1]) / 100]:
                reached[goal].append(seconds)
                del missing[goal]
    found: dict[str, Any] = {"seeds": seeds}
    for goal, times in reached.items():
        found[f"seeds_that_reach_{goal}"] = len(times)
        found[f"mean_seconds_to_{goal}"] = round(statistics.fmean(times), 1) if times else None
    return found


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

    from .objective import Objective, Watcher
    from .stopping import Halving
    from .storages import open_storage

    nothing = Images(torch.zeros(1, 1, 28, 28, dtype=torch.uint8), torch.zeros(1, dtype=torch.long))
    watcher = Watcher(lambda *_: None, lambda *_: None)
    recipe = load_recipe("default")
    objective = Objective(SearchSpace.load(), Budget(20_000), recipe, nothing, nothing, 0, watcher)
    costs = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch("nas_mnist.training.train", partial(_without_training, random.Random(0))),
    ):
        storage = open_storage(f"sqlite:///{Path(folder) / 'bench.db'}")
        sampler = optuna.samplers.TPESampler(seed=0)
        study = optuna.create_study(storage=storage, sampler=sampler, pruner=Halving(), direction="maximize")
        for goal in STORED:
            study.optimize(objective, n_trials=goal - len(study.trials) - 5)
            started = time.perf_counter()
            study.optimize(objective, n_trials=5)
            costs[f"milliseconds_at_{goal}_trials"] = round(1000 * (time.perf_counter() - started) / 5, 1)
        storage.remove_session()
    return costs


def _without_training(
    rng: random.Random, _: Network, data: Images, recipe: Recipe, **__: Any
) -> Iterator[EpochResult]:
    """The results of a training that did not take place: networks differ, and all learn."""
    talent = rng.random()
    yield EpochResult(0, 1 - talent / 2, recipe.learning_rate, 0.0, len(data), None)
    for epoch in range(1, recipe.epochs + 1):
        correct = round(10_000 * (1 - (1 - talent / 2) / (5 + epoch)))
        yield EpochResult(epoch, 0.1, recipe.learning_rate, 0.0, len(data), Score(0.1, correct, 10_000))


STARTING = {"search --help": ["search", "--help"], "describe reference": ["describe", "reference"]}
# What a GPU is asked to do in a minute, and in a quarter of one.
WHOLE = {
    "search --trials 50": ["search", "--trials", "50", "--device", "cuda"],
    "reproduce reference --seeds 10": ["reproduce", "reference", "--seeds", "10", "--device", "cuda"],
}


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
