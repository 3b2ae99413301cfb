"""Writes kernels: `Writer` has the loads, stores and functions of vectors.

A kernel is a function of Python that takes a writer ``w`` and computes with its values (`values`):

    source, target, count = w.argument(), w.argument(), w.argument()
    with w.loop(count) as i:
        w.store(w.load(source, i * w.lanes) * 2.0, target, i * w.lanes)

Pointers are integers. Offsets count numbers, not bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from llvmlite import ir

from .control import ControlWriter
from .values import (
    FLOATS,
    INDEX,
    LANE,
    Float,
    Index,
    Int,
    IntVector,
    Mask,
    Variable,
    Vector,
    as_ir,
    constant,
    splat,
)


class Writer(ControlWriter):
    """Writes a kernel for a CPU."""

    address_space = 0  # LLVM's number of the memory that pointers are for

    def __init__(self, module: ir.Module, name: str, dtype: torch.dtype, lanes: int) -> None:
        self.float_type, self.lanes = FLOATS[dtype], lanes
        self.vector_type = self._lanes_of(self.float_type)
        super().__init__(module, name)

    def _lanes_of(self, ir_type: ir.Type) -> ir.Type:
        """The type of a vector of such numbers."""
        return ir.VectorType(ir_type, self.lanes)

    # Memory.

    def load(self, pointer: Int, offset: Int = 0) -> Vector:
        """A vector of neighbours."""
        return self._vector(self.builder.load(self._vector_place(pointer, offset), align=self._align))

    def store(self, value: Vector, pointer: Int, offset: Int = 0) -> None:
        """Write a vector as neighbours."""
        self.builder.store(value.ir, self._vector_place(pointer, offset), align=self._align)

    def load_splat(self, pointer: Int, offset: Int = 0) -> Vector:
        """One number, in every lane."""
        return self._splat(self.builder.load(self._place(pointer, offset, self.float_type)))

    def load_four(self, pointer: Int, offset: Int) -> list[Vector]:
        """Four neighbours, each in every lane; the address of the first is a multiple of their size."""
        place = self._place(pointer, offset, self.float_type)
        four = self._pointer_to(ir.VectorType(self.float_type, 4), place)
        together = self.builder.load(four, align=4 * self._align)
        return [self._splat(self.builder.extract_element(together, ir.Constant(LANE, at))) for at in range(4)]

    def load_index(self, pointer: Int, offset: Int = 0) -> Index:
        """An integer of 64 bits."""
        return self.index(self.builder.load(self._place(pointer, offset, INDEX)))

    def load_as(self, dtype: torch.dtype, pointer: Int, offset: Int = 0) -> Vector:
        """A number that has another dtype in memory; in kernels of one lane."""
        value = self.builder.load(self._place(pointer, offset, self._lanes_of(FLOATS[dtype])))
        same = value.type == self.vector_type
        return self._vector(value if same else self.builder.fpext(value, self.vector_type))

    def store_as(self, dtype: torch.dtype, value: Vector, pointer: Int, offset: Int = 0) -> None:
        """Write a number that has another dtype in memory; in kernels of one lane."""
        ir_type = self._lanes_of(FLOATS[dtype])
        number = value.ir if ir_type == self.vector_type else self.builder.fptrunc(value.ir, ir_type)
        self.builder.store(number, self._place(pointer, offset, ir_type))

    def load_two_bytes(self, pointer: Int, offsets: IntVector) -> list[Vector]:
        """Two neighbours of uint8 from offsets by lane. It reads four."""
        start = self._pointer(pointer, ir.IntType(8))

        def load(lane: Int) -> ir.Value:
            place = self.builder.gep(start, [self._lane(offsets, lane)])
            return self.builder.load(self._pointer_to(LANE, place), align=1)

        words = self._by_lane(LANE, load)
        shifted = [self.builder.lshr(words, constant(words.type, bits)) for bits in (0, 8)]
        found = [self.builder.and_(one, constant(words.type, 255)) for one in shifted]
        return [self._vector(self.builder.sitofp(byte, self.vector_type)) for byte in found]

    def gather(self, pointer: Int, offsets: IntVector) -> Vector:
        """Numbers from offsets by lane."""
        return self._vector(self._gather(self.float_type, pointer, offsets))

    def gather_indices(self, pointer: Int, offsets: IntVector) -> IntVector:
        """Integers of 64 bits, below 2 ** 31, from offsets by lane."""
        return IntVector(self.builder, self._gather(INDEX, pointer, offsets))

    def _gather(self, ir_type: ir.Type, pointer: Int, offsets: IntVector) -> ir.Value:
        start = self._pointer(pointer, ir_type)

        def load(lane: Int) -> ir.Value:
            value = self.builder.load(self.builder.gep(start, [self._lane(offsets, lane)]))
            return self.builder.trunc(value, LANE) if ir_type == INDEX else value

        return self._by_lane(LANE if ir_type == INDEX else ir_type, load)

    def gather_pointers(self, pointers: Int, offset: Int) -> Vector:
        """Numbers whose addresses are neighbours in memory."""

        def load(lane: Int) -> ir.Value:
            address = self.load_index(pointers, lane + offset)
            return self.builder.load(self._pointer(address, self.float_type))

        return self._vector(self._by_lane(self.float_type, load))

    def reduce_into(self, value: Vector, pointer: Int, offset: Int = 0, float64: bool = False) -> None:
        """Add the sum of all lanes to a number in memory; ``float64``: which has this dtype."""
        total = self._sum(value)
        if float64 and total.type != ir.DoubleType():
            total = self.builder.fpext(total, ir.DoubleType())
        self._add(total, self._place(pointer, offset, total.type))

    def _add(self, number: ir.Value, place: ir.Value) -> None:
        self.builder.store(self.builder.fadd(self.builder.load(place), number), place)

    def _pointer(self, pointer: Int, ir_type: ir.Type) -> ir.Value:
        return self.builder.inttoptr(as_ir(pointer), ir_type.as_pointer(self.address_space))

    def _place(self, pointer: Int, offset: Int, ir_type: ir.Type) -> ir.Value:
        return self.builder.gep(self._pointer(pointer, ir_type), [as_ir(offset)], inbounds=True)

    def _vector_place(self, pointer: Int, offset: Int) -> ir.Value:
        return self._pointer_to(self.vector_type, self._place(pointer, offset, self.float_type))

    def _pointer_to(self, ir_type: ir.Type, place: ir.Value) -> ir.Value:
        return self.builder.bitcast(place, ir_type.as_pointer(self.address_space))

    @property
    def _align(self) -> int:
        return 8 if isinstance(self.float_type, ir.DoubleType) else 4

    def _lane(self, values: IntVector, lane: Int) -> ir.Value:
        return self.builder.extract_element(values.ir, ir.Constant(LANE, lane))

    def _by_lane(self, ir_type: ir.Type, of: Callable[[Int], ir.Value]) -> ir.Value:
        """A vector of ``of(0)``, ``of(1)``..., a lane each."""
        found: Any = ir.Constant(self._lanes_of(ir_type), ir.Undefined)
        for lane in range(self.lanes):
            found = self.builder.insert_element(found, of(lane), ir.Constant(LANE, lane))
        return found

    # Vectors.

    def _vector(self, value: ir.Value) -> Vector:
        return Vector(self.builder, value)

    def _splat(self, number: ir.Value) -> Vector:
        return self._vector(splat(self.builder, number, self.vector_type))

    def vector(self, value: Float) -> Vector:
        """A vector of Python's number, or a vector as it is."""
        return value if isinstance(value, Vector) else self._vector(constant(self.vector_type, value))

    def variable(self, start: Float = 0.0) -> Variable:
        return Variable(self.builder, self.vector(start))

    def sum_over(self, count: Int, term: Callable[[Index], Vector]) -> Vector:
        """The sum of ``term(0)``, ``term(1)``...; in kernels of one lane."""
        total = self.variable()
        with self.loop(count) as at:
            total.add(term(at))
        return total.get()

    def select(self, mask: Mask, yes: Float, no: Float) -> Vector:
        """By lane: ``yes`` where the mask is true, else ``no``."""
        return self._vector(self.builder.select(mask.ir, self.vector(yes).ir, self.vector(no).ir))

    def clip(self, value: Vector, low: Float, high: Float) -> Vector:
        """By lane: at least ``low``, at most ``high``."""
        above = self.select(value > low, value, low)
        return self.select(above < high, above, high)

    def maximum(self, one: Vector, other: Vector) -> Vector:
        """By lane; NaN where one is NaN."""
        return self._call("maximum", one, other)

    def sqrt(self, value: Vector) -> Vector:
        return self._call("sqrt", value)

    def floor(self, value: Vector) -> Vector:
        return self._call("floor", value)

    def exp2(self, value: Vector) -> Vector:
        return self._call("exp2", value)

    def log2(self, value: Vector) -> Vector:
        return self._call("log2", value)

    def iota(self, start: Int) -> IntVector:
        """The integers from ``start`` on, by lane."""
        lanes = ir.Constant(self._lanes_of(LANE), list(range(self.lanes)))
        return IntVector(self.builder, lanes) + start

    def to_float(self, value: Int | IntVector) -> Vector:
        if isinstance(value, IntVector):
            return self._vector(self.builder.sitofp(value.ir, self.vector_type))
        return self._splat(self.builder.sitofp(as_ir(value), self.float_type))

    def to_int(self, value: Vector) -> IntVector:
        """Without the fraction."""
        return IntVector(self.builder, self.builder.fptosi(value.ir, self._lanes_of(LANE)))

    def _call(self, name: str, *values: Vector) -> Vector:
        function = self._intrinsic(name, [self.vector_type] * len(values), self.vector_type)
        return self._vector(self.builder.call(function, [value.ir for value in values]))

    def _intrinsic(self, name: str, ir_types: list[ir.Type], result: ir.Type) -> ir.Function:
        """LLVM's own function of vectors of this type."""
        lanes = f"v{self.lanes}" if isinstance(self.vector_type, ir.VectorType) else ""
        name = f"llvm.{name}.{lanes}f{8 * self._align}"
        return self._declared(name, ir.FunctionType(result, ir_types))

    def _sum(self, value: Vector) -> ir.Value:
        ir_types = [self.float_type, self.vector_type]
        function = self._intrinsic("vector.reduce.fadd", ir_types, self.float_type)
        return self.builder.call(
            function, [ir.Constant(self.float_type, -0.0), value.ir], fastmath=("reassoc",)
        )


class MapPointer:
    """Feature maps among a kernel's arguments: a pointer and four strides, which count numbers.

    Maps lie in batch tiles (tiles, C, H, W, lanes): a vector has one pixel of as many images. The strides are
    those of tiles, channels, rows and pixels.
    """

    def __init__(self, w: Writer) -> None:
        self.w, self.pointer = w, w.argument()
        strides = [w.argument() for _ in range(4)]
        tile_stride, self.channel_stride, self.row_stride, self.pixel_stride = strides
        self.start = w.batch_tile * tile_stride

    def at(self, channel: Int, row: Int, pixel: Int = 0) -> Index:
        """The offset of a pixel."""
        in_map = row * self.row_stride + pixel * self.pixel_stride
        return self.start + channel * self.channel_stride + in_map

    def load(self, offset: Int) -> Vector:
        return self.w.load(self.pointer, offset)

    def store(self, value: Vector, offset: Int) -> None:
        self.w.store(value, self.pointer, offset)
