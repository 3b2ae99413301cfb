"""The frame of a kernel: its arguments, and its loops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from llvmlite import ir

from .values import INDEX, INDICES, Index, Int, IntVector, as_ir

Integer = TypeVar("Integer", Index, IntVector)


class ControlWriter:
    """Writes a kernel's frame: every method adds instructions behind the last one."""

    unroll: Sequence[int] = (1,)  # steps of loops over a row's pixels (`unrolled_loops`)

    def __init__(self, module: ir.Module, name: str) -> None:
        self.module = module
        self.argument_count = 0  # arguments that the kernel has taken so far
        self._begin(name)

    def _begin(self, name: str) -> None:
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [INDICES, INDEX]), name)
        self.builder = ir.IRBuilder(function.append_basic_block())
        self._arguments = function.args[0]
        self.batch_tile = self.index(function.args[1])

    def finish(self) -> None:
        """End the kernel."""
        self.builder.ret_void()

    def index(self, value: ir.Value) -> Index:
        return Index(self.builder, value)

    def _declared(self, name: str, ir_type: ir.FunctionType) -> ir.Function:
        """A function of LLVM."""
        return self.module.globals.get(name) or ir.Function(self.module, ir_type, name)

    # Arguments. CUDA overrides these: there several models train side by side, and blocks run at once.

    def argument(self) -> Index:
        """The next argument."""
        place = self.builder.gep(self._arguments, [ir.Constant(INDEX, self.argument_count)])
        self.argument_count += 1
        return self.index(self.builder.load(place))

    def per_model_ptr(self) -> Index:
        """The next argument, a pointer to numbers of which every model has its own."""
        return self.argument()

    def per_block_ptr(self) -> Index:
        """The next argument, a pointer to sums of which every block has its own."""
        return self.argument()

    # Loops.

    @contextmanager
    def parallel_for(self, *counts: Int) -> Iterator[list[Index]]:
        """Nested loops with independent iterations."""
        with ExitStack() as stack:
            yield [stack.enter_context(self.loop(count)) for count in counts]

    @contextmanager
    def rows(self, height: Int) -> Iterator[Index]:
        """A loop over those rows of a map that belong to this block."""
        with self.loop(height) as row:
            yield row

    @contextmanager
    def loop(self, stop: Int, start: Int = 0, step: Int = 1) -> Iterator[Index]:
        """A loop with Python's ``range(start, stop, step)``."""
        with for_loop(self.builder, as_ir(stop), as_ir(start), as_ir(step)) as at:
            yield self.index(at)

    def unrolled_loops(self, count: Int, steps: Sequence[int]) -> Iterator[tuple[Index, int]]:
        """Loops that together cover ``range(count)``: the first step while it fits, then the next one."""
        start: Int = 0
        for step in steps:
            stop = start + (count - start) // step * step
            with self.loop(stop, start, step) as at:
                yield at, step
            start = stop

    def minimum(self, one: Integer, other: Int) -> Integer:
        """The smaller one of two integers; of a vector's, in every lane."""
        a, b = one.ir, one.operand(other)
        return type(one)(self.builder, self.builder.select(self.builder.icmp_signed("<", a, b), a, b))


@contextmanager
def for_loop(builder: ir.IRBuilder, stop: ir.Value, start: ir.Value, step: ir.Value) -> Iterator[ir.Value]:
    """The same loop of LLVM's values."""
    before = builder.block
    head, body, end = (builder.append_basic_block(name) for name in ("head", "body", "end"))
    builder.branch(head)
    builder.position_at_end(head)
    at = builder.phi(INDEX)
    at.add_incoming(start, before)
    builder.cbranch(builder.icmp_signed("<", at, stop), body, end)
    builder.position_at_end(body)
    yield at
    at.add_incoming(builder.add(at, step), builder.block)
    builder.branch(head)
    builder.position_at_end(end)
