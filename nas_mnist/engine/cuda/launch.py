"""Kernels of `writer` are compiled and launched: by CUDA's driver, or to try them by the processor."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from torch import Tensor

from ..vectors import ROW, Program, compiled
from .writer import TOGETHER, WARP, WideWriter, name_of, ptx


def runs_on(device: torch.device) -> bool:
    """Whether a device runs such kernels: CUDA, by NVIDIA, and the one that is in use."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return device.index is None or device.index == torch.cuda.current_device()


@dataclass(frozen=True)
class Warps:
    """The kind of numbers of such kernels."""

    number: np.dtype[Any]
    device: torch.device  # CUDA; on a CPU the processor does what CUDA would do, slowly
    lanes: int = WARP

    def wide(self) -> Warps:
        """The same for float64."""
        return replace(self, number=np.dtype(np.float64))

    def zeros(self, shape: Sequence[int]) -> Tensor:
        """A tensor of zeros that kernels can work on."""
        kind = torch.float64 if self.number.itemsize == 8 else torch.float32
        return torch.zeros(tuple(shape), dtype=kind, device=self.device)

    def compile(self, write: Callable[[Any], None], lanes: int) -> int:
        """Compile what ``write`` writes: a function of the driver, or the address of a kernel."""
        lanes = lanes or self.lanes
        if self.device.type == "cuda":
            capability = torch.cuda.get_device_capability(self.device)
            return _driver().load(ptx(write, self.number, lanes, capability), name_of(write))
        module = ir.Module()
        writer = WideWriter(module, "kernel", self.number, lanes)
        write(writer)
        writer.end()
        (address,) = compiled(module, "kernel")
        return address


class Launch:
    """A kernel with its arguments."""

    def __init__(
        self, kind: Warps, kernel: int, arguments: Sequence[int], items: int, groups: int, chunks: int = 1,
        copies: int = 1,
    ) -> None:  # fmt: skip
        """For so many turns of `Writer.spread`, ``groups`` in all ``copies``, and ``chunks`` of rows."""
        row = [chunks, groups // copies, *arguments]
        assert len(row) < ROW
        self.parts = groups * chunks
        self.program: Program | None = None
        if kind.device.type != "cuda":
            self.program = Program([[kernel, *row]])
            return
        values = (ctypes.c_int64 * ROW)(*row)
        start = ctypes.addressof(values)
        places = (ctypes.c_void_p * ROW)(*(start + 8 * at for at in range(ROW)))
        self.memory = values
        self.how = kernel, -(-items // TOGETHER), self.parts, 1, WARP, TOGETHER, 1, 0
        self.places = places


def run(launches: Sequence[Launch]) -> None:
    """One after the other, on CUDA's current stream."""
    if not launches:
        return
    if launches[0].program is not None:
        for launch in launches:
            assert launch.program is not None
            launch.program.run(0, launch.parts)
        return
    driver, stream = _driver(), torch.cuda.current_stream().cuda_stream
    for launch in launches:
        driver.check(driver.library.cuLaunchKernel(*launch.how, stream, launch.places, None))


class _Driver:
    """CUDA's driver."""

    def __init__(self) -> None:
        torch.cuda.init()
        torch.zeros(1, device="cuda")  # so that there is a context
        self.library = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        whole, place = ctypes.c_uint, ctypes.c_void_p
        self.library.cuLaunchKernel.argtypes = [place, *[whole] * 7, place, place, place]

    def load(self, code: str, name: str) -> int:
        """The kernel of this name in PTX."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self.check(self.library.cuModuleLoadData(ctypes.byref(module), code.encode()))
        self.check(self.library.cuModuleGetFunction(ctypes.byref(function), module, name.encode()))
        assert function.value is not None
        return function.value

    def check(self, result: int) -> None:
        """Raise `torch.AcceleratorError` where the driver says that it failed."""
        if result:
            text = ctypes.c_char_p()
            self.library.cuGetErrorString(result, ctypes.byref(text))
            raise torch.AcceleratorError(f"CUDA error: {(text.value or b'').decode() or result}")


@functools.cache
def _driver() -> _Driver:
    return _Driver()
