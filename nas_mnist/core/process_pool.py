"""Worker processes that share a number of jobs; each loads torch and the data once.

On a CPU, networks this small train faster in one single-thread process a core than in one process with many
threads. Workers report to the parent by events.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, MutableSequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .cores import available_cores
from .errors import InputError, NoResultError
from .numbers import parse_whole
from .signals import raise_on

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess
    from multiprocessing.sharedctypes import Synchronized

MAX_WORKERS = 64
MAX_AUTO_WORKERS = 8  # a sampler learns less from candidates that are drawn at the same time
STOP_SECONDS = 1.5  # an interrupted worker puts its candidate back within this time, or is killed


class WorkersLostError(NoResultError):
    """Workers were killed by a person or by the system."""


@dataclass(frozen=True)
class WorkerContext:
    """The connection of one worker to its parent and to the other workers."""

    number: int  # 0 is the first worker
    threads: int  # that this worker may use
    next_job: Callable[[], int | None]  # the next job, counted from 0; None: all jobs are taken
    set_idle: Callable[[bool], None]  # an idle worker lends its core to the others
    available_threads: Callable[[], int]  # threads that this worker may use while others are idle
    send: Callable[..., None]  # send("epoch", 3, result) calls the parent's handler "epoch" with (3, result)


Job = Callable[[WorkerContext], None]  # pickled for the processes: a module's function, or frozen plain data
Handlers = Mapping[str, Callable[..., None]]


def threads_per_process(processes: int) -> int:
    """Threads for each of ``processes`` processes: an equal share of the cores, at most OMP_NUM_THREADS."""
    limit = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # of nested loops the outermost
    asked, cores = parse_whole(limit, 0, 10**9), available_cores()
    return max(1, min(cores // max(1, processes), cores if asked is None else asked))


def parse_workers(text: str) -> int | None:
    """A number of workers, None for ``auto``; raises `InputError`."""
    if text == "auto":
        return None
    if (number := parse_whole(text, 1, MAX_WORKERS)) is None:
        raise InputError(f"--workers: {text[:40]!r} (use 'auto' or 1 to {MAX_WORKERS})")
    return number


def auto_workers(device: str) -> int:
    """The number of workers that pays: one a core, up to a limit, on a CPU; one on other devices."""
    return min(available_cores(), MAX_AUTO_WORKERS) if device == "cpu" else 1


def run_workers(job: Job, count: int, jobs: int, handlers: Handlers) -> None:
    """Call ``job`` in ``count`` processes until ``jobs`` jobs are taken and done.

    The optional handler ``lost`` is called with the number of workers left when a worker was killed.

    Raises a worker's `InputError` or `NoResultError` and `WorkersLostError` for killed workers, both after
    the others have finished. Raises `RuntimeError` with a worker's traceback for any other exception.
    After an interruption every worker gets a `KeyboardInterrupt` and `STOP_SECONDS` to put its job back.
    """
    context = multiprocessing.get_context("spawn")
    count = min(count, jobs)
    taken, idle = context.Value("i", 0), context.RawArray("b", count)
    threads = threads_per_process(count)
    workers: list[SpawnProcess] = []
    pipes: list[Connection] = []  # one a worker: a worker that is killed while it writes harms no other
    try:
        for number in range(count):
            receiver, sender = context.Pipe(duplex=False)
            arguments = (job, number, threads, jobs, taken, idle, sender)
            workers.append(context.Process(target=_worker_main, args=arguments, daemon=True))
            with _main_module_hidden():
                workers[-1].start()
            sender.close()  # so that the pipe ends with the worker
            pipes.append(receiver)
        _dispatch_events(pipes, handlers)
    except BaseException:
        for worker in workers:
            worker.terminate()
        raise
    finally:
        _join(workers)


@contextlib.contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Let a new process not import the program that starts it, which may be a script without a guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def run_here(job: Job, jobs: int, handlers: Handlers) -> None:
    """The same as `run_workers` with one worker, in this process: a new one takes seconds to load torch."""
    waiting, threads = iter([*range(jobs), None]), threads_per_process(1)

    def send(name: str, *arguments: object) -> None:
        handlers[name](*arguments)

    job(WorkerContext(0, threads, lambda: next(waiting), lambda _: None, lambda: threads, send))


def _dispatch_events(pipes: list[Connection], handlers: Handlers) -> None:
    """Call handlers until every worker has ended."""
    open_pipes, lost = list(pipes), 0
    done: list[Connection] = []
    refused: Exception | None = None
    while open_pipes:
        for pipe in wait(open_pipes):
            assert isinstance(pipe, Connection)
            try:
                message, content = pipe.recv()
            except (EOFError, OSError):  # OSError: the worker ended within a message
                open_pipes.remove(pipe)
                if pipe not in done:
                    lost += 1
                    if open_pipes and "lost" in handlers:
                        handlers["lost"](len(open_pipes))
                continue
            if message == "event":
                name, *arguments = content
                handlers[name](*arguments)
            elif message == "broken":
                raise RuntimeError(f"a worker broke:\n{content}")
            else:
                done.append(pipe)
                refused = content or refused
    if refused:
        raise refused
    if lost:
        raise WorkersLostError(f"{lost} of {len(pipes)} workers were killed (out of memory?)")


def _join(workers: list[SpawnProcess]) -> None:
    """Wait for the workers to end, and kill workers that take too long."""
    deadline = time.monotonic() + STOP_SECONDS
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
        if worker.is_alive():
            worker.kill()


def _worker_main(
    job: Job,
    number: int,
    threads: int,
    jobs: int,
    taken: Synchronized[int],
    idle: MutableSequence[int],  # by worker, in shared memory
    pipe: Connection,
) -> None:
    """The main function of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    raise_on(signal.SIGTERM)

    def message(kind: str, content: Any) -> None:
        try:
            pipe.send((kind, content))
        except BrokenPipeError:  # the parent was killed
            raise KeyboardInterrupt from None

    def next_job() -> int | None:
        with taken.get_lock():
            taken.value += 1
            return taken.value - 1 if taken.value <= jobs else None

    def set_idle(now: bool) -> None:
        idle[number] = now

    def available_threads() -> int:
        return max(threads, threads_per_process(len(idle) - sum(idle)))

    def send(*event: Any) -> None:
        message("event", event)

    try:
        try:
            job(WorkerContext(number, threads, next_job, set_idle, available_threads, send))
            message("done", None)
        except (InputError, NoResultError) as error:
            message("done", error)
        except Exception:
            message("broken", traceback.format_exc())
    except KeyboardInterrupt:  # the parent has stopped listening, and the job was put back
        set_idle(True)
        os._exit(0)  # an orderly exit of torch takes too long
    finally:
        set_idle(True)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
