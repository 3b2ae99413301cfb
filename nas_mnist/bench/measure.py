"""What the benchmark measures: each function returns plain numbers, ready for JSON.

Contenders take turns (`turns`), so that a machine whose speed drifts is unfair to none of them.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ..core.process_pool import Desk, auto_workers, run_workers
from ..data.dataset import DataSet, Images
from ..models.architecture import Architecture
from ..models.cost import cost_of
from ..models.network import Network, build
from ..recipes.recipe import load_recipe
from ..search.jobs import TOGETHER
from ..training.device import bfloat16_unit
from ..training.evaluate import Normalizer, evaluate
from ..training.loop import train, train_together
from ..training.optim import Numbers
from .contenders import Contender, PlainLoop, convolutions, epochs_on, in_memory, loaded, ours, plain

AT_ONCE = (10, TOGETHER)  # seeds that CUDA trains at once


def measure_training(architecture: Architecture, data: Images, check: Images, repeats: int) -> dict[str, Any]:
    """Images a second of ways to train one network with the published recipe, turn by turn.

    ``plain``: a tutorial's loop (dataset, loader, contiguous float32); ``in memory``: the same with the
    images as one tensor; ``ours``: `train`; ``convolutions``: the network's convolutions alone, forward
    and backward, each in the layout that is fastest for it, in float32. Where a
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
            name: {
                **{"median": round(medians[name]), "min": round(min(values)), "max": round(max(values))},
                "by_turn": [round(value) for value in values],
            }
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

    On CUDA also one after the other by torch's modules, launched one by one.
    """
    device = data.images.device
    recipe = load_recipe("default").with_epochs(epochs_on(device))

    def together(count: int) -> float:
        models = [build(architecture, seed).to(device) for seed in range(count)]
        *_, epochs = train_together(models, data, recipe, seeds=range(count))
        return sum(epoch.images for epoch in epochs) / sum(epoch.seconds for epoch in epochs)

    def one(plain: bool = False) -> float:
        *_, epoch = train(build(architecture, 0).to(device), data, recipe, seed=0, plain=plain)
        return epoch.images / epoch.seconds

    on_cuda = device.type == "cuda"
    alone: dict[str, Contender] = {"one after the other": one}
    if on_cuda:
        alone["one after the other, by torch's modules"] = partial(one, plain=True)
    beside = {f"{count} at once": partial(together, count) for count in (AT_ONCE if on_cuda else (2,))}
    speeds = turns(alone | beside, repeats)
    found: dict[str, float] = {name: round(statistics.median(speed)) for name, speed in speeds.items()}
    return found | {
        f"times faster {many} than {name}": _ratio(speeds[many], speeds[name])
        for many in beside
        for name in alone
    }


def _torchs_sgd(
    numbers: Numbers, rate: Tensor, momentum: float, nesterov: bool, weight_decay: float
) -> torch.optim.SGD:
    """What `SGD` is, by torch."""
    numbers.weights.grad, numbers.others.grad = numbers.weight_gradient, numbers.other_gradient
    groups: list[dict[str, Any]] = [
        {"params": [numbers.weights], "weight_decay": weight_decay},
        {"params": [numbers.others]},
    ]
    return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=nesterov, fused=True)


# What makes training fast on a CPU: the name that is replaced, and by what, to go without it.
TRICKS: dict[str, tuple[str, Any]] = {
    "compiled kernels": ("nas_mnist.training.evaluate.FusedNetwork", lambda network, _: network),
    "augmentation in one loop": ("nas_mnist.training.step.Warp", lambda *_: None),
    "two convolutions a stage": ("nas_mnist.engine.stages.LONGEST", 1),
    "torch's threads for programs": ("nas_mnist.engine.fused.own_threads", nullcontext),
    "head and loss without autograd": ("nas_mnist.engine.fused.FusedNetwork.learns", False),
    "optimiser in four operations": ("nas_mnist.training.step.SGD", _torchs_sgd),
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
    """Images a second of one process with all threads, and of as many as `auto_workers` says, turn by turn.

    They are new processes each time.
    """
    task = TurnTask(architecture, data)

    def speed(count: int) -> float:
        found: list[float] = []
        run_workers(task, count, 2 * count, {"trained": found.append})
        return count * statistics.median(found)

    many = auto_workers("cpu")
    speeds = turns({str(count): partial(speed, count) for count in sorted({1, many})}, repeats)
    told: dict[str, float] = {
        f"images_per_second_of_{count}": round(statistics.median(found)) for count, found in speeds.items()
    }
    if many > 1:
        ratios = [several / alone for several, alone in zip(speeds[str(many)], speeds["1"], strict=True)]
        told[f"times_faster_with_{many}"] = round(statistics.median(ratios), 3)
        told[f"slowest_turn_with_{many}"] = round(min(ratios), 3)
        told[f"fastest_turn_with_{many}"] = round(max(ratios), 3)
    return told


def measure_time_to(
    architecture: Architecture, data: DataSet, device: torch.device, seeds: int
) -> dict[str, float | None]:
    """Seconds of training until 99 % and 99.4 % of the validation images are right: means over seeds.

    ``plain``: a tutorial's loop, as in `measure_training`, up to 20 epochs; ``ours``: the default recipe.
    """
    learn, choose = (part.to(device) for part in data.split())
    found: dict[str, float | None] = {"seeds": seeds}
    for name, epochs in (("plain", _plain_epochs), ("ours", _our_epochs)):
        reached: dict[float, list[float]] = {0.99: [], 0.994: []}
        for seed in range(seeds):
            seconds, missing = 0.0, dict.fromkeys(reached)
            for taken, accuracy in epochs(architecture, learn, choose, seed):
                seconds += taken
                for goal in [goal for goal in missing if accuracy >= goal]:
                    reached[goal].append(seconds)
                    del missing[goal]
                if not missing:
                    break
        for goal, times in reached.items():
            found[f"{name}_seeds_that_reach_{goal:.1%}"] = len(times)
            found[f"{name}_mean_seconds_to_{goal:.1%}"] = round(statistics.fmean(times), 1) if times else None
    return found


def _plain_epochs(
    architecture: Architecture, learn: Images, choose: Images, seed: int
) -> Iterator[tuple[float, float]]:
    """Seconds and validation accuracy of every epoch."""
    torch.manual_seed(seed)  # the loader's order
    loop, normalize = PlainLoop(architecture, learn.images.device, seed), Normalizer.of(learn.images)
    for _ in range(20):
        seconds = len(learn) / loop.epoch(loaded(learn, normalize))
        yield seconds, evaluate(loop.model, choose, normalize, plain=True).accuracy


def _our_epochs(
    architecture: Architecture, learn: Images, choose: Images, seed: int
) -> Iterator[tuple[float, float]]:
    """The same."""
    model = build(architecture, seed).to(learn.images.device)
    for result in train(model, learn, load_recipe("default"), seed=seed, score_on=choose):
        yield result.seconds, result.score.accuracy if result.score else 0.0
