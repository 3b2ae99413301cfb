"""Processes that share jobs and the machine's cores."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import torch
from optuna.trial import TrialState

from nas_mnist.core.cores import available_cores, cpu_quota
from nas_mnist.core.process_pool import WorkerContext, run_workers, threads_per_process
from nas_mnist.recipes.recipe import load_recipe
from nas_mnist.study.owner import OWNER, this_process
from nas_mnist.study.search_loop import search
from nas_mnist.training.device import describe_device, pick_device

PATIENCE = 60.0  # seconds


@pytest.fixture(autouse=True)
def threads_as_they_come(monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.parametrize(
    ("processes", "asked", "threads"),
    [
        (1, "", 8),
        (2, "", 4),
        (3, "", 2),
        (9, "", 1),
        (0, "", 8),
        (1, "3", 3),
        (4, "3", 2),
        (1, "0", 1),
        (1, "x", 8),
    ],
)
def test_threads_are_a_share_of_the_cores_and_no_more_than_asked_for(
    monkeypatch, processes: int, asked: str, threads: int
) -> None:
    monkeypatch.setattr("nas_mnist.core.process_pool.available_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert threads_per_process(processes) == threads


def wait_for_every_core(worker: WorkerContext) -> None:
    deadline = time.monotonic() + PATIENCE
    while worker.available_threads() < available_cores() and time.monotonic() < deadline:
        time.sleep(0.01)


def one_waits(worker: WorkerContext) -> None:
    """The first worker waits until the second one has seen it wait."""
    while (job := worker.next_job()) is not None:
        worker.send("share", job, worker.available_threads())
    worker.set_idle(worker.number == 0)
    if worker.number == 1:
        wait_for_every_core(worker)
    worker.send("share", -1 - worker.number, worker.available_threads())


def one_ends(worker: WorkerContext) -> None:
    """The first worker to come takes a job and ends; the other one goes on until it has every core."""
    if job := worker.next_job():
        wait_for_every_core(worker)
    worker.send("share", job, worker.available_threads())


@pytest.mark.parametrize(("job", "last"), [(one_waits, -2), (one_ends, 1)])
def test_a_worker_gets_the_cores_of_those_that_wait_or_have_ended(
    job: Callable[[WorkerContext], None], last: int
) -> None:
    shares: dict[int, int] = {}
    run_workers(job, 2, 2, {"share": shares.__setitem__})
    assert shares[last] == available_cores()


def test_a_search_says_when_it_only_waits_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study()
    others = [study.ask(), study.ask()]
    for trial in others:
        trial.set_user_attr(OWNER, this_process())
    idle: list[bool] = []

    def one_ends(_: float) -> None:
        trial = others.pop()
        trial.set_user_attr("verdict", "stopped early")
        study.tell(trial, state=TrialState.PRUNED)

    monkeypatch.setattr("nas_mnist.study.search_loop.time.sleep", one_ends)
    candidates = SimpleNamespace(recipe=load_recipe("default"))
    objective = SimpleNamespace(candidates=candidates, compare_by=None)
    search(study, objective, total=2, seed="0", on_idle=idle.append)
    assert idle == [True, True]


def test_a_device_is_described_with_how_it_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas_mnist.training.device.threads_per_process", lambda workers: 8 // workers)
    monkeypatch.setattr("nas_mnist.training.device.torch.get_num_threads", lambda: 1)
    cpu = torch.device("cpu")
    assert describe_device(cpu) == "cpu (1 thread)"
    assert describe_device(cpu, 2) == "cpu (2 workers, 4 threads each)"
    assert describe_device(cpu, 8) == "cpu (8 workers, 1 thread each)"
    assert describe_device(torch.device("meta"), 2) == "meta (2 workers)"


GROUPS = {  # files below the root, and the quota in cores
    "version 2": ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "100000 100000\n"}, 1.0),
    "version 2, of a parent": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
        },
        1.5,
    ),
    "version 2, a container's own root": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"},
        0.5,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "9:name=systemd:/x\n2:cpuacct:/\n1:cpu:/docker/c\n0::/\n",
            "sys/fs/cgroup/cpu/docker/c/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu/docker/c/cpu.cfs_period_us": "100000\n",
        },
        3.0,
    ),
    "version 1, seen from within": (
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/docker/c\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "20000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "10000\n",
        },
        2.0,
    ),
    "version 1, no quota": (
        {
            "proc/self/cgroup": "1:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        math.inf,
    ),
    "of other processes": (
        {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/b/cpu.max": "100000 100000\n"},
        math.inf,
    ),
    "damaged": ({"proc/self/cgroup": "x\n::\n0::/\n", "sys/fs/cgroup/cpu.max": "1 0"}, math.inf),
    "no groups": ({}, math.inf),
}


@pytest.mark.parametrize("kind", GROUPS)
def test_the_quota_of_a_container_is_read(kind: str, tmp_path: Path) -> None:
    files, quota = GROUPS[kind]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == quota


@pytest.mark.parametrize(
    ("quota", "cores"), [(0.5, 1), (1.0, 1), (1.5, 2), (3.0, 3), (math.inf, 8), (99.0, 8)]
)
def test_cores_are_counted_by_affinity_and_quota(
    quota: float, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas_mnist.core.cores.cpu_quota", lambda: quota)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert available_cores.__wrapped__() == cores


def test_torch_has_no_more_threads_than_cores_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    used = torch.get_num_threads()
    monkeypatch.setattr("nas_mnist.training.device.available_cores", lambda: 1)
    try:
        torch.set_num_threads(2)
        pick_device("cpu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(used)
