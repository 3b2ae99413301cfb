"""Threads for programs of kernels, which are torch's own, lent."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from .helpers import Helper
from .vectors import Program


def run(programs: Sequence[Program], groups: int, owner: object) -> None:
    """Each thread's program, for its part of the groups; ``owner`` has the memory that they work on.

    Returns when all are done, and raises no sooner, unless it is interrupted while it waits for others: even
    then the memory stays until no thread works on it.
    """
    if len(programs) == 1:
        programs[0].run(0, groups)
        return
    bounds = [groups * number // len(programs) for number in range(len(programs) + 1)]
    helpers = _helpers(len(programs) - 1)
    parts = zip(helpers, programs[1:], bounds[1:-1], bounds[2:], strict=True)
    try:
        for helper, program, start, stop in parts:
            helper.begin(program, start, stop, owner)
        programs[0].run(0, bounds[1])
    finally:
        for helper in helpers:
            helper.finish()


_own = threading.local()  # ``helpers``: of a thread that runs programs


def _helpers(count: int) -> list[Helper]:
    if not hasattr(_own, "helpers"):
        _own.helpers = []
    helpers: list[Helper] = _own.helpers
    helpers.extend(Helper() for _ in range(count - len(helpers)))
    return helpers[:count]


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


def _forget() -> None:
    """In a forked process, whose thread is the one that forked: helpers did not come along."""
    _own.__dict__.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
