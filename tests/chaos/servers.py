"""A PostgreSQL server of our own, and a dashboard that is read all the time."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nas_mnist.study.storage import dashboard_command

READY_WITHIN = 60  # seconds


class PostgreSQL:
    """A server in a folder of its own, reached through a socket in it; no network."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"postgresql+psycopg://chaos@/studies?host={folder}"
        # The server refuses to run as root.
        self.user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if self.user:
            shutil.chown(folder, "postgres")
        self._run("initdb", "--username=chaos", "--auth=trust", "--no-sync", "-D", folder / "data")
        self.start()
        self._run("createdb", "-h", folder, "-U", "chaos", "studies")

    def start(self) -> None:
        """Start, and wait until it answers."""
        options = f"-c listen_addresses='' -k {shlex.quote(str(self.folder))}"
        self._run(
            "pg_ctl", "-D", self.folder / "data", "-l", self.folder / "log", "-o", options, "-w", "start"
        )

    def stop(self, mode: str = "fast") -> None:
        """End it: ``fast`` closes connections, ``immediate`` is as bad as a power cut."""
        self._run("pg_ctl", "-D", self.folder / "data", "-m", mode, "-w", "stop")

    def check(self) -> str:
        """What PostgreSQL's own check of every table and index says; empty: all is well."""
        options = ["--install-missing", "-h", str(self.folder), "-U", "chaos", "studies"]
        command = [*self.user, _program("pg_amcheck"), *options]
        ended = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        return "" if ended.returncode == 0 else ended.stdout + ended.stderr

    def _run(self, name: str, *arguments: object) -> None:
        command = [*self.user, _program(name), *map(str, arguments)]
        subprocess.run(command, cwd=self.folder, check=True, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """A new server, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        server = PostgreSQL(Path(folder))
        try:
            yield server
        finally:
            server.stop()


def _program(name: str) -> str:
    """One of PostgreSQL's programs, also where Debian puts them."""
    found = [*sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), shutil.which(name)]
    program = next((str(one) for one in reversed(found) if one), None)
    if program is None:
        raise SystemExit(f"{name} is not installed (Debian: postgresql)")
    return program


class Dashboard(threading.Thread):
    """optuna-dashboard, from which a study is read again and again; keeps the errors."""

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(daemon=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        _, *arguments = shlex.split(dashboard_command(url))
        program = Path(sys.executable).parent / "optuna-dashboard"
        with (folder / "dashboard.txt").open("wb") as log:
            self.process = subprocess.Popen(
                [program, *arguments, "--port", str(self.port)], cwd=folder, stdout=log, stderr=log
            )
        self.reads, self.wrong = 0, list[str]()
        self.over = threading.Event()

    def run(self) -> None:
        """Read all studies and their trials twice a second."""
        until = time.monotonic() + READY_WITHIN
        while not self.over.wait(0.5):
            try:
                for study in self._get("studies")["study_summaries"]:
                    trials = self._get(f"studies/{study['study_id']}?after=0")["trials"]
                    self.reads += bool(trials)
            except urllib.error.HTTPError as error:
                self.wrong.append(f"dashboard: {error.code} {error.read()[:200]!r}")
            except Exception as error:
                if self.reads or time.monotonic() > until:
                    self.wrong.append(f"dashboard: {error!r}")

    def stop(self) -> None:
        """End both."""
        self.over.set()
        self.join()
        self.process.terminate()
        self.process.wait()

    def _get(self, what: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/{what}", timeout=30) as answer:
            return json.load(answer)
