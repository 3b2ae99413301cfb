"""Threads that help to run programs, and wait for the next one in a loop of compiled code.

Waking a thread that sleeps takes a system longer than many a program runs, and there are about twenty of them
in a step.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from llvmlite import ir

from .maps import zeros
from .vectors import Program, compiled, declare_runner
from .writer import INDEX, INDICES

_PATIENCE = 5_000  # looks at what it waits for before a helper goes to sleep: one to four milliseconds
# Places in a helper's box: what is asked of it, and, in another cache line, what is done.
_ASKED, _TABLE, _ROWS, _START, _STOP, _DONE = 0, 1, 2, 3, 4, 8


class Helper:
    """One thread, for one other thread, which asks it to run programs, one after the other."""

    def __init__(self) -> None:
        self._box = zeros((16,), np.dtype(np.int64))
        self._address = self._box.ctypes.data
        self._pool = ThreadPoolExecutor(1)
        self._serving: Future[None] | None = None
        self._asked = 0  # programs so far
        self._memory: object = None  # of what is being done

    def begin(self, program: Program, start: int, stop: int, memory: object) -> None:
        """Run a program for some groups; `finish` comes next. The program and ``memory`` stay until then."""
        if self._memory is not None:  # that was interrupted
            self.finish()
        self._memory = program, memory
        self._box[_TABLE : _STOP + 1] = *program.where, start, stop
        self._asked += 1
        self._ask()

    def finish(self) -> None:
        """Wait until the program that was begun is done."""
        while not _loops().wait(self._address, self._asked):
            self._ask()  # it fell asleep just now, or `begin` was interrupted
        self._memory = None

    def _ask(self) -> None:
        _loops().ask(self._address, self._asked)
        if self._serving is None or self._serving.done():
            self._serving = self._pool.submit(self._serve)

    def _serve(self) -> None:
        """What the thread does; it keeps all memory."""
        _loops().serve(self._address)


class _Loops(NamedTuple):
    """Compiled functions of the address of a helper's box."""

    # (box, number): let the number be seen, and everything that was written before.
    ask: Callable[[int, int], int]
    # (box, number): 1 when so many programs are done; 0: it takes longer.
    wait: Callable[[int, int], int]
    # (box): run programs as they are asked for, until none comes for a while.
    serve: Callable[[int], int]


@functools.cache
def _loops() -> _Loops:
    module = ir.Module()
    run = declare_runner(module)

    build, box, number = _function(module, "ask", 2)
    build.store_atomic(number, _place(build, box, _ASKED), "release", 8)
    build.ret(number)

    build, box, number = _function(module, "wait", 2)
    with _patiently(build) as out:
        done = build.load_atomic(_place(build, box, _DONE), "acquire", 8)
        with build.if_then(build.icmp_signed("==", done, number)):
            build.ret(ir.Constant(INDEX, 1))
    build.position_at_end(out)
    build.ret(ir.Constant(INDEX, 0))

    build, box = _function(module, "serve", 1)
    again = build.append_basic_block("again")
    build.branch(again)
    build.position_at_end(again)
    done = build.load(_place(build, box, _DONE))
    with _patiently(build) as out:
        asked = build.load_atomic(_place(build, box, _ASKED), "acquire", 8)
        with build.if_then(build.icmp_signed("!=", asked, done)):
            arguments = [build.load(_place(build, box, at)) for at in (_TABLE, _ROWS, _START, _STOP)]
            build.call(run, [build.inttoptr(arguments[0], INDICES), *arguments[1:]])
            build.store_atomic(asked, _place(build, box, _DONE), "release", 8)
            build.branch(again)
    build.position_at_end(out)
    build.ret(ir.Constant(INDEX, 0))

    kinds = {"ask": 2, "wait": 2, "serve": 1}
    addresses = compiled(module, *kinds)
    return _Loops(
        *(
            ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * count)(address)
            for address, count in zip(addresses, kinds.values(), strict=True)
        )
    )


def _function(module: ir.Module, name: str, count: int) -> tuple[ir.IRBuilder, *tuple[ir.Value, ...]]:
    """A builder for a function of so many whole numbers, and these."""
    function = ir.Function(module, ir.FunctionType(INDEX, [INDEX] * count), name)
    return ir.IRBuilder(function.append_basic_block()), *function.args


def _place(build: ir.IRBuilder, box: ir.Value, at: int) -> ir.Value:
    return build.gep(build.inttoptr(box, INDICES), [ir.Constant(INDEX, at)])


@contextmanager
def _patiently(build: ir.IRBuilder) -> Iterator[ir.Block]:
    """A loop of `_PATIENCE` turns, which give way to other threads; it gives what comes behind them."""
    before = build.block
    turn, out = build.append_basic_block("turn"), build.append_basic_block("out")
    build.branch(turn)
    build.position_at_end(turn)
    count = build.phi(INDEX)
    count.add_incoming(ir.Constant(INDEX, 0), before)
    yield out
    giving_way = ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value
    kind = ir.FunctionType(ir.IntType(32), []).as_pointer()
    build.call(build.inttoptr(ir.Constant(INDEX, giving_way), kind), [])
    more = build.add(count, ir.Constant(INDEX, 1))
    count.add_incoming(more, build.block)
    build.cbranch(build.icmp_signed("<", more, ir.Constant(INDEX, _PATIENCE)), turn, out)
