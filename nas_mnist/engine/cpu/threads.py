"""Threads for call lists: torch's own, which are reserved while the kernels run."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from ..kernels.compile import CallList
from .worker import WorkerThread


def run_parallel(call_lists: Sequence[CallList], tiles: int, memory: object) -> None:
    """Run each thread's call list for its part of the batch tiles, which work on ``memory``.

    Returns when all are done. If the wait for the others is interrupted, they keep the memory until they are
    done.
    """
    if len(call_lists) == 1:
        call_lists[0].run(0, tiles)
        return
    bounds = [tiles * number // len(call_lists) for number in range(len(call_lists) + 1)]
    workers = _workers(len(call_lists) - 1)
    parts = zip(workers, call_lists[1:], bounds[1:-1], bounds[2:], strict=True)
    try:
        for worker, call_list, start, stop in parts:
            worker.begin(call_list, start, stop, memory)
        call_lists[0].run(0, bounds[1])
    finally:
        for worker in workers:
            worker.finish()


# Of a thread that runs call lists: its ``workers``, and how many of torch's threads are ``reserved``.
_local = threading.local()


def _workers(count: int) -> list[WorkerThread]:
    if not hasattr(_local, "workers"):
        _local.workers = []
    workers: list[WorkerThread] = _local.workers
    workers.extend(WorkerThread() for _ in range(count - len(workers)))
    return workers[:count]


@contextmanager
def reserve_threads() -> Iterator[None]:
    """Give torch's threads to call lists: torch's own would wait for work in a loop, and take the cores."""
    if getattr(_local, "reserved", 0):
        yield
        return
    count = torch.get_num_threads()
    try:
        _local.reserved = count
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(count)
        _local.reserved = 0


def thread_count() -> int:
    """The number of threads for call lists."""
    return getattr(_local, "reserved", 0) or torch.get_num_threads()


def _forget_workers() -> None:
    """In a forked process, which has no thread but the one that forked."""
    _local.__dict__.pop("workers", None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)
