"""Compiles kernels for CUDA and launches them; the processor can run them instead, to test them."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..kernels.compile import ROW, Call, CallList, DType, check_call, kernel_name
from .writer import WARP, WARPS_PER_BLOCK, BlockWriter, ptx


def runs_on(device: torch.device) -> bool:
    """Whether a device runs such kernels: NVIDIA's, and the one that is in use."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return device.index is None or device.index == torch.cuda.current_device()


class CudaDType(DType):
    """The dtype of CUDA's kernels, and their device; on a CPU the processor runs them, slowly, in tests."""

    writer: ClassVar = BlockWriter
    lanes: ClassVar = WARP

    def per_model(self, models: int, *tensors: Tensor) -> list[int]:
        """For every tensor its address, and the bytes from model to model."""
        strides = [one.numel() // models * one.element_size() for one in tensors]
        return [x for one, stride in zip(tensors, strides, strict=True) for x in (one.data_ptr(), stride)]

    def compile(self, write: Callable[[Any], None], lanes: int) -> tuple[int, int]:
        """Compile a kernel. Returns the driver's handle (on a CPU an address) and the argument count."""
        if self.device.type != "cuda":
            return super().compile(write, lanes)
        code, arguments = ptx(write, self.number, lanes, torch.cuda.get_device_capability(self.device))
        return _driver().load(code, kernel_name(write)), arguments


class Launch:
    """A kernel with its arguments. It adds two: the number of chunks, and of a model's batch tiles."""

    def __init__(
        self,
        dtype: CudaDType,
        call: Call,
        items: int,
        tiles: int,
        chunks: int = 1,
        models: int = 1,
    ) -> None:
        """For ``items`` iterations of `parallel_for`, the batch ``tiles`` of all models, and chunks of rows.

        Raises `ValueError` if the kernel takes another number of arguments.
        """
        kernel, *arguments = call
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
