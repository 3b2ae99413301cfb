"""Worker threads: every batch tile is run once, whatever the workers did before."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from nas_mnist.engine.cpu import worker
from nas_mnist.engine.cpu.threads import run_parallel
from nas_mnist.engine.kernels.compile import LANES, CallList, DType, compiled
from nas_mnist.engine.kernels.writer import Writer

FLOAT64 = DType(torch.float64)


@compiled()
def counting(w: Writer) -> None:
    """Adds one to the numbers of a batch tile."""
    counts, at = w.argument(), w.batch_tile * LANES
    w.store(w.load(counts, at) + 1.0, counts, at)


@compiled()
def noting(w: Writer) -> None:
    """Writes down which batch tile runs."""
    w.store(w.to_float(w.batch_tile), w.argument())


def check(threads: int, tiles: int, turns: int = 50, pause: float = 0.0) -> None:
    counts = np.zeros((tiles, LANES))
    call_lists = [CallList([[counting(FLOAT64), counts.ctypes.data]], counts) for _ in range(threads)]
    for _ in range(turns):
        run_parallel(call_lists, tiles, counts)
        time.sleep(pause)
    assert (counts == turns).all()


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("tiles", [1, 2, 100])
def test_every_tile_is_run_once(threads: int, tiles: int) -> None:
    check(threads, tiles)


def test_workers_that_sleep_are_woken() -> None:
    check(threads=3, tiles=9, turns=20, pause=0.02)


def test_threads_have_workers_of_their_own() -> None:
    with ThreadPoolExecutor(4) as pool:
        for job in [pool.submit(check, 2, 50, 200) for _ in range(8)]:
            job.result()


class Interrupted(CallList):
    """It is interrupted while others run."""

    def run(self, *_: Any) -> None:
        raise KeyboardInterrupt


def test_an_interrupt_waits_for_the_other_threads() -> None:
    last, tiles = np.zeros(LANES), 200_000_000  # a quarter of a second
    call_list = CallList([[noting(FLOAT64), last.ctypes.data]], last)
    with pytest.raises(KeyboardInterrupt):
        run_parallel([Interrupted([]), call_list], tiles, last)
    assert last[0] == tiles - 1
    check(threads=2, tiles=2)


def test_an_interrupt_before_a_worker_is_asked_hangs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    loops, asked = worker._loops(), []

    def ask(address: int, number: int) -> int:
        asked.append(number)
        if len(asked) == 1:
            raise KeyboardInterrupt
        return loops.ask(address, number)

    monkeypatch.setattr(worker, "_loops", lambda: loops._replace(ask=ask))
    with pytest.raises(KeyboardInterrupt):
        check(threads=2, tiles=9)
    check(threads=2, tiles=9)
    assert len(asked) > 50


def test_threads_come_and_go() -> None:
    for _ in range(20):
        thread = threading.Thread(target=check, args=(2, 20, 5))
        thread.start()
        thread.join()


def test_a_process_that_was_forked_has_workers_of_its_own() -> None:
    code = """
import os, sys, threading, test_threads

def fork():
    test_threads.check(3, 9)
    child = os.fork()
    test_threads.check(3, 9, turns=5)
    if not child:
        os._exit(7)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

codes = []
fork()
thread = threading.Thread(target=fork)
thread.start()
thread.join()
assert codes == [7, 7]
"""
    environment = {"PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment)
