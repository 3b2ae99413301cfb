"""Kill a search at random moments, continue it each time, and check the promises of the storage.

    python tests/chaos/chaos.py --storage sqlite --kills 50 --json chaos.json

A search with tiny networks is started again and again with the same command, and killed at a random moment:
all processes, one worker, or the first process alone, after which the workers must end by themselves. Once
all candidates are trained, it is killed while it trains the winner and writes the report. Then it may finish.

In the end the storage is checked. Every trial that was ever seen finished is still there with its value. No
candidate was trained to the end twice. No trial is left running. The total is reached, and the database is
intact. All files in the folder of reports are whole.

With PostgreSQL the server is also stopped during a search, as by a power cut. The search must end in one line
and, when the server is back, go on from two folders at once, as on two machines.

Exit code 1 where a check fails.
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
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from servers import Dashboard, PostgreSQL, postgresql

from nas_mnist.core.errors import InputError
from nas_mnist.study.storage import open_storage
from nas_mnist.training.classifier import Classifier

OPTIONS = (
    "--dataset mnist-5k --device cpu --space tiny --max-params 1000 --recipe published "
    "--finalists 2 --finalist-seeds 1"
)
COUNTS = ("trained", "stopped early", "failed")
STARTING = 10.0  # seconds; one kill in four comes so early
ENDING = 15.0  # seconds; what a search does after its candidates takes about so long
PARTS = ("everything", "one worker", "the parent", "asked to end")  # what a kill hits
EPOCHS = 3
MANY = 20  # kills; with fewer it may happen that no trial ends before one
ORPHANED = 60.0  # seconds; by then workers without a parent must have ended
STORAGES = ("sqlite", "journal", "postgresql")


@dataclass
class Chaos:
    """One search, its storage, and the observations so far."""

    folder: Path
    url: str
    server: PostgreSQL | None
    trials: int
    workers: int
    with_dashboard: bool  # open all the time
    dashboard: Dashboard | None = None
    starts: int = 0
    kills: int = 0
    killed: Counter[str] = field(default_factory=Counter)  # kills by their target
    seen: dict[int, Any] = field(default_factory=dict)  # trials that had ended, which must not change
    wrong: list[str] = field(default_factory=list)

    def start(self, place: str = ".", *, retrain: bool = False) -> subprocess.Popen[bytes]:
        """The one command, in a process group and in a folder of its own."""
        folder = self.folder / place
        folder.mkdir(exist_ok=True)
        url = self.url.replace(f"{self.folder}/", "") if self.url.startswith("journal:") else self.url
        command = (
            f"-m nas_mnist.search {OPTIONS} --epochs {EPOCHS} --trials {self.trials} "
            f"--workers {self.workers} --storage {url}"
        )
        self.starts += 1
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *command.split(), *([] if retrain else ["--no-retrain"])],
                cwd=folder,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def log(self) -> Path:
        """What all searches have printed."""
        return self.folder / "log.txt"

    def kill_at_random(self, kills: int, longest: float, rng: random.Random) -> None:
        """Kill and continue, until it comes to its end or all kills are done."""
        while self.kills < kills:
            running = self.start()
            if rng.random() < 0.25:  # while it starts
                _wait(running, rng.uniform(0.2, STARTING))
            else:
                self.let_train(running, rng.uniform(0, longest))
            if running.poll() is not None:
                told = f"only {self.kills} of {kills} kills; the search ended with code {running.returncode}"
                self.wrong.append(f"{told}: {self.printed()[-500:]}")
                break
            self.kill(running, rng.choices(PARTS, (5, 2, 2, 1))[0])
            time.sleep(0.2)
            self.observe()

    def kill(self, running: subprocess.Popen[bytes], what: str) -> None:
        """Kill a search, all of it or a part, or ask it to end (SIGTERM); in the end nothing of it runs."""
        workers = _workers(running.pid)
        self.kills += 1
        if what == "asked to end" and workers:
            running.terminate()
            _wait(running, ORPHANED)
            if running.poll() != 130:
                self.wrong.append(f"asked to end it ended with code {running.returncode}")
        elif what == "one worker" and workers:
            os.kill(workers[0], signal.SIGKILL)
            _wait(running, 3.0)
            if running.poll() not in (None, 0) and len(workers) > 1:
                self.wrong.append(f"without one worker the search ended with code {running.returncode}")
        elif what == "the parent" and workers:
            os.kill(running.pid, signal.SIGKILL)
            deadline = time.monotonic() + ORPHANED
            while _group(running.pid) and time.monotonic() < deadline:
                _wait(running, 0.2)
                time.sleep(0.2)
            if _group(running.pid):
                self.wrong.append("workers went on without their parent")
        elif what != "at the end":
            what = "everything"
        self.killed[what] += 1
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()

    def kill_the_end(self, kills: int, rng: random.Random) -> None:
        """Kill it while it trains the winner again and reports; then let it come to its end."""
        for _ in range(kills):
            running = self.start(retrain=True)
            _wait(running, rng.uniform(1, ENDING))
            if running.poll() is None:
                self.kill(running, "at the end")
        code = self.start(retrain=True).wait(600)
        reports = self.folder / "reports"
        results = list(reports.rglob("result.json"))
        if code or not results or not list(reports.rglob("report.html")):
            self.wrong.append(f"the end came with code {code}, {len(results)} results")
        for file in [*results, *reports.rglob("summary.json")]:
            json.loads(file.read_text())
        for file in reports.rglob("weights-*.safetensors"):
            Classifier.load(file)

    def let_train(self, running: subprocess.Popen[bytes], seconds: float) -> None:
        """Wait until a search that was just started trains, and so many seconds more."""
        began = datetime.now()
        while running.poll() is None:
            trials = [trial for trial in self.stored() if trial.state == TrialState.RUNNING]
            if any(trial.datetime_start and trial.datetime_start > began for trial in trials):
                break
            _wait(running, 0.3)
        _wait(running, seconds)

    def printed(self) -> str:
        """The output of all searches."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def take_the_server_away(self, server: PostgreSQL, after: float) -> None:
        """Stop the server during a search; the search must end in one line, and the server comes back."""
        before, running = len(self.printed()), self.start()
        self.let_train(running, after)
        if running.poll() is not None:
            self.wrong.append("the search was over before the server went away")
        server.stop("immediate")
        code = running.wait(120)
        server.start()
        text = self.printed()[before:]
        if code != 1 or "Traceback" in text or text.count("error: ") != 1:
            self.wrong.append(f"without a server the search ended with code {code}: {text[-2000:]}")
        self.observe()

    def finish(self, within: float) -> None:
        """Let it come to its end; with a server as two machines would, from two folders at once."""
        places = ["one", "two"] if self.server else ["."]
        codes = [search.wait(within) for search in [self.start(place) for place in places]]
        left_to_it = self.printed().count("trains the finalists of this study")  # the other one's finals
        if sum(codes) > left_to_it or all(codes):
            self.wrong.append(f"the last search ended with code {codes}: {self.printed()[-1500:]}")

    def observe(self) -> None:
        """Remember every trial that has ended with a verdict; open the dashboard once there is a study."""
        stored = self.stored()
        self.seen |= {number: was for number, was in _finished(stored).items() if number not in self.seen}
        if self.with_dashboard and stored and self.dashboard is None:
            self.dashboard = Dashboard(self.url, self.folder)
            self.dashboard.start()

    def close_the_dashboard(self) -> None:
        """Close it, and keep its complaints."""
        if self.dashboard is not None and not self.dashboard.over.is_set():
            self.dashboard.stop()
            self.wrong += self.dashboard.wrong[:5]
            if not self.dashboard.reads:
                self.wrong.append("the dashboard showed nothing")

    def stored(self) -> list[FrozenTrial]:
        """The trials in the storage; empty before there is a study."""
        try:
            storage = open_storage(self.url, create=False)
            return optuna.load_study(study_name="nas_mnist", storage=storage).get_trials(deepcopy=False)
        except (InputError, KeyError):
            return []

    def check(self) -> dict[str, Any]:
        """Check all promises on the stored trials; returns the counts."""
        stored = self.stored()
        now, found, repeated = _finished(stored), self.wrong, 0
        changed = {number: was for number, was in self.seen.items() if now.get(number) != was}
        found += [f"trial {number} was {was}, is {now.get(number)}" for number, was in changed.items()]
        counted = [trial.user_attrs for trial in stored if trial.user_attrs.get("verdict") in COUNTS]
        whole = [trial.user_attrs for trial in stored if trial.user_attrs.get("epochs") == EPOCHS]
        for what, group in (("trained", counted), ("at its end", whole)):
            keys = Counter(attributes["key"] for attributes in group)
            repeated += len(group) - len(keys)
            found += [f"candidate {key} was {what} {n} times" for key, n in keys.items() if n > 1]
        if not self.seen and self.kills > MANY:
            found.append("no trial had ended before a kill")
        if "Traceback" in self.printed():
            found.append("a traceback was printed")
        running = [trial.number for trial in stored if trial.state == TrialState.RUNNING]
        found += [f"trial {number} is left running" for number in running]
        if len(counted) != self.trials:
            found.append(f"{len(counted)} candidates, not {self.trials}")
        found += self.damage()
        states = dict(Counter(trial.state.name.lower() for trial in stored))
        return {"lost": len(changed), "repeated": repeated, "trials": states}

    def damage(self) -> list[str]:
        """The complaints of the storage's own check."""
        if self.server is not None:
            complaint = self.server.check()
            return [complaint] if complaint else []
        if self.url.startswith("journal:"):
            lines = (self.folder / "studies" / "chaos.log").read_text().splitlines()
            return [line for line in lines if not isinstance(json.loads(line), dict)]
        file = self.folder / "studies" / "chaos.db"
        try:
            with contextlib.closing(sqlite3.connect(file)) as database:
                answer = database.execute("PRAGMA integrity_check").fetchone()[0]
        except sqlite3.DatabaseError as error:
            answer = str(error)
        return [] if answer == "ok" else [f"integrity_check: {answer}"]


