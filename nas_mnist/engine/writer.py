"""Writes kernels: `Writer` puts LLVM's instructions one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import numpy as np
from llvmlite import ir

Value: TypeAlias = Any  # a whole number: Python's, or the kernel's (an `ir.Value`)
INDEX = ir.IntType(64)
INDICES = INDEX.as_pointer()
LANE = ir.IntType(32)  # a whole number in a lane
FLOATS = {np.dtype(np.float32): ir.FloatType(), np.dtype(np.float64): ir.DoubleType()}
# Sums in any order, and multiplications fused with additions; infinities and NaNs stay what they are.
_FAST = ("contract", "reassoc", "nsz")


class Writer:
    """Writes a kernel: every method adds instructions at the place where the last one ended.

    Whole numbers of Python and of the kernel mix; numbers of Python are computed at once.
    """

    space = 0  # where memory is that numbers are in, in LLVM's terms
    beside: Sequence[int] = (1,)  # pixels at once, in loops over all of a row; the most that fit come first

    def __init__(self, module: ir.Module, name: str, kind: np.dtype[Any], lanes: int) -> None:
        self.module, self.number, self.lanes = module, FLOATS[kind], lanes
        self.vector = self._vector_type()
        self._begin(name)
        self.zero = self.constant(0.0)
        self._taken = 0

    def _vector_type(self) -> ir.Type:
        return ir.VectorType(self.number, self.lanes)

    def _begin(self, name: str) -> None:
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [INDICES, INDEX]), name)
        self.builder = ir.IRBuilder(function.append_basic_block())
        self.table, self.group = function.args

    # What the arguments are, and what a call of the kernel is to do.

    def of_copy(self) -> Value:
        """The next argument, an address, of numbers that every network side by side has of its own."""
        return self.argument()

    def of_part(self) -> Value:
        """The next argument, an address, of sums that every part of the work has of its own."""
        return self.argument()

    @contextmanager
    def spread(self, *counts: Value) -> Iterator[list[Value]]:
        """Loops in each other, whose turns have nothing to do with each other."""
        with ExitStack() as stack:
            yield [stack.enter_context(self.loop(count)) for count in counts]

    @contextmanager
    def rows(self, height: Value) -> Iterator[Value]:
        """A loop over the rows of a map that belong to this part of the work."""
        with self.loop(height) as row:
            yield row

    def total(self, count: Value, term: Callable[[Value], ir.Value]) -> ir.Value:
        """The sum of ``term(0)``, ``term(1)``..., in kernels of one lane."""
        total = self.variable(self.zero)
        with self.loop(count) as at:
            self.increase(total, term(at))
        return self.get(total)

    # Whole numbers.

    def whole(self, value: Value) -> ir.Value:
        return ir.Constant(INDEX, value) if isinstance(value, int) else value

    def argument(self) -> ir.Value:
        """The next one of the kernel's arguments."""
        place = self.builder.gep(self.table, [self.whole(self._taken)])
        self._taken += 1
        return self.builder.load(place)

    def add(self, *values: Value) -> Value:
        known = sum(value for value in values if isinstance(value, int))
        total: Value = known
        for value in values:
            if not isinstance(value, int):
                nothing = isinstance(total, int) and total == 0
                total = value if nothing else self.builder.add(self.whole(total), value, flags=("nsw",))
        return total

    def mul(self, one: Value, other: Value) -> Value:
        if isinstance(one, int) and isinstance(other, int):
            return one * other
        for this, that in ((one, other), (other, one)):
            if isinstance(this, int) and this in (0, 1):
                return that if this else 0
        return self.builder.mul(self.whole(one), self.whole(other), flags=("nsw",))

    def quotient(self, value: Value, by: int) -> Value:
        return value // by if isinstance(value, int) else self.builder.udiv(value, self.whole(by))

    @contextmanager
    def loop(self, count: Value, start: Value = 0, step: Value = 1) -> Iterator[ir.Value]:
        """What is written inside runs for ``start``, ``start + step``... below ``count``."""
        with loop_in(self.builder, self.whole(count), self.whole(start), self.whole(step)) as at:
            yield at

    def smaller(self, one: Value, other: Value) -> Value:
        one, other = self.whole(one), self.whole(other)
        return self.builder.select(self.builder.icmp_signed("<", one, other), one, other)

    def tiles(self, count: Value, widths: Sequence[int]) -> Iterator[tuple[ir.Value, int]]:
        """Loops that together cover ``count``: as many of the first width as fit, then of the next one..."""
        done: Value = 0
        for width in widths:
            left = self.builder.sub(self.whole(count), self.whole(done))
            end = self.add(done, self.mul(self.quotient(left, width), width))
            with self.loop(end, done, width) as at:
                yield at, width
            done = end

    def read_whole(self, address: Value, offset: Value) -> ir.Value:
        """A whole number of 64 bits in memory."""
        start = self.builder.inttoptr(self.whole(address), INDEX.as_pointer(self.space))
        return self.builder.load(self.builder.gep(start, [self.whole(offset)]))

    # Numbers in memory; addresses are whole numbers, distances count numbers.

    def _place(self, address: Value, offset: Value, kind: ir.Type) -> ir.Value:
        start = self.builder.inttoptr(self.whole(address), self.number.as_pointer(self.space))
        return self.builder.bitcast(
            self.builder.gep(start, [self.whole(offset)], inbounds=True), kind.as_pointer(self.space)
        )

    def load(self, address: Value, offset: Value = 0) -> ir.Value:
        return self.builder.load(self._place(address, offset, self.vector), align=self._align)

    def store(self, value: ir.Value, address: Value, offset: Value = 0) -> None:
        self.builder.store(value, self._place(address, offset, self.vector), align=self._align)

    @property
    def _align(self) -> int:
        return 8 if isinstance(self.number, ir.DoubleType) else 4

    def load_of(self, kind: np.dtype[Any], address: Value, offset: Value = 0) -> ir.Value:
        """A number of a type of its own, where vectors have one lane."""
        place = self._place_of(kind, address, offset)
        value = self.builder.load(place)
        return value if value.type == self.vector else self.builder.fpext(value, self.vector)

    def store_of(self, kind: np.dtype[Any], value: ir.Value, address: Value, offset: Value = 0) -> None:
        place = self._place_of(kind, address, offset)
        narrow = place.type.pointee
        self.builder.store(value if value.type == narrow else self.builder.fptrunc(value, narrow), place)

    def _place_of(self, kind: np.dtype[Any], address: Value, offset: Value) -> ir.Value:
        start = self.builder.inttoptr(self.whole(address), self._one_of(kind).as_pointer(self.space))
        return self.builder.gep(start, [self.whole(offset)])

    def _one_of(self, kind: np.dtype[Any]) -> ir.Type:
        return ir.VectorType(FLOATS[kind], 1)

    def bytes_at(self, address: Value, offsets: ir.Value, count: int) -> list[ir.Value]:
        """Neighbours in memory, each 0 to 255; the first ones' offsets in whole numbers, a lane each.

        There are at most four of them, and four bytes are read whatever their number.
        """
        start = self.builder.inttoptr(self.whole(address), ir.IntType(8).as_pointer())
        words: Value = ir.Constant(offsets.type, ir.Undefined)
        for lane in range(self.lanes):
            at = ir.Constant(LANE, lane)
            place = self.builder.gep(start, [self.builder.extract_element(offsets, at)])
            word = self.builder.load(self.builder.bitcast(place, LANE.as_pointer()), align=1)
            words = self.builder.insert_element(words, word, at)
        found = []
        for number in range(count):
            shifted = self.builder.lshr(words, self._everywhere(ir.Constant(LANE, 8 * number)))
            byte = self.builder.and_(shifted, self._everywhere(ir.Constant(LANE, 255)))
            found.append(self.builder.sitofp(byte, self.vector))
        return found

    def four(self, address: Value, offset: Value) -> list[ir.Value]:
        """Four neighbours, each in every lane; the first one's address is a multiple of their size."""
        kind = ir.VectorType(self.number, 4)
        together = self.builder.load(self._place(address, offset, kind), align=4 * self._align)
        return [
            self._everywhere(self.builder.extract_element(together, ir.Constant(LANE, at))) for at in range(4)
        ]

    def from_anywhere(self, addresses: Value, offset: Value) -> ir.Value:
        """Numbers of which memory names the addresses, one for every lane."""
        found: Value = ir.Constant(self.vector, ir.Undefined)
        for lane in range(self.lanes):
            place = self.read_whole(addresses, self.add(offset, lane))
            number = self.builder.load(self.builder.inttoptr(place, self.number.as_pointer()))
            found = self.builder.insert_element(found, number, ir.Constant(LANE, lane))
        return found

    def gathered(self, kind: ir.Type, address: Value, places: ir.Value) -> ir.Value:
        """From memory, a lane each: numbers, or whole numbers of 64 bits below 2 ** 31 (``kind`` `INDEX`)."""
        start = self.builder.inttoptr(self.whole(address), kind.as_pointer(self.space))
        found: Value = ir.Constant(ir.VectorType(LANE if kind == INDEX else kind, self.lanes), ir.Undefined)
        for lane in range(self.lanes):
            at = ir.Constant(LANE, lane)
            value = self.builder.load(self.builder.gep(start, [self.builder.extract_element(places, at)]))
            value = self.builder.trunc(value, LANE) if kind == INDEX else value
            found = self.builder.insert_element(found, value, at)
        return found

    def count_from(self, start: Value) -> ir.Value:
        """The whole numbers from ``start`` on, a lane each."""
        first = self._everywhere(self.builder.trunc(self.whole(start), LANE))
        return self.builder.add(first, ir.Constant(first.type, list(range(self.lanes))))

    def number_of(self, value: Value) -> ir.Value:
        """Whole numbers, one for all lanes or a lane each, as numbers."""
        if isinstance(value, int) or value.type == INDEX:
            return self._everywhere(self.builder.sitofp(self.whole(value), self.number))
        return self.builder.sitofp(value, self.vector)

    def whole_of(self, value: ir.Value) -> ir.Value:
        """Numbers without their fraction, as whole numbers, a lane each."""
        return self.builder.fptosi(value, ir.VectorType(LANE, self.lanes))

    def times_and_plus(
        self, values: ir.Value, factor: Value, others: ir.Value | None, summand: Value
    ) -> ir.Value:
        """``values * factor + others + summand`` of whole numbers, a lane each."""
        product, more = self.builder.mul(values, self._lane(factor)), self._lane(summand)
        return self.builder.add(product if others is None else self.builder.add(product, others), more)

    def least(self, values: ir.Value, most: Value) -> ir.Value:
        """Whole numbers, a lane each, but none above ``most``."""
        limit = self._lane(most)
        return self.builder.select(self.builder.icmp_signed("<", values, limit), values, limit)

    def _lane(self, value: Value) -> ir.Value:
        """A whole number for all lanes, or those of the lanes."""
        if not isinstance(value, int) and value.type != INDEX:
            return value
        return self._everywhere(self.builder.trunc(self.whole(value), LANE))

    def one(self, address: Value, offset: Value = 0) -> ir.Value:
        """One number, in every lane."""
        return self._everywhere(self.builder.load(self._place(address, offset, self.number)))

    def _everywhere(self, number: ir.Value) -> ir.Value:
        nothing = ir.Constant(ir.VectorType(number.type, self.lanes), ir.Undefined)
        first = self.builder.insert_element(nothing, number, ir.Constant(LANE, 0))
        lanes = ir.Constant(ir.VectorType(LANE, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, nothing, lanes)

    def add_up(self, value: ir.Value, address: Value, offset: Value = 0) -> None:
        """Add the sum of all lanes to a number in memory."""
        place = self._place(address, offset, self.number)
        self.builder.store(self.builder.fadd(self.builder.load(place), self._sum(value)), place)

    def add_up_wide(self, value: ir.Value, address: Value, offset: Value = 0) -> None:
        """Add the sum of all lanes to a float64 in memory."""
        place, total = self._wide_place(address, offset), self._wide_sum(value)
        self.builder.store(self.builder.fadd(self.builder.load(place), total), place)

    def _wide_place(self, address: Value, offset: Value) -> ir.Value:
        start = self.builder.inttoptr(self.whole(address), ir.DoubleType().as_pointer(self.space))
        return self.builder.gep(start, [self.whole(offset)])

    def _wide_sum(self, value: ir.Value) -> ir.Value:
        total = self._sum(value)
        return total if total.type == ir.DoubleType() else self.builder.fpext(total, ir.DoubleType())

    def _sum(self, value: ir.Value) -> ir.Value:
        kind = ir.FunctionType(self.number, [self.number, self.vector])
        function = self._intrinsic("vector.reduce.fadd", kind)
        return self.builder.call(function, [ir.Constant(self.number, -0.0), value], fastmath=("reassoc",))

    def _intrinsic(self, name: str, kind: ir.FunctionType) -> ir.Function:
        """One of LLVM's own functions of vectors."""
        width = "f64" if isinstance(self.number, ir.DoubleType) else "f32"
        name = f"llvm.{name}.v{self.lanes}{width}"
        return self.module.globals.get(name) or ir.Function(self.module, kind, name)

    # Vectors.

    def constant(self, value: float) -> ir.Value:
        return ir.Constant(self.vector, [value] * self.lanes)

    def variable(self, value: ir.Value) -> ir.Value:
        """A vector that changes; in the end it is a register."""
        with self.builder.goto_entry_block():
            place = self.builder.alloca(self.vector)
        self.builder.store(value, place)
        return place

    def get(self, variable: ir.Value) -> ir.Value:
        return self.builder.load(variable)

    def put(self, variable: ir.Value, value: ir.Value) -> None:
        self.builder.store(value, variable)

    def increase(self, variable: ir.Value, value: ir.Value) -> None:
        self.builder.store(self.plus(self.get(variable), value), variable)

    def plus(self, one: ir.Value, other: ir.Value) -> ir.Value:
        return self.builder.fadd(one, other, flags=_FAST)

    def times(self, one: ir.Value, other: ir.Value) -> ir.Value:
        return self.builder.fmul(one, other, flags=_FAST)

    def minus(self, one: ir.Value, other: ir.Value) -> ir.Value:
        return self.builder.fsub(one, other, flags=_FAST)

    def over(self, one: ir.Value, other: ir.Value) -> ir.Value:
        return self.builder.fdiv(one, other)

    def root(self, value: ir.Value) -> ir.Value:
        return self._of_one("sqrt", value)

    def floor(self, value: ir.Value) -> ir.Value:
        return self._of_one("floor", value)

    def power_of_two(self, value: ir.Value) -> ir.Value:
        return self._of_one("exp2", value)

    def binary_logarithm(self, value: ir.Value) -> ir.Value:
        return self._of_one("log2", value)

    def _of_one(self, name: str, value: ir.Value) -> ir.Value:
        kind = ir.FunctionType(self.vector, [self.vector])
        return self.builder.call(self._intrinsic(name, kind), [value])

    def clipped(self, value: ir.Value, least: ir.Value, most: ir.Value) -> ir.Value:
        above = self.choose(value, ">", least, value, least)
        return self.choose(above, "<", most, above, most)

    def largest(self, one: ir.Value, other: ir.Value) -> ir.Value:
        """By lane; NaN where one is."""
        kind = ir.FunctionType(self.vector, [self.vector] * 2)
        return self.builder.call(self._intrinsic("maximum", kind), [one, other])

    def choose(self, one: ir.Value, sign: str, other: ir.Value, yes: ir.Value, no: ir.Value) -> ir.Value:
        """By lane: ``yes`` where ``one`` and ``other`` compare so, else ``no``; NaN never does."""
        return self.builder.select(self.builder.fcmp_ordered(sign, one, other), yes, no)

    def end(self) -> None:
        self.builder.ret_void()


@contextmanager
def loop_in(build: ir.IRBuilder, stop: ir.Value, start: ir.Value, step: ir.Value) -> Iterator[ir.Value]:
    before = build.block
    head, body, end = (build.append_basic_block(name) for name in ("head", "body", "end"))
    build.branch(head)
    build.position_at_end(head)
    at = build.phi(INDEX)
    at.add_incoming(start, before)
    build.cbranch(build.icmp_signed("<", at, stop), body, end)
    build.position_at_end(body)
    yield at
    at.add_incoming(build.add(at, step), build.block)
    build.branch(head)
    build.position_at_end(end)
