"""Training speed. Each function returns plain numbers, ready for JSON.

Contenders take turns (`interleave`), so that a machine whose speed drifts is unfair to none of them.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core.process_pool import WorkerContext, auto_workers, run_workers
from ..data.dataset import DataSet, Images
from ..data.normalize import Normalizer
from ..engine.backend import Engine
from ..models.architecture import Architecture
from ..models.cost import cost_of
from ..models.network import Network, build
from ..recipes.recipe import load_recipe
from ..training.device import bfloat16_unit
from ..training.evaluate import evaluate
from ..training.jobs import MAX_SEEDS_TOGETHER
from ..training.loop import train, train_together
from .loops import TutorialLoop, epochs_per_turn, memory_batches, train_ours, tutorial_batches

Contender = Callable[[], float]  # trains for one turn; images a second
MakeBatches = Callable[[Images, Normalizer], Iterable[tuple[Tensor, Tensor]]]
SEEDS_AT_ONCE = (10, MAX_SEEDS_TOGETHER)  # on CUDA
TARGETS = (0.99, 0.994)  # validation accuracies whose time is measured
TUTORIAL_EPOCHS = 20  # of the tutorial loop, at most, until it reaches a target


def interleave(contenders: Mapping[str, Contender], repeats: int) -> dict[str, list[float]]:
    """Speeds by contender and turn: one round that does not count, then ``repeats`` rounds of a turn each."""
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, contender in contenders.items():
            speed = contender()
            if turn:
                speeds[name].append(speed)
    return speeds


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios of turns of the same round."""
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3)


def measure_training(
    architecture: Architecture, train_data: Images, val_data: Images, repeats: int
) -> dict[str, Any]:
    """Images a second of several loops that train one network by the published recipe.

    ``plain`` is the tutorial loop: dataset, loader, contiguous float32. ``in memory`` is the same with the
    images as one tensor, also in bfloat16 where the processor multiplies it. ``ours`` is `train`. The
    accuracies on ``val_data`` after the last turn show that all of them learn.
    """
    normalize = Normalizer.of(train_data.images)
    device = train_data.images.device
    models: dict[str, Network] = {}  # of the newest turn

    def tutorial(name: str, make_batches: MakeBatches, bfloat16: bool = False) -> float:
        loop = TutorialLoop(architecture, device, bfloat16=bfloat16)
        models[name] = loop.model
        return loop.epoch(make_batches(train_data, normalize))

    def ours() -> float:
        models["ours"] = build(architecture, 0).to(device)
        return train_ours(models["ours"], train_data)

    contenders: dict[str, Contender] = {
        "plain": lambda: tutorial("plain", tutorial_batches),
        "in memory": lambda: tutorial("in memory", memory_batches),
        "ours": ours,
    }
    if device.type == "cpu" and bfloat16_unit():
        name = "in memory, bfloat16"
        contenders[name] = lambda: tutorial(name, memory_batches, bfloat16=True)
    speeds = interleave(contenders, repeats)
    accuracies = {name: round(evaluate(one, val_data, normalize).accuracy, 4) for name, one in models.items()}
    return {
        "params": cost_of(architecture).params,
        **_summarise_speeds(speeds),
        "accuracy_after_one_turn": accuracies,
    }


