"""Compiles kernels for this processor, and calls them.

A kernel is a function of machine code, ``kernel(arguments, batch_tile)``. Its arguments are integers of 64
bits in an array; some are addresses. A `CallList` is a table of kernels with their arguments. One call from
Python runs all of it, for a range of batch tiles. Kernels are written with `Writer`; LLVM compiles them.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Concatenate, ParamSpec, Self, TypeAlias, TypeVar

import numpy as np
import torch
from llvmlite import binding, ir
from torch import Tensor

from .control import for_loop
from .values import INDEX, INDICES
from .writer import Writer

_CPU = torch.device("cpu")
binding.initialize_native_target()
binding.initialize_native_asmprinter()
_FEATURES = binding.get_host_cpu_features()

LANES = 16 if _FEATURES.get("avx512f") else 8  # numbers of a vector, and images of a batch tile
ROW = 32  # integers of a call: the kernel's address and its arguments, at most

Call: TypeAlias = list[int]  # a kernel's address and its arguments
P = ParamSpec("P")
AnyWriter = TypeVar("AnyWriter", bound=Writer)

KERNELS: dict[int, tuple[str, int]] = {}  # name and argument count, by address or CUDA's handle
_engines: list[Any] = []  # compiled code lives as long as they do


@dataclass(frozen=True)
class DType:
    """The dtype of a kernel's numbers, and the machine that runs it: this processor."""

    number: torch.dtype  # float32 or float64
    device: torch.device = _CPU
    writer: ClassVar[type[Writer]] = Writer

    @property
    def lanes(self) -> int:
        """Numbers of a vector, and images of a batch tile."""
        return LANES

    def as_float64(self) -> Self:
        """The same machine's float64."""
        return replace(self, number=torch.float64)

    def zeros(self, shape: Sequence[int]) -> Tensor:
        """A tensor of zeros that kernels can work on."""
        return torch.zeros(tuple(shape), dtype=self.number, device=self.device)

    def per_model(self, models: int, *tensors: Tensor) -> list[int]:
        """Arguments of a kernel for tensors of which each of the ``models`` has its part."""
        del models  # one, on a CPU
        return [one.data_ptr() for one in tensors]

    def compile(self, write: Callable[[Any], None], lanes: int) -> tuple[int, int]:
        """Compile a kernel. Returns its address (on CUDA the driver's handle) and its argument count."""
        writer = self.writer(ir.Module(), "kernel", self.number, lanes)
        write(writer)
        writer.finish()
        (address,) = compile_module(writer.module, "kernel")
        return address, writer.argument_count


def compile_kernel(write: Callable[[Any], None], dtype: DType, lanes: int = 0) -> int:
    """Compile the kernel that ``write`` writes, with vectors of ``lanes`` numbers (0: ``dtype.lanes``).

    Returns its address, or its handle on CUDA. `KERNELS` then knows it.
    """
    kernel, count = dtype.compile(write, lanes or dtype.lanes)
    assert count < ROW
    KERNELS[kernel] = f"{write.__module__.rpartition('.')[2]}.{kernel_name(write)}", count
    return kernel


def compiled(
    lanes: int = 0,
) -> Callable[[Callable[Concatenate[AnyWriter, P], None]], Callable[Concatenate[DType, P], int]]:
    """Decorates a function that writes a kernel; then it takes a dtype instead of the writer.

    It returns the kernel's address or handle, and compiles a kernel once.
    """

    def decorate(write: Callable[Concatenate[AnyWriter, P], None]) -> Any:
        @functools.cache
        def compile_once(dtype: DType, *args: P.args, **kwargs: P.kwargs) -> int:
            @functools.wraps(write)
            def with_arguments(w: Any) -> None:
                write(w, *args, **kwargs)

            return compile_kernel(with_arguments, dtype, lanes)

        return compile_once

    return decorate


def kernel_name(write: Callable[[Any], None]) -> str:
    """The name of the function that writes a kernel, or of the function around it."""
    return write.__qualname__.partition(".")[0]


def compile_module(module: ir.Module, *names: str) -> list[int]:
    """Compile a module for this processor. Returns the addresses of these functions."""
    target, name = binding.Target.from_default_triple(), binding.get_host_cpu_name()
    machine = target.create_target_machine(cpu=name, features=_FEATURES.flatten(), opt=3)
    engine = binding.create_mcjit_compiler(optimised(module, machine), machine)
    engine.finalize_object()
    _engines.append(engine)
    return [int(engine.get_function_address(name)) for name in names]


def optimised(module: ir.Module, machine: Any) -> Any:
    """The verified module after LLVM's optimisations for a machine."""
    parsed = binding.parse_assembly(str(module))
    parsed.verify()
    tuning = binding.create_pipeline_tuning_options(speed_level=2)
    tuning.loop_unrolling = tuning.slp_vectorization = tuning.loop_vectorization = False
    builder = binding.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(parsed, builder)
    return parsed


def declare_runner(module: ir.Module) -> ir.Function:
    """A function ``run(table, calls, start, stop)`` that makes all calls of a table, tile by tile."""
    ir_types = [INDICES, INDEX, INDEX, INDEX]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), ir_types), "run")
    kernel = ir.FunctionType(ir.VoidType(), [INDICES, INDEX]).as_pointer()
    builder = ir.IRBuilder(function.append_basic_block())
    table, calls, start, stop = function.args
    zero, one = ir.Constant(INDEX, 0), ir.Constant(INDEX, 1)
    with for_loop(builder, stop, start, one) as tile, for_loop(builder, calls, zero, one) as call:
        place = builder.gep(table, [builder.mul(call, ir.Constant(INDEX, ROW))])
        called = builder.inttoptr(builder.load(place), kernel)
        builder.call(called, [builder.gep(place, [one]), tile])
    builder.ret_void()
    return function


@functools.cache
def runner() -> Callable[[int, int, int, int], None]:
    """That function, compiled."""
    module = ir.Module()
    declare_runner(module)
    signature = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
    return signature(*compile_module(module, "run"))  # releases Python's lock while it runs


def check_call(call: Sequence[int]) -> None:
    """Raise `ValueError` if the kernel is unknown or takes another number of arguments."""
    kernel, *arguments = call
    if kernel not in KERNELS:
        raise ValueError(f"{kernel:#x}: not the address of a kernel")
    name, count = KERNELS[kernel]
    if len(arguments) != count:
        raise ValueError(f"kernel {name}: {len(arguments)} arguments (it takes {count})")


class CallList:
    """Kernels with their arguments, to be called for every batch tile."""

    def __init__(self, calls: Sequence[Sequence[int]], *memory: object) -> None:
        """``memory``: objects that the addresses point to; they live as long as the list.

        Raises `ValueError` if a call has another number of arguments than its kernel takes.
        """
        self.memory = memory
        self.table = np.zeros((len(calls), ROW), np.int64)
        for row, call in zip(self.table, calls, strict=True):
            check_call(call)
            row[: len(call)] = call
        self.address_and_length = self.table.ctypes.data, len(self.table)

    def run(self, start: int = 0, stop: int = 1) -> None:
        """Make all calls for the batch tiles from ``start`` to before ``stop``."""
        runner()(*self.address_and_length, start, stop)
