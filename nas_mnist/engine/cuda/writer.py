"""Kernels for CUDA: a warp's 32 threads are a vector's lanes, 32 images side by side.

So what is written for a processor's vectors (`writer.Writer`) is a kernel for CUDA, too. What differs is who
does the work: there a few threads, one group of images after the other; here thousands of warps at once, of
which each does one turn of the outermost loops (`spread`), for one group, and for some rows of its maps.
LLVM makes PTX of a kernel, and the driver the machine's code: nobody needs a compiler, nor cuDNN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import binding, ir

from ..vectors import ROW, optimised
from ..writer import FLOATS, INDEX, LANE, Value, Writer

WARP = 32  # threads
TOGETHER = 4  # warps a block
_GLOBAL = 1  # memory that all threads share, in LLVM's terms
_NEWEST = (9, 0)  # PTX for it runs on what is newer
_EVERYONE = ir.Constant(LANE, -1)


class WideWriter(Writer):
    """Writes kernels that run as parts: a group of images, and some rows of its maps.

    A part's number counts the rows first, then a network's groups, then networks side by side.
    """

    beside = (4, 2, 1)

    def __init__(self, module: ir.Module, name: str, kind: np.dtype[Any], lanes: int) -> None:
        super().__init__(module, name, kind, lanes)
        self.part = self.group
        self.chunks, a_copy = self.argument(), self.argument()
        self.group, self.chunk = self.divided(self.part, self.chunks)
        self.copy, self.group_of_copy = self.divided(self.group, a_copy)

    def divided(self, one: ir.Value, other: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Quotient and remainder, of numbers below 2 ** 31."""
        short = [self.builder.trunc(value, LANE) for value in (one, other)]
        found = self.builder.udiv(*short), self.builder.urem(*short)
        quotient, rest = (self.builder.zext(value, INDEX) for value in found)
        return quotient, rest

    def of_copy(self) -> Value:
        return self.add(self.argument(), self.mul(self.copy, self.argument()))

    def of_part(self) -> Value:
        return self.add(self.argument(), self.mul(self.part, self.argument()))

    @contextmanager
    def rows(self, height: Value) -> Iterator[Value]:
        most = self.add(height, self.chunks, -1)
        each, _ = self.divided(most, self.chunks)
        start = self.mul(self.chunk, each)
        with self.loop(self.smaller(self.add(start, each), height), start) as row:
            yield row

    def add_up(self, value: ir.Value, address: Value, offset: Value = 0) -> None:
        """Put the sum of all lanes to a number in memory: every part has its own."""
        self.builder.store(self._sum(value), self._place(address, offset, self.number))

    def add_up_wide(self, value: ir.Value, address: Value, offset: Value = 0) -> None:
        """Put the sum of all lanes to a float64 in memory."""
        self.builder.store(self._wide_sum(value), self._wide_place(address, offset))


