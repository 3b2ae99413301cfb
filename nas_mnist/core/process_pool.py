"""Several processes that share a number of jobs: each loads torch and the data once.

On a CPU, networks this small train faster as one single-thread process a core than as one process with
many threads. What the workers do reaches the parent as events.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping, MutableSequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from .errors import InputError, NoResultError
from .signals import listen

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess
    from multiprocessing.sharedctypes import Synchronized

MAX_WORKERS = 64
MAX_AUTO = 8  # the sampler learns less from candidates that are drawn at the same time
STOP_WITHIN = 1.5  # seconds; an interrupted worker puts its candidate back in that time, or is killed


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


def threads_of(processes: int) -> int:
    """Threads that each of so many processes may use: its share of the cores, at most OMP_NUM_THREADS."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    most = int(asked[:9]) if asked.isascii() and asked.isdecimal() else MAX_WORKERS
    return max(1, min(cores() // max(1, processes), most))


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
    first), `WorkersLostError` where workers were killed (the others finish first), and `RuntimeError` with
    a worker's traceback where one broke. Interrupted, every worker gets a `KeyboardInterrupt` and a moment
    before the interruption goes on.
    """
    context = multiprocessing.get_context("spawn")
    count = min(count, jobs)
    taken, idle = context.Value("i", 0), context.RawArray("b", count)
    threads = threads_of(count)
    workers: list[SpawnProcess] = []
    pipes: list[Connection] = []  # one a worker: whoever is killed while it writes harms no other
    try:
        for number in range(count):
            ours, theirs = context.Pipe(duplex=False)
            arguments = (work, number, threads, jobs, taken, idle, theirs)
            workers.append(context.Process(target=_live, args=arguments, daemon=True))
            workers[-1].start()
            theirs.close()  # so that the pipe ends with the worker
            pipes.append(ours)
        _listen(pipes, handlers)
    except BaseException:
        for worker in workers:
            worker.terminate()
        raise
    finally:
        _join(workers)


def _listen(pipes: list[Connection], handlers: Handlers) -> None:
    """Pass events on until every worker has ended."""
    at_work, lost = list(pipes), 0
    done: list[Connection] = []
    refused: Exception | None = None
    while at_work:
        for pipe in wait(at_work):
            assert isinstance(pipe, Connection)
            try:
                kind, content = pipe.recv()
            except (EOFError, OSError):  # the second: within a message
                at_work.remove(pipe)
                if pipe not in done:
                    lost += 1
                    if at_work and "lost" in handlers:
                        handlers["lost"](len(at_work))
                continue
            if kind == "event":
                name, *rest = content
                handlers[name](*rest)
            elif kind == "broken":
                raise RuntimeError(f"a worker broke:\n{content}")
            else:
                done.append(pipe)
                refused = content or refused
    if refused:
        raise refused
    if lost:
        raise WorkersLostError(
            f"{lost} of {len(pipes)} workers ended without a word (killed, or out of memory?)"
        )


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
    pipe: Connection,
) -> None:
    """One worker's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    listen(signal.SIGTERM)

    def tell(kind: str, content: Any) -> None:
        try:
            pipe.send((kind, content))
        except BrokenPipeError:  # the parent was killed
            raise KeyboardInterrupt from None

    def send(*event: Any) -> None:
        tell("event", event)

    def claim() -> int | None:
        with taken.get_lock():
            taken.value += 1
            return taken.value - 1 if taken.value <= jobs else None

    def be_idle(now: bool) -> None:
        idle[number] = now

    def share() -> int:
        return max(threads, threads_of(len(idle) - sum(idle)))

    try:
        try:
            work(Desk(number, threads, claim, be_idle, share, send))
            tell("done", None)
        except (InputError, NoResultError) as error:
            tell("done", error)
        except Exception:
            tell("broken", traceback.format_exc())
    except KeyboardInterrupt:  # nobody listens any more, and everything is put back
        be_idle(True)
        os._exit(0)  # torch takes its time to go
    finally:
        be_idle(True)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # there is nothing left to put back
