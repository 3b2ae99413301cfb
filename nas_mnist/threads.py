"""Threads for programs of kernels, which are torch's own, lent."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache

import torch

from .vectors import Program


def run(programs: Sequence[Program], groups: int, owner: object) -> None:
    """Each thread's program, for its part of the groups; ``owner`` has the memory that they work on.

    Returns when all are done, and raises no sooner, unless it is interrupted a second time: even then the
    memory stays until no thread works on it.
    """
    if len(programs) == 1:
        programs[0].run(0, groups)
        return
    bounds = [groups * number // len(programs) for number in range(len(programs) + 1)]
    parts = list(zip(programs, bounds[:-1], bounds[1:], strict=True))
    others: list[Future[None]] = []
    try:
        for one, start, stop in parts[1:]:
            others.append(_pool(len(parts) - 1).submit(_work, one, start, stop, owner))
        _work(*parts[0], owner)
    finally:
        wait(others)


def _work(program: Program, start: int, stop: int, _: object) -> None:
    program.run(start, stop)


_lent = threading.local()  # ``threads``: torch's, while they are lent to programs


@contextmanager
def own_threads() -> Iterator[None]:
    """Give torch's threads to programs: torch's own would wait for work in a loop, and take the cores."""
    if getattr(_lent, "threads", 0):
        yield
        return
    count = torch.get_num_threads()
    try:
        _lent.threads = count
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(count)
        _lent.threads = 0


def threads() -> int:
    """How many threads programs have."""
    return getattr(_lent, "threads", 0) or torch.get_num_threads()


@cache
def _pool(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size)


if hasattr(os, "register_at_fork"):  # threads do not come along
    os.register_at_fork(after_in_child=_pool.cache_clear)
