"""Kill a search at random moments, continue it each time, and hold what is left against what was promised.

    python tests/chaos/chaos.py --kills 50 --json chaos.json

A search with tiny networks on 5,000 images is started again and again with the same command, and its whole
process group is killed (SIGKILL) after a random time. At the end it may finish. Then the storage alone is
asked: is every trial that was ever seen finished still there with its value, was no candidate trained to
the end twice, is no trial left running, is the total reached, is the database intact? Exit code 1 if not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

SPACE = """
[[stages]]
blocks = [1, 2]
channels = { min = 2, max = 16 }
kernel = [3, 5]
downsample = "stride"

[[stages]]
blocks = [1, 2]
channels = { min = 2, max = 16 }
activation = ["relu", "silu"]
downsample = ["max", "average"]
"""
RECIPE = "batch_size = 64\nlearning_rate = 0.1\n"
COUNTS = ("trained", "stopped early", "failed")
DATABASE = "studies/nas_mnist.db"


def command(trials: int, workers: int) -> list[str]:
    """The one command that is given again and again."""
    search = [sys.executable, "-m", "nas_mnist.search", "--dataset", "mnist-5k", "--device", "cpu", "--space"]
    search += ["space.toml", "--recipe", "recipe.toml", "--epochs", "3", "--no-retrain"]
    return [*search, "--trials", str(trials), "--workers", str(workers)]


def start(folder: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    """A search in a process group of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    log = (folder / "log.txt").open("ab")
    with log:
        return subprocess.Popen(
            arguments, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def trials_of(folder: Path) -> list[FrozenTrial]:
    """What the storage holds; empty before there is a study."""
    if not (folder / DATABASE).is_file():
        return []
    try:
        study = optuna.load_study(study_name="nas_mnist", storage=f"sqlite:///{folder / DATABASE}")
    except KeyError:
        return []
    return study.get_trials(deepcopy=False)


def finished(trials: list[FrozenTrial]) -> dict[int, Any]:
    """What must never change again: value, state and curve of every trial that ended with a verdict."""
    return {
        trial.number: (trial.value, trial.state, dict(trial.intermediate_values), trial.user_attrs["verdict"])
        for trial in trials
        if trial.state.is_finished() and "verdict" in trial.user_attrs
    }


def complaints(folder: Path, seen: dict[int, Any], trials: int) -> list[str]:
    """What is not as promised."""
    stored = trials_of(folder)
    now = finished(stored)
    found = [
        f"trial {number} was {was}, is {now.get(number)}"
        for number, was in seen.items()
        if now.get(number) != was
    ]
    keys = Counter(trial.user_attrs["key"] for trial in stored if trial.user_attrs.get("verdict") in COUNTS)
    found += [f"candidate {key} was trained {count} times" for key, count in keys.items() if count > 1]
    found += [
        f"trial {trial.number} is left running" for trial in stored if trial.state == TrialState.RUNNING
    ]
    if keys.total() != trials:
        found.append(f"{keys.total()} candidates, not {trials}")
    with contextlib.closing(sqlite3.connect(folder / DATABASE)) as database:
        if (answer := database.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
            found.append(f"integrity_check: {answer}")
    return found


def torment(folder: Path, kills: int, trials: int, workers: int, rng: random.Random) -> dict[str, Any]:
    """Kill and continue, then let it finish; what happened."""
    (folder / "space.toml").write_text(SPACE)
    (folder / "recipe.toml").write_text(RECIPE)
    began, seen, starts, killed, lost = time.monotonic(), {}, 0, 0, []
    while killed < kills:
        running = start(folder, command(trials, workers))
        starts += 1
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(rng.uniform(0.2, 14.0))
        if running.poll() is not None:
            break  # it came to its end before all kills were done
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        killed += 1
        time.sleep(0.2)
        seen |= {number: was for number, was in finished(trials_of(folder)).items() if number not in seen}
    ended = start(folder, command(trials, workers))
    code = ended.wait(600)
    lost = complaints(folder, seen, trials)
    if code != 0:
        tail = (folder / "log.txt").read_text(errors="replace")[-1500:]
        lost.append(f"the last search ended with code {code}: {tail}")
    states = Counter(trial.state.name.lower() for trial in trials_of(folder))
    return {
        "storage": "sqlite",
        "kills": killed,
        "starts": starts + 1,
        "workers": workers,
        "candidates": trials,
        "trials": dict(states),
        "complaints": lost,
        "seconds": round(time.monotonic() - began),
    }


def main() -> int:
    """Parse, torment, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--trials", type=int, default=0, help="candidates; else three a kill")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        trials = asked.trials or 3 * asked.kills
        found = torment(Path(name), asked.kills, trials, asked.workers, random.Random(asked.seed))
    text = json.dumps(found, indent=2)
    print(text)
    if asked.json:
        asked.json.write_text(text + "\n")
    return 1 if found["complaints"] else 0


if __name__ == "__main__":
    sys.exit(main())
