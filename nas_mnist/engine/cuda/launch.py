"""Compiles kernels for CUDA and launches them; the processor can run them instead, to test them."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from torch import Tensor

from ..kernels.compile import ROW, CallList, check_call, compile_module, kernel_name
from .writer import WARP, WARPS_PER_BLOCK, BlockWriter, ptx


def runs_on(device: torch.device) -> bool:
    """Whether a device runs such kernels: NVIDIA's, and the one that is in use."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return device.index is None or device.index == torch.cuda.current_device()


@dataclass(frozen=True)
class CudaDType:
    """The dtype of CUDA's kernels, and their device."""

    numpy: np.dtype[Any]
    device: torch.device  # on a CPU the processor runs the kernels block by block, slowly
    lanes: int = WARP

    def as_float64(self) -> CudaDType:
        """The same device's float64."""
        return replace(self, numpy=np.dtype(np.float64))

    def zeros(self, shape: Sequence[int]) -> Tensor:
        """A tensor of zeros that kernels can work on."""
        dtype = torch.float64 if self.numpy.itemsize == 8 else torch.float32
        return torch.zeros(tuple(shape), dtype=dtype, device=self.device)

    def compile(self, write: Callable[[Any], None], lanes: int) -> tuple[int, int]:
        """Compile a kernel. Returns the driver's handle (on a CPU an address) and the argument count."""
        lanes = lanes or self.lanes
        if self.device.type == "cuda":
            capability = torch.cuda.get_device_capability(self.device)
            code, arguments = ptx(write, self.numpy, lanes, capability)
            return _driver().load(code, kernel_name(write)), arguments
        writer = BlockWriter(ir.Module(), "kernel", self.numpy, lanes)
        write(writer)
        writer.finish()
        (address,) = compile_module(writer.module, "kernel")
        return address, writer.argument_count


class Launch:
    """A kernel with its arguments. It adds two: the number of chunks, and of a model's batch tiles."""

    def __init__(
        self,
        dtype: CudaDType,
        kernel: int,
        arguments: Sequence[int],
        items: int,
        tiles: int,
        chunks: int = 1,
        models: int = 1,
    ) -> None:
        """For ``items`` iterations of `parallel_for`, the batch ``tiles`` of all models, and chunks of rows.

        Raises `ValueError` if the kernel takes another number of arguments.
        """
        call = [kernel, chunks, tiles // models, *arguments]
        self.blocks = tiles * chunks
        self.calls: CallList | None = None  # on a CPU
        if dtype.device.type != "cuda":
            self.calls = CallList([call])
            return
        check_call(call)
        self.values = (ctypes.c_int64 * ROW)(*call[1:])
        start = ctypes.addressof(self.values)
        self.pointers = (ctypes.c_void_p * ROW)(*(start + 8 * at for at in range(ROW)))
        # The driver's arguments: grid (x, y, z), block (x, y, z), shared memory in bytes.
        grid, block = (-(-items // WARPS_PER_BLOCK), self.blocks, 1), (WARP, WARPS_PER_BLOCK, 1)
        self.shape = kernel, *grid, *block, 0


def run(launches: Sequence[Launch]) -> None:
    """Launch kernels in this order, on CUDA's current stream."""
    if not launches:
        return
    if launches[0].calls is not None:
        for launch in launches:
            assert launch.calls is not None
            launch.calls.run(0, launch.blocks)
        return
    driver, stream = _driver(), torch.cuda.current_stream().cuda_stream
    for launch in launches:
        driver.check(driver.library.cuLaunchKernel(*launch.shape, stream, launch.pointers, None))


class _Driver:
    """CUDA's driver."""

    def __init__(self) -> None:
        torch.cuda.init()
        torch.zeros(1, device="cuda")  # makes a context
        self.library = ctypes.CDLL("libcuda.so.1")
        number, pointer = ctypes.c_uint, ctypes.c_void_p
        self.library.cuLaunchKernel.argtypes = [pointer, *[number] * 7, pointer, pointer, pointer]

    def load(self, code: str, name: str) -> int:
        """The handle of the kernel with this name in PTX."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self.check(self.library.cuModuleLoadData(ctypes.byref(module), code.encode()))
        self.check(self.library.cuModuleGetFunction(ctypes.byref(function), module, name.encode()))
        assert function.value is not None
        return function.value

    def check(self, result: int) -> None:
        """Raise `torch.AcceleratorError` if the driver reports an error."""
        if result:
            text = ctypes.c_char_p()
            self.library.cuGetErrorString(result, ctypes.byref(text))
            raise torch.AcceleratorError(f"CUDA error: {(text.value or b'').decode() or result}")


@functools.cache
def _driver() -> _Driver:
    return _Driver()
