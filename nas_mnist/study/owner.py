"""The process that runs a trial: how it is stored, and whether it has ended."""

from __future__ import annotations

import functools
import hashlib
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OWNER = "owner"  # user attribute of a trial: the process that runs it, and when it was last seen
ABSENT_AFTER = 3_600  # seconds; many times an epoch, and more than the clocks of machines differ


def this_process() -> dict[str, Any]:
    """This process as stored in a trial.

    ``place``: the machine since its start; ``pid``; ``started``: clock ticks since boot, or None; ``seen``:
    now, in seconds since 1970.
    """
    return {
        "place": _place(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "seen": round(time.time()),
    }


def same_process(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two stored processes are the same one, seen at any time."""
    return all(one.get(name) == other.get(name) for name in ("place", "pid", "started"))


def is_gone(owner: Mapping[str, Any], absent_after: float = ABSENT_AFTER) -> bool:
    """Whether a stored process has ended.

    On this machine the system knows. A process of another machine counts as gone when it was not seen for
    ``absent_after`` seconds. So does one whose number exists on a system without ``/proc`` (macOS): by now
    the number may belong to another process.
    """
    is_absent = time.time() - float(owner.get("seen", 0)) > absent_after
    if owner.get("place") != _place():
        return is_absent
    pid = int(owner["pid"])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # the process exists and belongs to another user
    return is_absent if owner["started"] is None else bool(owner["started"] != _started(pid))


def is_alive(owner: Mapping[str, Any] | None) -> bool:
    """Whether a stored process certainly runs: on this machine, and not gone."""
    return owner is not None and owner.get("place") == _place() and not is_gone(owner)


@functools.cache
def _place() -> str:
    """The host's name, and a digest of the name, the boot and the process namespace.

    The namespace is needed because containers on one machine do not see each other's processes.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    parts = [socket.gethostname()]
    parts += [boot.read_text().strip()] if boot.is_file() else []
    parts += [str(namespace.readlink())] if namespace.is_symlink() else []
    return f"{parts[0]} {hashlib.sha256(' '.join(parts).encode()).hexdigest()[:12]}"


def _started(pid: int) -> str | None:
    """Start of a process in clock ticks since boot (Linux: ``man 5 proc``); None: unknown, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