class WarpWriter(WideWriter):
    """Writes them for CUDA; in kernels of one lane, all threads of a warp do the same."""

    space = _GLOBAL

    def _vector_type(self) -> ir.Type:
        return self.number

    def _begin(self, name: str) -> None:
        kind = ir.FunctionType(ir.VoidType(), [INDEX] * ROW)
        self.function = function = ir.Function(self.module, kind, name)
        function.calling_convention = "ptx_kernel"
        self.builder = ir.IRBuilder(function.append_basic_block())
        self.thread = self._register("tid.x")
        warps = self.builder.mul(self._register("ctaid.x"), ir.Constant(INDEX, TOGETHER))
        self.item = self.builder.add(warps, self._register("tid.y"))
        self.items = self.builder.mul(self._register("nctaid.x"), ir.Constant(INDEX, TOGETHER))
        self.group = self._register("ctaid.y")

    def _register(self, name: str) -> ir.Value:
        called = f"llvm.nvvm.read.ptx.sreg.{name}"
        kind = ir.FunctionType(LANE, [])
        function = self.module.globals.get(called) or ir.Function(self.module, kind, called)
        return self.builder.zext(self.builder.call(function, []), INDEX)

    def argument(self) -> ir.Value:
        self._taken += 1
        return self.function.args[self._taken - 1]

    @contextmanager
    def spread(self, *counts: Value) -> Iterator[list[Value]]:
        whole: Value = 1
        for count in counts:
            whole = self.mul(whole, count)
        with self.loop(whole, self.item, self.items) as item:
            rest: Value = item
            places: list[Value] = []
            for count in reversed(counts[1:]):
                rest, place = self.divided(rest, self.whole(count))
                places.insert(0, place)
            yield [rest, *places]

    def total(self, count: Value, term: Callable[[Value], ir.Value]) -> ir.Value:
        total = self.variable(self.zero)
        with self.loop(count, self.thread, WARP) as at:
            self.increase(total, term(at))
        return self._sum(self.get(total))

    # A vector is one number a thread.

    def load(self, address: Value, offset: Value = 0) -> ir.Value:
        return self.builder.load(self._lane_of(address, offset), align=self._align)

    def store(self, value: ir.Value, address: Value, offset: Value = 0) -> None:
        self._meet()
        self.builder.store(value, self._lane_of(address, offset), align=self._align)

    def store_of(self, kind: np.dtype[Any], value: ir.Value, address: Value, offset: Value = 0) -> None:
        self._meet()
        super().store_of(kind, value, address, offset)

    def _meet(self) -> None:
        """Where all threads write the same number: none does before all have read what was there."""
        if self.lanes == 1:
            name, kind = "llvm.nvvm.bar.warp.sync", ir.FunctionType(ir.VoidType(), [LANE])
            function = self.module.globals.get(name) or ir.Function(self.module, kind, name)
            self.builder.call(function, [_EVERYONE])

    def _lane_of(self, address: Value, offset: Value) -> ir.Value:
        place = self._place(address, offset, self.number)
        return place if self.lanes == 1 else self.builder.gep(place, [self.thread], inbounds=True)

    def bytes_at(self, address: Value, offsets: ir.Value, count: int) -> list[ir.Value]:
        start = self.builder.inttoptr(self.whole(address), ir.IntType(8).as_pointer(self.space))
        first = self.builder.gep(start, [offsets])
        places = [self.builder.gep(first, [ir.Constant(LANE, number)]) for number in range(count)]
        return [self.builder.uitofp(self.builder.load(place), self.number) for place in places]

    def from_anywhere(self, addresses: Value, offset: Value) -> ir.Value:
        place = self.read_whole(addresses, self.add(offset, self.thread))
        return self.builder.load(self.builder.inttoptr(place, self.number.as_pointer(self.space)))

    def gathered(self, kind: ir.Type, address: Value, places: ir.Value) -> ir.Value:
        start = self.builder.inttoptr(self.whole(address), kind.as_pointer(self.space))
        value = self.builder.load(self.builder.gep(start, [places]))
        return self.builder.trunc(value, LANE) if kind == INDEX else value

    def count_from(self, start: Value) -> ir.Value:
        return self.builder.trunc(self.add(start, self.thread), LANE)

    def whole_of(self, value: ir.Value) -> ir.Value:
        return self.builder.fptosi(value, LANE)

    def _one_of(self, kind: np.dtype[Any]) -> ir.Type:
        return FLOATS[kind]

    def _everywhere(self, number: ir.Value) -> ir.Value:
        return number

    def constant(self, value: float) -> ir.Value:
        return ir.Constant(self.number, value)

    def power_of_two(self, value: ir.Value) -> ir.Value:
        return self._approximate("ex2", value)

    def binary_logarithm(self, value: ir.Value) -> ir.Value:
        return self._approximate("lg2", value)

    def _approximate(self, name: str, value: ir.Value) -> ir.Value:
        """A function of float32 that the device computes to about the last digit."""
        name, kind = f"llvm.nvvm.{name}.approx.f", ir.FunctionType(self.number, [self.number])
        function = self.module.globals.get(name) or ir.Function(self.module, kind, name)
        return self.builder.call(function, [value])

    def _intrinsic(self, name: str, kind: ir.FunctionType) -> ir.Function:
        name = f"llvm.{name}.{'f64' if isinstance(self.number, ir.DoubleType) else 'f32'}"
        return self.module.globals.get(name) or ir.Function(self.module, kind, name)

    def _sum(self, value: ir.Value) -> ir.Value:
        for apart in (16, 8, 4, 2, 1):
            value = self.plus(value, self._from(value, apart))
        return value

    def _from(self, value: ir.Value, apart: int) -> ir.Value:
        """The number of the thread whose place differs by so much in the binary system."""
        if isinstance(self.number, ir.FloatType):
            bits = self.builder.bitcast(value, LANE)
            return self.builder.bitcast(self._shuffled(bits, apart), self.number)
        bits = self.builder.bitcast(value, INDEX)
        halves = [self.builder.trunc(self.builder.lshr(bits, ir.Constant(INDEX, by)), LANE) for by in (0, 32)]
        low, high = (self.builder.zext(self._shuffled(half, apart), INDEX) for half in halves)
        whole = self.builder.or_(low, self.builder.shl(high, ir.Constant(INDEX, 32)))
        return self.builder.bitcast(whole, self.number)

    def _shuffled(self, bits: ir.Value, apart: int) -> ir.Value:
        name, kind = "llvm.nvvm.shfl.sync.bfly.i32", ir.FunctionType(LANE, [LANE] * 4)
        function = self.module.globals.get(name) or ir.Function(self.module, kind, name)
        return self.builder.call(
            function, [_EVERYONE, bits, ir.Constant(LANE, apart), ir.Constant(LANE, WARP - 1)]
        )


def name_of(write: Callable[[Any], None]) -> str:
    """The kernel's name: that of the function that writes it, or of the one around it."""
    return write.__qualname__.partition(".")[0]


def ptx(write: Callable[[Any], None], number: np.dtype[Any], lanes: int, capability: tuple[int, int]) -> str:
    """A kernel's code for CUDA devices from this compute capability on."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    triple = "nvptx64-nvidia-cuda"
    machine = binding.Target.from_triple(triple).create_target_machine(
        cpu="sm_{}{}".format(*min(capability, _NEWEST)), opt=3
    )
    module = ir.Module()
    module.triple, module.data_layout = triple, str(machine.target_data)
    writer = WarpWriter(module, name_of(write), number, lanes)
    write(writer)
    writer.end()
    return str(machine.emit_assembly(optimised(module, machine)))
