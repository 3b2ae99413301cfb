"""The time of everything but training: counting and building candidates, and whole commands."""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..core.errors import InputError
from ..models.architecture import Architecture
from ..models.cost import Budget, cost_of
from ..models.layers import expand
from ..models.network import build
from ..space.sampling import RandomSampler
from ..space.space import SearchSpace

CANDIDATES = 3_000  # to count
STARTING = {"search --help": ["search", "--help"], "describe reference": ["describe", "reference"]}
WHOLE = {  # about a minute on a GPU
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
            candidates.append(space.draw(RandomSampler(rng), Budget(20_000)))
        except InputError:
            continue
        cost_of(candidates[-1])
    drawn = time.perf_counter() - started
    started = time.perf_counter()
    for candidate in candidates:
        expand(candidate.input_shape, candidate.blocks, candidate.head, candidate.classes)
        cost_of(candidate)
    counted = time.perf_counter() - started
    return {
        "counted_per_second": round(CANDIDATES / counted),
        "drawn_and_counted_per_second": round(CANDIDATES / drawn),
        "layers_on_average": round(statistics.fmean(len(one.layers) for one in candidates), 1),
    }


def measure_building(architecture: Architecture) -> dict[str, float]:
    """Milliseconds to build a network."""
    seconds = []
    for seed in range(20):
        started = time.perf_counter()
        build(architecture, seed)
        seconds.append(time.perf_counter() - started)
    return {"milliseconds": round(1000 * statistics.median(seconds), 2)}


def measure_commands(
    commands: Mapping[str, Sequence[str]], times: int, data_dir: Path | None = None
) -> dict[str, float]:
    """Seconds of whole commands in processes of their own, medians over ``times``.

    Each one runs in a temporary folder. Raises `subprocess.CalledProcessError` where a command fails.
    """
    folder = str(data_dir) if data_dir else os.environ.get("NAS_MNIST_DATA", "")
    package = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {
        "PYTHONPATH": package,
        "NAS_MNIST_DATA": folder and str(Path(folder).resolve()),
    }
    seconds = {}
    for name, arguments in commands.items():
        command, taken = [sys.executable, "-m", "nas_mnist", *arguments], []
        for _ in range(times):
            with tempfile.TemporaryDirectory() as work:
                started = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True, cwd=work, env=environment)
                taken.append(time.perf_counter() - started)
        seconds[name] = round(statistics.median(taken), 3)
    return seconds