def _group(group: int) -> list[int]:
    """The processes of a group that have not ended (Linux: ``man 5 proc``)."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = file.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(int(file.parent.name))
    return found


def _workers(group: int) -> list[int]:
    """The worker processes of a search that leads this group."""
    found = []
    for process in _group(group):
        with contextlib.suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{process}/cmdline").read_bytes():
                found.append(process)
    return found


def _wait(running: subprocess.Popen[bytes], seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        running.wait(seconds)


def _finished(trials: list[FrozenTrial]) -> dict[int, Any]:
    """Value, state and curve of every trial that ended with a verdict."""
    return {
        trial.number: (trial.value, trial.state, dict(trial.intermediate_values), trial.user_attrs["verdict"])
        for trial in trials
        if trial.state.is_finished() and "verdict" in trial.user_attrs
    }


@contextlib.contextmanager
def storage(name: str, folder: Path) -> Iterator[tuple[str, PostgreSQL | None]]:
    """The URL of a new storage, and its server where it has one."""
    (folder / "studies").mkdir()
    if name == "postgresql":
        with postgresql() as server:
            yield server.url, server
    else:
        file = f"{folder}/studies/chaos"
        yield f"journal:{file}.log" if name == "journal" else f"sqlite:///{file}.db", None


def run(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All kills on one storage; returns the result of all checks."""
    rng, began = random.Random(asked.seed), time.monotonic()
    trials = asked.trials or 5 * asked.kills + 5
    with storage(asked.storage, folder) as (url, server):
        chaos = Chaos(folder, url, server, trials, asked.workers, asked.dashboard)
        try:
            chaos.kill_at_random(asked.kills, asked.longest, rng)
            if server is not None:
                chaos.close_the_dashboard()
                chaos.take_the_server_away(server, asked.longest / 2)
            chaos.finish(1_800)
            chaos.kill_the_end(max(1, asked.kills // 5), rng)
        finally:
            chaos.close_the_dashboard()
        counts = chaos.check()
    return {
        "storage": asked.storage,
        "kills": chaos.kills,
        "killed": dict(chaos.killed),
        "starts": chaos.starts,
        **counts,
        "workers": asked.workers,
        "candidates": trials,
        "seen_finished_before_a_kill": len(chaos.seen),
        "seconds": round(time.monotonic() - began),
        "dashboard_looks": chaos.dashboard.reads if chaos.dashboard else None,
        "complaints": chaos.wrong,
    }


def main() -> int:
    """Parse, kill, check, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--storage", choices=STORAGES, default="sqlite")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--trials", type=int, default=0, help="candidates; else five a kill")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--longest", type=float, default=5.0, help="seconds of training until a kill")
    parser.add_argument(
        "--dashboard", action="store_true", help="read the study in optuna-dashboard meanwhile"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = run(asked, Path(name))
    text = json.dumps(found, indent=2)
    print(text)
    if asked.json:
        asked.json.write_text(text + "\n")
    return 1 if found["complaints"] else 0


if __name__ == "__main__":
    sys.exit(main())
