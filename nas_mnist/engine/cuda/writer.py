"""Writes kernels for CUDA: the 32 threads of a warp are the lanes of a vector.

So a kernel that is written for a CPU's vectors (`kernels.writer`) is a kernel for CUDA, too. The work is
divided in another way. A CPU has a few threads, each with one batch tile after the other. Here thousands of
warps run at once. Each runs one iteration of the outermost loops (`parallel_for`), for one batch tile and
some rows of its maps. LLVM makes PTX of a kernel, and the driver makes machine code of PTX: neither CUDA's
compiler nor cuDNN is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from llvmlite import binding, ir

from ..kernels.compile import ROW, kernel_name, optimised
from ..kernels.values import INDEX, LANE, Index, Int, IntVector, Vector, as_ir
from ..kernels.writer import Writer

WARP = 32  # threads
WARPS_PER_BLOCK = 4
_GLOBAL = 1  # LLVM's number of the memory that all threads share
_NEWEST = (9, 0)  # a newer device runs the PTX for this compute capability
_ALL_THREADS = ir.Constant(LANE, -1)


class BlockWriter(Writer):
    """Writes kernels that run as blocks: one batch tile and a chunk of its maps' rows, of one model.

    The first two arguments are the number of chunks, and of a model's batch tiles. A block's number counts
    the chunks first, then a model's batch tiles, then the models.
    """

    unroll = (4, 2, 1)

    def __init__(self, module: ir.Module, name: str, dtype: torch.dtype, lanes: int) -> None:
        super().__init__(module, name, dtype, lanes)
        self.block = self.batch_tile
        self.chunks, tiles_per_model = self.argument(), self.argument()
        self.batch_tile, self.chunk = self.divmod(self.block, self.chunks)
        self.model, self.model_tile = self.divmod(self.batch_tile, tiles_per_model)

    def divmod(self, one: Index, other: Int) -> tuple[Index, Index]:
        """Quotient and remainder, of integers below 2 ** 31."""
        short = [self.builder.trunc(as_ir(value), LANE) for value in (one, other)]
        found = self.builder.udiv(*short), self.builder.urem(*short)
        quotient, remainder = (self.index(self.builder.zext(value, INDEX)) for value in found)
        return quotient, remainder

    def per_model_ptr(self) -> Index:
        """The next two arguments: a pointer, and the bytes from model to model."""
        return self.argument() + self.model * self.argument()

    def per_block_ptr(self) -> Index:
        """The next two arguments: a pointer, and the bytes from block to block."""
        return self.argument() + self.block * self.argument()

    @contextmanager
    def rows(self, height: Int) -> Iterator[Index]:
        rows, _ = self.divmod(self.chunks + height - 1, self.chunks)
        start = self.chunk * rows
        with self.loop(self.minimum(start + rows, height), start) as row:
            yield row

    def _add(self, number: ir.Value, place: ir.Value) -> None:
        self.builder.store(number, place)  # every block has a place of its own


class WarpWriter(BlockWriter):
    """Writes them for CUDA. In kernels of one lane all threads of a warp compute the same."""

    address_space = _GLOBAL

    def _lanes_of(self, ir_type: ir.Type) -> ir.Type:
        """A vector is one number of every thread."""
        return ir_type

    def _begin(self, name: str) -> None:
        ir_type = ir.FunctionType(ir.VoidType(), [INDEX] * ROW)
        self.function = function = ir.Function(self.module, ir_type, name)
        function.calling_convention = "ptx_kernel"
        self.builder = ir.IRBuilder(function.append_basic_block())
        self.thread = self._register("tid.x")
        self.item = self._register("ctaid.x") * WARPS_PER_BLOCK + self._register("tid.y")
        self.items = self._register("nctaid.x") * WARPS_PER_BLOCK
        self.batch_tile = self._register("ctaid.y")

    def _register(self, name: str) -> Index:
        function = self._declared(f"llvm.nvvm.read.ptx.sreg.{name}", ir.FunctionType(LANE, []))
        return self.index(self.builder.zext(self.builder.call(function, []), INDEX))

    def argument(self) -> Index:
        self.argument_count += 1
        return self.index(self.function.args[self.argument_count - 1])

    @contextmanager
    def parallel_for(self, *counts: Int) -> Iterator[list[Index]]:
        total: Int = 1
        for count in counts:
            total = total * count
        with self.loop(total, self.item, self.items) as item:
            rest, places = item, list[Index]()
            for count in reversed(counts[1:]):
                rest, place = self.divmod(rest, count)
                places.insert(0, place)
            yield [rest, *places]

    def sum_over(self, count: Int, term: Callable[[Index], Vector]) -> Vector:
        total = self.variable()
        with self.loop(count, self.thread, WARP) as at:
            total.add(term(at))
        return self._vector(self._sum(total.get()))

    # Memory.

    def store(self, value: Vector, pointer: Int, offset: Int = 0) -> None:
        self._synchronise()
        super().store(value, pointer, offset)

    def store_as(self, dtype: torch.dtype, value: Vector, pointer: Int, offset: Int = 0) -> None:
        self._synchronise()
        super().store_as(dtype, value, pointer, offset)

    def _synchronise(self) -> None:
        """In kernels of one lane: no thread overwrites a number before all have read it."""
        if self.lanes == 1:
            function = self._declared("llvm.nvvm.bar.warp.sync", ir.FunctionType(ir.VoidType(), [LANE]))
            self.builder.call(function, [_ALL_THREADS])

    def _vector_place(self, pointer: Int, offset: Int) -> ir.Value:
        place = self._place(pointer, offset, self.float_type)
        return place if self.lanes == 1 else self.builder.gep(place, [as_ir(self.thread)], inbounds=True)

    def load_two_bytes(self, pointer: Int, offsets: IntVector) -> list[Vector]:
        first = self.builder.gep(self._pointer(pointer, ir.IntType(8)), [offsets.ir])
        places = [self.builder.gep(first, [ir.Constant(LANE, number)]) for number in range(2)]
        return [self._vector(self.builder.uitofp(self.builder.load(one), self.float_type)) for one in places]

    def _lane(self, values: IntVector, _: Int) -> ir.Value:
        return values.ir

    def _by_lane(self, _: ir.Type, of: Callable[[Int], ir.Value]) -> ir.Value:
        return of(self.thread)

    # Vectors.

    def iota(self, start: Int) -> IntVector:
        return IntVector(self.builder, self.builder.trunc(as_ir(start + self.thread), LANE))

    def exp2(self, value: Vector) -> Vector:
        return self._approximate("ex2", value)

    def log2(self, value: Vector) -> Vector:
        return self._approximate("lg2", value)

    def _approximate(self, name: str, value: Vector) -> Vector:
        """A function of float32 that the device computes to about the last digit."""
        ir_type = ir.FunctionType(self.float_type, [self.float_type])
        function = self._declared(f"llvm.nvvm.{name}.approx.f", ir_type)
        return self._vector(self.builder.call(function, [value.ir]))

    def _sum(self, value: Vector) -> ir.Value:
        for distance in (16, 8, 4, 2, 1):
            value = value + self._from_thread(value.ir, distance)
        return value.ir

    def _from_thread(self, value: ir.Value, distance: int) -> Vector:
        """The number of the thread whose place differs in this one binary digit."""
        if isinstance(self.float_type, ir.FloatType):
            bits = self._shuffle(self.builder.bitcast(value, LANE), distance)
            return self._vector(self.builder.bitcast(bits, self.float_type))
        bits = self.builder.bitcast(value, INDEX)
        halves = [self.builder.trunc(self.builder.lshr(bits, ir.Constant(INDEX, by)), LANE) for by in (0, 32)]
        low, high = (self.builder.zext(self._shuffle(half, distance), INDEX) for half in halves)
        whole = self.builder.or_(low, self.builder.shl(high, ir.Constant(INDEX, 32)))
        return self._vector(self.builder.bitcast(whole, self.float_type))

    def _shuffle(self, bits: ir.Value, distance: int) -> ir.Value:
        function = self._declared("llvm.nvvm.shfl.sync.bfly.i32", ir.FunctionType(LANE, [LANE] * 4))
        last = ir.Constant(LANE, WARP - 1)
        return self.builder.call(function, [_ALL_THREADS, bits, ir.Constant(LANE, distance), last])


def ptx(
    write: Callable[[Any], None], dtype: torch.dtype, lanes: int, capability: tuple[int, int]
) -> tuple[str, int]:
    """A kernel's code for CUDA devices from this compute capability on, and its number of arguments."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    triple = "nvptx64-nvidia-cuda"
    machine = binding.Target.from_triple(triple).create_target_machine(
        cpu="sm_{}{}".format(*min(capability, _NEWEST)), opt=3
    )
    module = ir.Module()
    module.triple, module.data_layout = triple, str(machine.target_data)
    writer = WarpWriter(module, kernel_name(write), dtype, lanes)
    write(writer)
    writer.finish()
    return str(machine.emit_assembly(optimised(module, machine))), writer.argument_count
