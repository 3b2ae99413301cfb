"""Training speed. Each function returns plain numbers, ready for JSON.

Contenders take turns (`interleave`), so that a machine whose speed drifts is unfair to none of them.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.defaults import Engine
from ..data.dataset import DataSet, Images
from ..data.normalize import Normalizer
from ..models.architecture import Architecture
from ..models.cost import cost_of
from ..models.network import Network, build
from ..recipes.recipe import load_recipe
from ..training.evaluate import evaluate
from ..training.jobs import MAX_SEEDS_TOGETHER
from ..training.loop import train, train_together
from .loops import TutorialLoop, epochs_per_turn, memory_batches, train_ours, tutorial_batches

Contender = Callable[[], float]  # trains for one turn; images a second
MakeBatches = Callable[[Images, Normalizer], Iterable[tuple[Tensor, Tensor]]]
SEEDS_AT_ONCE = (10, MAX_SEEDS_TOGETHER)  # on CUDA
TARGETS = (0.99, 0.994)  # validation accuracies whose time is measured
TUTORIAL_EPOCHS = 20  # of the tutorial loop, at most, until it reaches a target
WHOLE = {  # about a minute on a GPU
    "search --trials 50": ["search", "--trials", "50", "--device", "cuda"],
    "search --trials 50 --workers 4": ["search", "--trials", "50", "--device", "cuda", "--workers", "4"],
    "reproduce reference --seeds 10": ["reproduce", "reference", "--seeds", "10", "--device", "cuda"],
}


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
    """Images a second of three loops that train one network by the published recipe, and their ratios.

    ``plain`` is the tutorial loop: dataset, loader, float32. ``in memory`` is the same with the images as one
    tensor. ``ours`` is `train`. The accuracies on ``val_data`` after the last turn show that all of them
    learn.
    """
    normalize = Normalizer.of(train_data.images)
    device = train_data.images.device
    models: dict[str, Network] = {}  # of the newest turn

    def tutorial(name: str, make_batches: MakeBatches) -> float:
        loop = TutorialLoop(architecture, device)
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
    speeds = interleave(contenders, repeats)
    return {
        "params": cost_of(architecture).params,
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
        "accuracy_after_one_turn": {
            name: round(evaluate(model, val_data, normalize).accuracy, 4) for name, model in models.items()
        },
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


Epochs = Iterator[tuple[float, float]]  # seconds of training and validation accuracy (0 to 1) of every epoch


def measure_time_to_accuracy(
    architecture: Architecture, data: DataSet, device: torch.device, seeds: int
) -> dict[str, float | None]:
    """Seconds of training until a network reaches `TARGETS` on the validation images: means over seeds.

    ``plain`` is the tutorial loop, ``ours`` the recipe ``default``. The mean is None where no seed reaches
    the target.
    """
    train_data, val_data = (part.to(device) for part in data.split())
    found: dict[str, float | None] = {"seeds": seeds}
    for name, epochs in {"plain": _tutorial_epochs, "ours": _our_epochs}.items():
        by_seed = [
            seconds_to_targets(epochs(architecture, train_data, val_data, seed), TARGETS)
            for seed in range(seeds)
        ]
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


def measure_commands(commands: Mapping[str, Sequence[str]], data_dir: Path | None = None) -> dict[str, float]:
    """Seconds of whole commands, each in a process and a temporary folder of its own.

    Raises `subprocess.CalledProcessError` where a command fails.
    """
    folder = str(data_dir) if data_dir else os.environ.get("NAS_MNIST_DATA", "")
    package = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    data = folder and str(Path(folder).resolve())
    environment = os.environ | {"PYTHONPATH": package, "NAS_MNIST_DATA": data}
    seconds = {}
    for name, arguments in commands.items():
        command = [sys.executable, "-m", "nas_mnist", *arguments]
        with tempfile.TemporaryDirectory() as work:
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, cwd=work, env=environment)
            seconds[name] = round(time.perf_counter() - started, 3)
    return seconds
