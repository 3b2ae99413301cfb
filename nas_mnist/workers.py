"""Several processes that share a number of jobs: each loads torch and the data once.

On a CPU, networks this small train faster as one single-thread process a core than as one process with
many threads. What the workers do reaches the parent as events through a queue.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import time
import traceback
from collections.abc import Callable, Mapping, MutableSequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import InputError, NoResultError
from .interrupts import listen

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess
    from multiprocessing.queues import Queue
    from multiprocessing.sharedctypes import Synchronized

MAX_WORKERS = 64
MAX_AUTO = 8  # the sampler learns less from candidates that are drawn at the same time
STOP_WITHIN = 5.0  # seconds; an interrupted worker puts its candidate back in that time


class WorkersLostError(NoResultError):
    """Workers ended without a word: somebody or the system killed them."""


@dataclass(frozen=True)
class Desk:
    """What one worker is given."""

    number: int  # 0 is the first worker
    threads: int  # that it may use
    claim: Callable[[], int | None]  # the next job, counted from 0; None: all are taken
    idle: Callable[[bool], None]  # whether this worker has nothing to do, so that others may use its core
    share: Callable[[], int]  # threads that it may use while others are idle
    send: Callable[..., None]  # send("epoch", 3, result) calls the parent's handler "epoch" with the rest


Work = Callable[[Desk], None]  # sent to the processes: a function of a module, or frozen plain data
Handlers = Mapping[str, Callable[..., None]]


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parse_workers(text: str) -> int | None:
    """A number of workers, None for ``auto``; raises `InputError`."""
    if text == "auto":
        return None
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text[:9]) <= MAX_WORKERS:
        raise InputError(f"--workers: {text!r} (use 'auto' or 1 to {MAX_WORKERS})")
    return int(text)


def auto_workers(device: str) -> int:
    """How many workers pay: one a core, up to a limit, on a CPU; one on anything else."""
    return min(cores(), MAX_AUTO) if device == "cpu" else 1


def run_workers(work: Work, count: int, jobs: int, handlers: Handlers) -> None:
    """Let ``count`` processes do ``work`` until ``jobs`` jobs are claimed and done.

    A handler called ``lost``, where there is one, hears how many workers are left when one was killed.

    Raises what a worker raised where that is an `InputError` or a `NoResultError` (the others finish
    first), `WorkersLostError` where workers were killed and no other is left, and `RuntimeError` with a
    worker's traceback where one broke. Interrupted, every worker gets a `KeyboardInterrupt` and a few
    seconds before the interruption goes on.
    """
    context = multiprocessing.get_context("spawn")
    count = min(count, jobs)
    taken, idle = context.Value("i", 0), context.RawArray("b", count)
    events: Queue[tuple[str, Any]] = context.Queue()
    threads = max(1, cores() // count)
    workers = [
        context.Process(target=_live, args=(work, number, threads, jobs, taken, idle, events), daemon=True)
        for number in range(count)
    ]
    for worker in workers:
        worker.start()
    try:
        _listen(workers, events, handlers)
    except BaseException:
        for worker in workers:
            worker.terminate()
        raise
    finally:
        _join(workers)


def _listen(workers: list[SpawnProcess], events: Queue[tuple[str, Any]], handlers: Handlers) -> None:
    """Pass events on until every worker is done."""
    done = gone = 0
    refused: Exception | None = None
    while done < len(workers):
        try:
            kind, content = events.get(timeout=1.0)
        except queue.Empty:
            killed = sum(worker.exitcode is not None and worker.exitcode < 0 for worker in workers)
            if gone < killed < len(workers) and "lost" in handlers:
                handlers["lost"](len(workers) - killed)
            gone = killed
            if not any(worker.is_alive() for worker in workers) and events.empty():
                lost = len(workers) - done
                raise WorkersLostError(
                    f"{lost} of {len(workers)} workers ended without a word (killed, or out of memory?); "
                    "the same command goes on"
                ) from None
            continue
        if kind == "event":
            name, *rest = content
            handlers[name](*rest)
        elif kind == "broken":
            raise RuntimeError(f"a worker broke:\n{content}")
        else:
            done += 1
            refused = content or refused
    if refused:
        raise refused


def _join(workers: list[SpawnProcess]) -> None:
    """Wait for the workers to end, and end those that do not."""
    deadline = time.monotonic() + STOP_WITHIN
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
        if worker.is_alive():
            worker.kill()


def _live(
    work: Work,
    number: int,
    threads: int,
    jobs: int,
    taken: Synchronized[int],
    idle: MutableSequence[int],  # by worker, shared
    events: Queue[tuple[str, Any]],
) -> None:
    """One worker's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    listen(signal.SIGTERM)
    parent = multiprocessing.parent_process()

    def send(*event: Any) -> None:
        if parent is not None and not parent.is_alive():
            raise KeyboardInterrupt
        events.put(("event", event))

    def claim() -> int | None:
        with taken.get_lock():
            taken.value += 1
            return taken.value - 1 if taken.value <= jobs else None

    def be_idle(now: bool) -> None:
        idle[number] = now

    def share() -> int:
        return max(threads, cores() // max(1, len(idle) - sum(idle)))

    try:
        work(Desk(number, threads, claim, be_idle, share, send))
        events.put(("done", None))
    except KeyboardInterrupt:
        events.cancel_join_thread()  # nobody listens any more
    except (InputError, NoResultError) as error:
        events.put(("done", error))
    except Exception:
        events.put(("broken", traceback.format_exc()))
    finally:
        be_idle(True)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # there is nothing left to put back
