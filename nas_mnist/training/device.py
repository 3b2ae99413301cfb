"""Which device to train on."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from ..core.compat import matrix_units
from ..core.cores import available_cores
from ..core.errors import InputError, choices
from ..core.process_pool import threads_per_process

DEVICES = ("auto", "cpu", "cuda", "mps")


def pick_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is the first available of CUDA, MPS and the CPU.

    Torch counts the machine's cores: from here on it uses no more threads than a container's quota allows.
    Raises `InputError` for a device that is unknown or not available.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(known for known in ("cuda", "mps", "cpu") if available[known])
    if name not in available:
        raise InputError(f"device: {name!r} is not known {choices(name, DEVICES)}")
    if not available[name]:
        here = ", ".join(kind for kind, there in available.items() if there)
        raise InputError(f"device: {name!r} is not on this machine (here: {here})")
    torch.set_num_threads(min(torch.get_num_threads(), available_cores()))
    return torch.device(name)


def describe_device(device: torch.device, workers: int = 1) -> str:
    """The device and how processes share it, for reports."""
    sharing = [f"{workers} workers"] if workers > 1 else []
    if device.type == "cuda":
        sharing.insert(0, torch.cuda.get_device_name(device))
    if device.type == "cpu":
        threads = threads_per_process(workers) if workers > 1 else torch.get_num_threads()
        sharing.append(f"{threads} thread{'s' * (threads > 1)}{' each' * (workers > 1)}")
    return f"{device.type} ({', '.join(sharing)})" if sharing else device.type


def describe_machine(device: torch.device, workers: int = 1) -> str:
    """The device, and on a CPU the processor, for reports."""
    return describe_device(device, workers) + (f", {describe_processor()}" if device.type == "cpu" else "")


def describe_processor() -> str:
    """The processor's name as far as the system knows it, its cores, and its unit for bfloat16."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {available_cores()} cores, {bfloat16_unit() or 'no'} bfloat16"


def bfloat16_unit() -> str | None:
    """The unit that multiplies bfloat16 on this processor, if there is one."""
    return next((name for name, available in matrix_units().items() if available), None)
