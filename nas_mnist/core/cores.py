"""The processor cores that this process may use: of the machine, its affinity and its container's quota."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path


@functools.cache
def available_cores() -> int:
    """Processor cores that this process may use; of a quota of 1.5 cores two processes use all."""
    affine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(affine, cpu_quota())))


def cpu_quota(root: Path = Path("/")) -> float:
    """The lowest quota of this process's control groups and their parents, in cores; infinite without one.

    docs.kernel.org/admin-guide/cgroup-v2.html (``cpu.max``: quota and period in microseconds, or "max") and
    docs.kernel.org/scheduler/sched-bwc.html (version 1). ``root`` holds ``proc`` and ``sys``.
    """
    quotas = [math.inf]
    for folder in _group_folders(root):
        limit = _numbers(folder / "cpu.max")
        limit = limit or _numbers(folder / "cpu.cfs_quota_us") + _numbers(folder / "cpu.cfs_period_us")
        if len(limit) == 2 and min(limit) > 0:  # a quota of -1 is none
            quotas.append(limit[0] / limit[1])
    return min(quotas)


def _group_folders(root: Path) -> Iterator[Path]:
    """The folders of this process's control groups and of all their parents; some may not exist."""
    mounts = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        inside = Path(path.lstrip("/"))
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mount in [mounts / name for name in ("cpu", controllers)] if controllers else [mounts]:
            yield from (mount / part for part in (inside, *inside.parents))


def _numbers(file: Path) -> list[int]:
    """The numbers in a file; empty for a file with other words, and without the file."""
    words = _text(file).split()
    return [int(word) for word in words] if all(word.lstrip("-").isdecimal() for word in words) else []


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
