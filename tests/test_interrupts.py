"""An interruption ends a command with exit code 130, wherever it falls."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_module, run_python

from nas_mnist.core.cli import INTERRUPTED

PROGRAM = """
import signal, time
from nas_mnist.core.cli import run

def command() -> None:
    signal.raise_signal(signal.{name})
    time.sleep({seconds})

run(command)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interruption_ends_with_130(name: str, work: Path) -> None:
    ended = run_python(["-c", PROGRAM.format(name=name, seconds=30)], work)
    assert (ended.code, ended.err) == (INTERRUPTED, "")


def test_a_signal_that_the_parent_ignores_stays_ignored() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(name="SIGINT", seconds=0)],
        check=False,
        capture_output=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        timeout=20,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_an_interruption_while_libraries_load_says_how_to_go_on(work: Path) -> None:
    """A torch that is only half loaded when the signal comes."""
    (work / "torch.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)\n"
    )
    ended = run_module("search", "--trials", 3, "--json", "new.json", cwd=work)
    assert (ended.code, ended.err) == (INTERRUPTED, "")
    assert ended.out == "Interrupted. Continue with:\npython -m nas_mnist.search --trials 3 --json new.json\n"
    assert {path.name for path in work.iterdir()} <= {"torch.py", "__pycache__"}


SWALLOWED = """
import signal, time
from nas_mnist.core.cli import run

class Resource:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)

def command() -> None:
    Resource()
    time.sleep(30)

run(command)
"""


def test_an_interruption_within_a_destructor_is_not_lost(work: Path) -> None:
    ended = run_python(["-c", SWALLOWED], work)
    assert (ended.code, ended.err) == (INTERRUPTED, "")
