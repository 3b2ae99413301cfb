"""Threads that run call lists, and between two of them wait in a loop of compiled code.

Waking a thread that sleeps takes an operating system longer than many a call list runs, and a step has about
twenty of them.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import torch
from llvmlite import ir

from ..kernels.compile import CallList, compile_module, declare_runner
from ..kernels.values import INDEX, INDICES

_SPINS = 5_000  # looks at a mailbox before the wait ends: one to four milliseconds
# Places in a worker's mailbox: the number of the job that is asked for with its arguments, and, in another
# cache line, the number of the last job that is done.
_ASKED, _TABLE, _CALLS, _START, _STOP, _DONE = 0, 1, 2, 3, 4, 8


class WorkerThread:
    """A thread that runs call lists, one after the other, for the thread that made it."""

    def __init__(self) -> None:
        self._mailbox = torch.zeros(16, dtype=torch.int64).numpy()  # torch's memory begins at a cache line
        self._address = self._mailbox.ctypes.data
        self._pool = ThreadPoolExecutor(1)
        self._serving: Future[None] | None = None
        self._asked = 0  # jobs so far
        self._memory: object = None  # of the job that is being done

    def begin(self, call_list: CallList, start: int, stop: int, memory: object) -> None:
        """Run a call list for some tiles; `finish` comes next. It and ``memory`` are kept until then."""
        if self._memory is not None:  # the wait for the last job was interrupted
            self.finish()
        self._memory = call_list, memory
        self._mailbox[_TABLE : _STOP + 1] = *call_list.address_and_length, start, stop
        self._asked += 1
        self._ask()

    def finish(self) -> None:
        """Wait until the call list is done."""
        while not _loops().wait(self._address, self._asked):
            self._ask()  # the thread fell asleep just now, or `begin` was interrupted
        self._memory = None

    def _ask(self) -> None:
        _loops().ask(self._address, self._asked)
        if self._serving is None or self._serving.done():
            self._serving = self._pool.submit(self._serve)

    def _serve(self) -> None:
        """The work of the thread; the bound method keeps the mailbox."""
        _loops().serve(self._address, 0)


class _Loops(NamedTuple):
    """Compiled functions of the address of a mailbox and a number."""

    # (mailbox, number): publish the job of this number, and everything that was written before.
    ask: Callable[[int, int], int]
    # (mailbox, number): 1 when this job is done; 0 after a while.
    wait: Callable[[int, int], int]
    # (mailbox, any): run jobs as they are asked for, until none comes for a while.
    serve: Callable[[int, int], int]


@functools.cache
def _loops() -> _Loops:
    module = ir.Module()
    run = declare_runner(module)

    build, mailbox, number = _function(module, "ask")
    build.store_atomic(number, _place(build, mailbox, _ASKED), "release", 8)
    build.ret(number)

    build, mailbox, number = _function(module, "wait")
    with _spinning(build) as after:
        done = build.load_atomic(_place(build, mailbox, _DONE), "acquire", 8)
        with build.if_then(build.icmp_signed("==", done, number)):
            build.ret(ir.Constant(INDEX, 1))
    build.position_at_end(after)
    build.ret(ir.Constant(INDEX, 0))

    build, mailbox, _ = _function(module, "serve")
    again = build.append_basic_block("again")
    build.branch(again)
    build.position_at_end(again)
    done = build.load(_place(build, mailbox, _DONE))
    with _spinning(build) as after:
        asked = build.load_atomic(_place(build, mailbox, _ASKED), "acquire", 8)
        with build.if_then(build.icmp_signed("!=", asked, done)):
            arguments = [build.load(_place(build, mailbox, at)) for at in (_TABLE, _CALLS, _START, _STOP)]
            build.call(run, [build.inttoptr(arguments[0], INDICES), *arguments[1:]])
            build.store_atomic(asked, _place(build, mailbox, _DONE), "release", 8)
            build.branch(again)
    build.position_at_end(after)
    build.ret(ir.Constant(INDEX, 0))

    function = ctypes.CFUNCTYPE(*[ctypes.c_int64] * 3)
    return _Loops(*map(function, compile_module(module, *_Loops._fields)))


def _function(module: ir.Module, name: str) -> tuple[ir.IRBuilder, ir.Value, ir.Value]:
    """A builder for a function of two integers, and these."""
    function = ir.Function(module, ir.FunctionType(INDEX, [INDEX] * 2), name)
    return ir.IRBuilder(function.append_basic_block()), *function.args


def _place(build: ir.IRBuilder, mailbox: ir.Value, at: int) -> ir.Value:
    return build.gep(build.inttoptr(mailbox, INDICES), [ir.Constant(INDEX, at)])


@contextmanager
def _spinning(build: ir.IRBuilder) -> Iterator[ir.Block]:
    """A loop of `_SPINS` turns that yields to other threads; gives the block after it."""
    before = build.block
    turn, after = build.append_basic_block("turn"), build.append_basic_block("after")
    build.branch(turn)
    build.position_at_end(turn)
    count = build.phi(INDEX)
    count.add_incoming(ir.Constant(INDEX, 0), before)
    yield after
    sched_yield = ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value
    function = ir.FunctionType(ir.IntType(32), []).as_pointer()
    build.call(build.inttoptr(ir.Constant(INDEX, sched_yield), function), [])
    more = build.add(count, ir.Constant(INDEX, 1))
    count.add_incoming(more, build.block)
    build.cbranch(build.icmp_signed("<", more, ir.Constant(INDEX, _SPINS)), turn, after)
