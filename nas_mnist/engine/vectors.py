"""Loops over vectors of numbers, compiled while the program runs: nobody needs a compiler.

A kernel is a function of machine code, ``kernel(arguments, group)``: what it needs are whole numbers in an
array, addresses among them. A program is a table of kernels with their arguments, a row each, that runs for
a range of groups; calling one costs nothing in Python. Code is written with `Writer`, and
compiled for the processor at hand.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from llvmlite import binding, ir

from .writer import INDEX, INDICES, Writer, loop_in

binding.initialize_native_target()
binding.initialize_native_asmprinter()
_FEATURES = binding.get_host_cpu_features()

LANES = 16 if _FEATURES.get("avx512f") else 8  # numbers a vector, side by side: images of one group
ROW = 32  # numbers a row of a program has: a kernel's address and its arguments


_engines: list[Any] = []  # compiled code lives as long as they do
KERNELS: dict[int, str] = {}  # by address: the module and the function that wrote one


class Elsewhere(Protocol):
    """What numbers are of kernels that are compiled in another way."""

    @property
    def number(self) -> np.dtype[Any]:
        """Their type."""

    @property
    def lanes(self) -> int:
        """Numbers a vector."""

    def zeros(self, shape: Sequence[int]) -> Any:
        """A tensor of zeros that kernels can work on."""

    def compile(self, write: Callable[[Any], None], lanes: int) -> int:
        """Compile what ``write`` writes, with vectors of ``lanes`` numbers (0: `lanes`)."""

    def wide(self) -> Elsewhere:
        """The same for float64."""


Kind: TypeAlias = np.dtype[Any] | Elsewhere  # of a kernel's numbers


def number_of(kind: Kind) -> np.dtype[Any]:
    """Their type."""
    return kind if isinstance(kind, np.dtype) else kind.number


def compile_kernel(write: Callable[[Writer], None], kind: Kind, lanes: int = 0) -> int:
    """Compile what ``write`` writes, with vectors of ``lanes`` numbers (0: as many as usual); its address.

    Elsewhere than on a CPU, that is by what launches know it.
    """
    if not isinstance(kind, np.dtype):
        return kind.compile(write, lanes)
    module = ir.Module()
    writer = Writer(module, "kernel", kind, lanes or LANES)
    write(writer)
    writer.end()
    (address,) = compiled(module, "kernel")
    KERNELS[address] = f"{write.__module__.rpartition('.')[2]}.{write.__qualname__.partition('.')[0]}"
    return address


def compiled(module: ir.Module, *names: str) -> list[int]:
    """The addresses of a module's functions."""
    machine = _machine()
    engine = binding.create_mcjit_compiler(optimised(module, machine), machine)
    engine.finalize_object()
    _engines.append(engine)
    return [int(engine.get_function_address(name)) for name in names]


def optimised(module: ir.Module, machine: Any) -> Any:
    """A module, checked, as LLVM makes it for a machine."""
    parsed = binding.parse_assembly(str(module))
    parsed.verify()
    tuning = binding.create_pipeline_tuning_options(speed_level=2)
    tuning.loop_unrolling = tuning.slp_vectorization = tuning.loop_vectorization = False
    builder = binding.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(parsed, builder)
    return parsed


def _machine() -> Any:
    target, name = binding.Target.from_default_triple(), binding.get_host_cpu_name()
    return target.create_target_machine(cpu=name, features=_FEATURES.flatten(), opt=3)


def declare_runner(module: ir.Module) -> ir.Function:
    """A function of a module that runs a program's rows, one after the other, group by group."""
    kinds = [INDICES, INDEX, INDEX, INDEX]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), "run")
    kernel = ir.FunctionType(ir.VoidType(), [INDICES, INDEX]).as_pointer()
    build = ir.IRBuilder(function.append_basic_block())
    table, rows, start, stop = function.args
    none, one = ir.Constant(INDEX, 0), ir.Constant(INDEX, 1)
    with loop_in(build, stop, start, one) as group, loop_in(build, rows, none, one) as row:
        place = build.gep(table, [build.mul(row, ir.Constant(INDEX, ROW))])
        called = build.inttoptr(build.load(place), kernel)
        build.call(called, [build.gep(place, [one]), group])
    build.ret_void()
    return function


@functools.cache
def runner() -> Callable[[int, int, int, int], None]:
    """That function."""
    module = ir.Module()
    declare_runner(module)
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
    return kind(*compiled(module, "run"))  # gives Python's lock away while it runs


class Program:
    """Kernels with their arguments, to be run for every group."""

    def __init__(self, rows: Sequence[Sequence[int]], *memory: object) -> None:
        """``rows``: each an address of a kernel and its arguments; ``memory``: what they point to."""
        self.memory = memory
        self.table = np.zeros((len(rows), ROW), np.int64)
        for place, row in zip(self.table, rows, strict=True):
            place[: len(row)] = row
        self.where = self.table.ctypes.data, len(self.table)

    def run(self, start: int = 0, stop: int = 1) -> None:
        """Run all of it for the groups from ``start`` to before ``stop``."""
        runner()(*self.where, start, stop)
