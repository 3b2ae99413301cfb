"""The values of a kernel while it is written: every operator adds an instruction to the kernel."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from llvmlite import ir

INDEX = ir.IntType(64)
INDICES = INDEX.as_pointer()
LANE = ir.IntType(32)  # an integer of one lane
FLOATS = {torch.float32: ir.FloatType(), torch.float64: ir.DoubleType()}
# Sums in any order, and multiplications fused with additions; infinities and NaN keep their meaning.
_FAST = ("contract", "reassoc", "nsz")


class Index:
    """A 64-bit integer: an index, a size or an address. Python's integers mix with it."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.ir = builder, value

    def __add__(self, other: Int) -> Index:
        return Index(self.builder, self.builder.add(self.ir, as_ir(other), flags=("nsw",)))

    def __sub__(self, other: Int) -> Index:
        return Index(self.builder, self.builder.sub(self.ir, as_ir(other), flags=("nsw",)))

    def __rsub__(self, other: int) -> Index:
        return Index(self.builder, self.builder.sub(as_ir(other), self.ir, flags=("nsw",)))

    def __mul__(self, other: Int) -> Index:
        return Index(self.builder, self.builder.mul(self.ir, as_ir(other), flags=("nsw",)))

    def __floordiv__(self, other: int) -> Index:
        """Of a number that is not negative."""
        return Index(self.builder, self.builder.udiv(self.ir, as_ir(other)))

    __radd__, __rmul__ = __add__, __mul__

    def operand(self, other: Int) -> ir.Value:
        """LLVM's value of a number that is combined with this one."""
        return as_ir(other)


Int: TypeAlias = int | Index


def as_ir(value: Int) -> ir.Value:
    """LLVM's value of an index."""
    return ir.Constant(INDEX, value) if isinstance(value, int) else value.ir


class IntVector:
    """A 32-bit integer in every lane. An index that mixes with it is the same in all lanes."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.ir = builder, value

    def __add__(self, other: IntVector | Int) -> IntVector:
        return IntVector(self.builder, self.builder.add(self.ir, self.operand(other)))

    def __mul__(self, other: IntVector | Int) -> IntVector:
        return IntVector(self.builder, self.builder.mul(self.ir, self.operand(other)))

    __radd__, __rmul__ = __add__, __mul__

    def operand(self, other: IntVector | Int) -> ir.Value:
        """LLVM's value of a number that is combined with this one."""
        if isinstance(other, IntVector):
            return other.ir
        return splat(self.builder, self.builder.trunc(as_ir(other), LANE), self.ir.type)


class Mask:
    """True or false in every lane: what `Vector`'s comparisons give, and `Writer.select` takes."""

    def __init__(self, value: ir.Value) -> None:
        self.ir = value


class Vector:
    """A floating-point number in every lane. Python's numbers mix with it."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.ir = builder, value

    def __add__(self, other: Float) -> Vector:
        return Vector(self.builder, self.builder.fadd(self.ir, self.operand(other), flags=_FAST))

    def __sub__(self, other: Float) -> Vector:
        return Vector(self.builder, self.builder.fsub(self.ir, self.operand(other), flags=_FAST))

    def __rsub__(self, other: Float) -> Vector:
        return Vector(self.builder, self.builder.fsub(self.operand(other), self.ir, flags=_FAST))

    def __mul__(self, other: Float) -> Vector:
        return Vector(self.builder, self.builder.fmul(self.ir, self.operand(other), flags=_FAST))

    def __truediv__(self, other: Float) -> Vector:
        return Vector(self.builder, self.builder.fdiv(self.ir, self.operand(other)))

    def __rtruediv__(self, other: Float) -> Vector:
        return Vector(self.builder, self.builder.fdiv(self.operand(other), self.ir))

    def __neg__(self) -> Vector:
        return 0.0 - self

    __radd__, __rmul__ = __add__, __mul__

    # Comparisons are false where one of the numbers is NaN.

    def __lt__(self, other: Float) -> Mask:
        return self._compared("<", other)

    def __gt__(self, other: Float) -> Mask:
        return self._compared(">", other)

    def equals(self, other: Float) -> Mask:
        return self._compared("==", other)

    def _compared(self, sign: str, other: Float) -> Mask:
        return Mask(self.builder.fcmp_ordered(sign, self.ir, self.operand(other)))

    def operand(self, other: Float) -> ir.Value:
        """LLVM's value of a number that is combined with this one."""
        return other.ir if isinstance(other, Vector) else constant(self.ir.type, other)


Float: TypeAlias = float | Vector


class Variable:
    """A vector that changes while the kernel runs; LLVM keeps it in a register."""

    def __init__(self, builder: ir.IRBuilder, start: Vector) -> None:
        self.builder = builder
        with builder.goto_entry_block():
            self._place = builder.alloca(start.ir.type)
        self.set(start)

    def get(self) -> Vector:
        return Vector(self.builder, self.builder.load(self._place))

    def set(self, value: Vector) -> None:
        self.builder.store(value.ir, self._place)

    def add(self, value: Vector) -> None:
        self.set(self.get() + value)


def constant(ir_type: ir.Type, value: Any) -> ir.Constant:
    """A number in every lane of a vector's type; of one lane without a vector where there is none."""
    return ir.Constant(ir_type, [value] * ir_type.count if isinstance(ir_type, ir.VectorType) else value)


def splat(builder: ir.IRBuilder, number: ir.Value, ir_type: ir.Type) -> ir.Value:
    """One number in all lanes of a vector with as many as ``ir_type``; itself where there is no vector."""
    if not isinstance(ir_type, ir.VectorType):
        return number
    undefined = ir.Constant(ir.VectorType(number.type, ir_type.count), ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(LANE, 0))
    return builder.shuffle_vector(first, undefined, constant(ir.VectorType(LANE, ir_type.count), 0))
