"""Several processes on one study: each loads torch and the data once and trains one candidate at a time.

On a CPU, networks this small train faster as one single-thread process a core than as one process with
many threads. What the workers do reaches the parent as events through a queue; Optuna's storage is the
only thing they share.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cost import Budget, Cost
from .errors import NoResultError
from .recipe import Recipe
from .results import TrialRow
from .space import SearchSpace

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess
    from multiprocessing.queues import Queue
    from multiprocessing.sharedctypes import Synchronized

    from .training import EpochResult

MAX_AUTO = 8  # the sampler learns less from candidates that are drawn at the same time
STOP_WITHIN = 5.0  # seconds; an interrupted worker puts its candidate back in that time


@dataclass(frozen=True)
class Task:
    """What every worker needs to know; plain data, so that it can be sent to a new process."""

    storage: str
    study: str
    space: SearchSpace
    budget: Budget
    recipe: Recipe
    dataset: str
    data_dir: Path | None
    device: str  # cpu, cuda or mps
    seed: int
    timeout: float | None  # seconds


@dataclass(frozen=True)
class Listener:
    """Who hears what the workers do."""

    candidate: Callable[[int, Cost], None]
    epoch: Callable[[int, EpochResult], None]
    ended: Callable[[TrialRow], None]


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def auto_workers(device: str) -> int:
    """How many workers pay: one a core, up to a limit, on a CPU; one on anything else."""
    return min(cores(), MAX_AUTO) if device == "cpu" else 1


def run_workers(task: Task, count: int, candidates: int, listener: Listener) -> None:
    """Let ``count`` processes train ``candidates`` candidates between them.

    Raises `NoResultError` where the space has no further candidate within the budget, and
    `RuntimeError` with a worker's traceback where one broke. Interrupted, every worker puts its
    candidate back before the interruption goes on.
    """
    context = multiprocessing.get_context("spawn")
    claims = context.Value("i", candidates)
    events: Queue[tuple[str, Any]] = context.Queue()
    threads = max(1, cores() // count)
    workers = [
        context.Process(target=_work, args=(task, number, threads, claims, events), daemon=True)
        for number in range(min(count, candidates))
    ]
    for worker in workers:
        worker.start()
    try:
        _listen(workers, events, listener)
    except BaseException:
        for worker in workers:
            worker.terminate()
        raise
    finally:
        _join(workers)


def _listen(workers: list[SpawnProcess], events: Queue[tuple[str, Any]], listener: Listener) -> None:
    """Pass events on until every worker is done."""
    done, no_result = 0, ""
    while done < len(workers):
        try:
            kind, content = events.get(timeout=1.0)
        except queue.Empty:
            if not any(worker.is_alive() for worker in workers) and events.empty():
                raise RuntimeError(
                    "a worker ended without a word (was it killed, or out of memory?)"
                ) from None
            continue
        if kind == "candidate":
            listener.candidate(*content)
        elif kind == "epoch":
            listener.epoch(*content)
        elif kind == "ended":
            listener.ended(content)
        elif kind == "no result":
            done, no_result = done + 1, content
        elif kind == "broken":
            raise RuntimeError(f"a worker broke:\n{content}")
        else:
            done += 1
    if no_result:
        raise NoResultError(no_result)


def _join(workers: list[SpawnProcess]) -> None:
    """Wait for the workers to end, and end those that do not."""
    deadline = time.monotonic() + STOP_WITHIN
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
        if worker.is_alive():
            worker.kill()


def _work(
    task: Task, number: int, threads: int, claims: Synchronized[int], events: Queue[tuple[str, Any]]
) -> None:
    """One worker's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _search(task, number, threads, claims, events)
        events.put(("done", None))
    except KeyboardInterrupt:
        events.cancel_join_thread()  # nobody listens any more
    except NoResultError as error:
        events.put(("no result", str(error)))
    except Exception:
        events.put(("broken", traceback.format_exc()))


def _search(
    task: Task, number: int, threads: int, claims: Synchronized[int], events: Queue[tuple[str, Any]]
) -> None:
    import torch

    from .data import load
    from .objective import Objective, Watcher
    from .results import trial_row
    from .study import load_study, search

    torch.set_num_threads(threads)
    device = torch.device(task.device)
    learn, choose = (part.to(device) for part in load(task.dataset, task.data_dir).split())
    parent = multiprocessing.parent_process()

    def epoch(trial: int, result: EpochResult) -> None:
        if parent is not None and not parent.is_alive():
            raise KeyboardInterrupt
        events.put(("epoch", (trial, result)))

    def claim() -> bool:
        with claims.get_lock():
            claims.value -= 1
            return claims.value >= 0

    watcher = Watcher(lambda trial, cost: events.put(("candidate", (trial, cost))), epoch)
    search(
        load_study(task.storage, task.study),
        Objective(task.space, task.budget, task.recipe, learn, choose, task.seed, watcher),
        claim,
        seed=f"{task.seed}-{number}",
        deadline=None if task.timeout is None else time.monotonic() + task.timeout,
        after_trial=lambda trial: events.put(("ended", trial_row(trial))),
    )
