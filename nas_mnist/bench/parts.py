"""What a step's time on a CPU goes to, by the kernels that run in it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch

from ..data.dataset import Images
from ..engine import vectors
from ..models.architecture import Architecture
from .contenders import ours

# By module and name of a kernel.
PARTS = {
    "convolutions": ("convolve.dense", "convolve.depthwise"),
    "gradients of their weights": (
        *("convolve.dense_gradient", "convolve.depthwise_gradient"),
        "between.totals",
    ),
    "maps as they are read": ("between.forward", "between.mean"),
    "gradients on the way back": ("between.backward", "between.through_norm", "between.from_mean"),
    "sums of normalisations": ("between.statistics",),
    "a layer's few numbers": (
        *("parameters.take", "parameters.put"),
        *("parameters.normalise", "parameters.gradients"),
    ),
    "images": ("warp._kernel",),
}
REST = "Python, head, loss, optimiser"


def measure_parts(architecture: Architecture, data: Images, repeats: int) -> dict[str, float]:
    """The share of a step's time that goes to each of `PARTS`, and to the rest; one thread, default images.

    Kernels are timed one by one, for one group of images at a time, in the order in which they always run;
    what the clock itself takes is subtracted. Shares are of the kernels' time in turns with the clock, in
    time of turns without it: medians of ``repeats``.
    """
    part_of = {kernel: part for part, kernels in PARTS.items() for kernel in kernels}
    shares: dict[str, list[float]] = {part: [] for part in PARTS}
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ours({}, architecture, data, augmented=True)
        for _ in range(repeats):
            seconds = len(data) / ours({}, architecture, data, augmented=True)
            taken = dict.fromkeys(PARTS, 0.0)
            with _clocked() as clock:
                ours({}, architecture, data, augmented=True)
            for kernel, spent in clock.items():
                taken[part_of[kernel]] += spent
            for part, spent in taken.items():
                shares[part].append(spent / seconds)
    finally:
        torch.set_num_threads(count)
    found = {part: round(statistics.median(values), 3) for part, values in shares.items()}
    return found | {REST: round(1 - sum(found.values()), 3)}


@contextmanager
def _clocked() -> Iterator[dict[str, float]]:
    """While it lasts, the seconds that each kernel takes are added up."""
    runner = vectors.runner()
    spent: dict[str, float] = {}

    def timed(*what: int) -> float:
        started = time.perf_counter()
        runner(*what)
        return time.perf_counter() - started

    alone = statistics.median(timed(0, 0, 0, 1) for _ in range(1000))  # of no row

    def run(program: vectors.Program, start: int = 0, stop: int = 1) -> None:
        table, rows = program.where
        names = [vectors.KERNELS[int(address)] for address in program.table[:, 0]]
        for group in range(start, stop):
            for row in range(rows):
                took = timed(table + row * program.table.strides[0], 1, group, group + 1) - alone
                spent[names[row]] = spent.get(names[row], 0.0) + took

    with mock.patch.object(vectors.Program, "run", run):
        yield spent
