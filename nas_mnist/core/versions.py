"""The versions that a result was computed with."""

from __future__ import annotations

import contextlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("nas-mnist", "torch", "torchvision", "llvmlite", "numpy", "optuna")


def versions() -> dict[str, str]:
    """Python's and the packages' versions by name; in a checkout also its ``commit``."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found | ({"commit": commit} if (commit := _commit()) else {})


def _commit() -> str:
    """The commit of the checkout that the package runs from; empty without a checkout or Git."""
    package = Path(__file__).parents[1]
    if not (package.parent / ".git").exists():
        return ""
    command = ["git", "-C", str(package), "describe", "--always", "--dirty", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=5).stdout.strip()
    return ""