def _summarise_speeds(speeds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Images a second by contender, and their ratios."""
    return {
        "images_per_second": {
            name: {
                "median": round(statistics.median(values)),
                "min": round(min(values)),
                "max": round(max(values)),
                "by_turn": [round(value) for value in values],
            }
            for name, values in speeds.items()
        },
        "ours_to_in_memory": median_ratio(speeds["ours"], speeds["in memory"]),
        "to_plain": {name: median_ratio(values, speeds["plain"]) for name, values in speeds.items()},
        "seconds_for_20_epochs": round(20 * 60_000 / statistics.median(speeds["ours"]), 1),
    }


def load_average() -> float | None:
    """Mean number of processes that wanted to run in the last minute; None where it is not known."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def measure_seeds(architecture: Architecture, train_data: Images, repeats: int) -> dict[str, float]:
    """Images a second, of all seeds together, of seeds trained one after the other and at once.

    On CUDA also of one after the other by torch's modules, whose kernels are launched one by one.
    """
    device = train_data.images.device
    recipe = load_recipe("default").with_epochs(epochs_per_turn(device))

    def at_once(count: int) -> float:
        models = [build(architecture, seed).to(device) for seed in range(count)]
        *_, epochs = train_together(models, train_data, recipe, seeds=range(count))
        return sum(epoch.images for epoch in epochs) / sum(epoch.seconds for epoch in epochs)

    def one(engine: Engine | None = None) -> float:
        model = build(architecture, 0).to(device)
        *_, epoch = train(model, train_data, recipe, seed=0, engine=engine)
        return epoch.images / epoch.seconds

    on_cuda = device.type == "cuda"
    alone: dict[str, Contender] = {"one after the other": one}
    if on_cuda:
        alone["one after the other, by torch's modules"] = partial(one, engine="torch")
    together = {f"{count} at once": partial(at_once, count) for count in (SEEDS_AT_ONCE if on_cuda else (2,))}
    speeds = interleave(alone | together, repeats)
    medians: dict[str, float] = {name: round(statistics.median(values)) for name, values in speeds.items()}
    return medians | {
        f"times faster {many} than {name}": median_ratio(speeds[many], speeds[name])
        for many in together
        for name in alone
    }


@dataclass(frozen=True)
class TurnJob:
    """One worker's training in `measure_workers`: one turn a job; sends ``trained`` (images a second)."""

    architecture: Architecture
    train_data: Images

    def __call__(self, context: WorkerContext) -> None:
        """Train until no job is left; the first turn belongs to no job and does not count."""
        torch.set_num_threads(context.threads)
        self._turn()
        while context.next_job() is not None:
            context.send("trained", self._turn())

    def _turn(self) -> float:
        return train_ours(build(self.architecture, 0), self.train_data)


def measure_workers(architecture: Architecture, train_data: Images, repeats: int) -> dict[str, float]:
    """Images a second of one process with all threads and of `auto_workers` processes with one each.

    Every turn starts new processes.
    """
    job = TurnJob(architecture, train_data)

    def speed(workers: int) -> float:
        turns: list[float] = []
        run_workers(job, workers, 2 * workers, {"trained": turns.append})
        return workers * statistics.median(turns)

    many = auto_workers("cpu")
    speeds = interleave({str(count): partial(speed, count) for count in sorted({1, many})}, repeats)
    found: dict[str, float] = {
        f"images_per_second_of_{count}": round(statistics.median(values)) for count, values in speeds.items()
    }
    if many > 1:
        ratios = [several / alone for several, alone in zip(speeds[str(many)], speeds["1"], strict=True)]
        found[f"times_faster_with_{many}"] = round(statistics.median(ratios), 3)
        found[f"slowest_turn_with_{many}"] = round(min(ratios), 3)
        found[f"fastest_turn_with_{many}"] = round(max(ratios), 3)
    return found


Epochs = Iterator[tuple[float, float]]  # seconds of training and validation accuracy (0 to 1) of every epoch


def measure_time_to_accuracy(
    architecture: Architecture, data: DataSet, device: torch.device, seeds: int
) -> dict[str, float | None]:
    """Seconds of training until a network reaches `TARGETS` on the validation images: means over seeds.

    ``plain`` is the tutorial loop, ``ours`` the recipe ``default``. The mean is None where no seed reaches
    the target.
    """
    train_data, val_data = (part.to(device) for part in data.split())
    loops: dict[str, Callable[[int], Epochs]] = {
        "plain": lambda seed: _tutorial_epochs(architecture, train_data, val_data, seed),
        "ours": lambda seed: _our_epochs(architecture, train_data, val_data, seed),
    }
    found: dict[str, float | None] = {"seeds": seeds}
    for name, epochs in loops.items():
        by_seed = [seconds_to_targets(epochs(seed), TARGETS) for seed in range(seeds)]
        for target in TARGETS:
            times = [reached[target] for reached in by_seed if target in reached]
            mean = round(statistics.fmean(times), 1) if times else None
            found[f"{name}_seeds_that_reach_{target:.1%}"] = len(times)
            found[f"{name}_mean_seconds_to_{target:.1%}"] = mean
    return found


def seconds_to_targets(epochs: Epochs, targets: Iterable[float]) -> dict[float, float]:
    """Seconds until each target was reached, of those that were; ends when all are."""
    seconds, missing = 0.0, set(targets)
    reached: dict[float, float] = {}
    for taken, accuracy in epochs:
        seconds += taken
        reached |= {target: seconds for target in missing if accuracy >= target}
        missing -= reached.keys()
        if not missing:
            break
    return reached


def _tutorial_epochs(architecture: Architecture, train_data: Images, val_data: Images, seed: int) -> Epochs:
    torch.manual_seed(seed)  # the loader's order
    loop = TutorialLoop(architecture, train_data.images.device, seed)
    normalize = Normalizer.of(train_data.images)
    for _ in range(TUTORIAL_EPOCHS):
        seconds = len(train_data) / loop.epoch(tutorial_batches(train_data, normalize))
        yield seconds, evaluate(loop.model, val_data, normalize, engine="torch").accuracy


def _our_epochs(architecture: Architecture, train_data: Images, val_data: Images, seed: int) -> Epochs:
    model = build(architecture, seed).to(train_data.images.device)
    for result in train(model, train_data, load_recipe("default"), seed=seed, score_on=val_data):
        yield result.seconds, result.score.accuracy if result.score else 0.0
