"""Downloads of files with a known checksum, from several mirrors, within limits."""

from __future__ import annotations

import hashlib
import http.client
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

MAX_DOWNLOAD = 1 << 30  # bytes of a file

Show = Callable[[int, int | None], None]  # called with the bytes received and the bytes of the file


class DownloadError(Exception):
    """A file could not be downloaded; the text says why, in one line."""


@dataclass(frozen=True)
class Limits:
    """When a mirror is given up."""

    silence: float = 10.0  # seconds without a byte
    patience: float = 60.0  # seconds before the speed counts
    speed: float = 30_000.0  # bytes a second, on average


LIMITS = Limits()


def download(
    urls: Sequence[str], target: Path, md5: str, show: Show = lambda *_: None, limits: Limits = LIMITS
) -> str:
    """Download a file from the first URL that gives it whole, and return that URL.

    ``md5`` of the file is compared. Raises `DownloadError` with the reason of every URL; there is no file
    then.
    """
    reasons = []
    for url in urls:
        try:
            _transfer(url, target, show, limits)
            _verify(target, md5)
            return url
        except BaseException as error:
            target.unlink(missing_ok=True)
            if not isinstance(error, DownloadError):
                raise
            reasons.append(f"{urlsplit(url).netloc}: {error}")
    raise DownloadError("; ".join(reasons))


class _Transfer(threading.Thread):
    """Receives a file. A thread, because a server can make any call of the network wait for ever."""

    def __init__(self, url: str, target: Path, silence: float) -> None:
        super().__init__(daemon=True)
        self.url, self.target, self.silence = url, target, silence
        self.received = 0  # bytes
        self.size: int | None = None  # of the file, where the server tells it
        self.error: Exception | None = None
        self.stopped = False

    def run(self) -> None:
        request = Request(self.url, headers={"User-Agent": "nas_mnist"})
        try:
            with urlopen(request, timeout=self.silence) as response, self.target.open("wb") as file:
                self.size = int(response.headers.get("Content-Length") or 0) or None
                while (part := response.read1(1 << 16)) and not self.stopped:
                    self.received += len(part)
                    if self.received > MAX_DOWNLOAD:
                        raise DownloadError(f"larger than {MAX_DOWNLOAD:,} bytes")
                    file.write(part)
        except Exception as error:  # told by the thread that waits
            self.error = error


def _transfer(url: str, target: Path, show: Show, limits: Limits) -> None:
    """Receive a file; raises `DownloadError`."""
    transfer, start = _Transfer(url, target, limits.silence), time.monotonic()
    transfer.start()
    try:
        while transfer.is_alive():
            transfer.join(0.1)
            show(transfer.received, transfer.size)
            seconds = time.monotonic() - start
            if seconds > limits.patience and transfer.received < limits.speed * seconds:
                speed = f"{transfer.received / seconds:,.0f} bytes a second"
                raise DownloadError(f"too slow, {speed} after {seconds:.0f} seconds")
    finally:
        transfer.stopped = True
    if transfer.error is not None:
        raise DownloadError(_reason(transfer.error, limits.silence))
    if transfer.size is not None and transfer.received < transfer.size:
        raise DownloadError(f"ended after {transfer.received:,} of {transfer.size:,} bytes")


def _reason(error: Exception, silence: float) -> str:
    """Why a transfer failed, in one line."""
    cause = error.reason if isinstance(error, URLError) and not isinstance(error, HTTPError) else error
    if isinstance(error, HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(cause, TimeoutError):
        return f"no answer for {silence:g} seconds"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    if isinstance(cause, http.client.HTTPException):
        return f"no proper answer ({type(cause).__name__})"
    return " ".join(str(cause).split())[:100] or type(cause).__name__


def _verify(path: Path, md5: str) -> None:
    """Raise `DownloadError` for a file with another checksum."""
    with path.open("rb") as file:
        start = file.read(200).lstrip()
        file.seek(0)
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        if start.startswith(b"<"):
            raise DownloadError("an HTML page instead of the file")
        raise DownloadError(f"wrong checksum (MD5 {found}, expected {md5}, {path.stat().st_size:,} bytes)")


@contextmanager
def progress(title: str, quiet: bool) -> Iterator[Callable[[str], Show]]:
    """A progress line on a terminal; its function begins a file and gives that file's `Show`.

    It is written to standard error; where that is no terminal, the names of the files go to standard output.
    """
    if quiet:
        yield lambda _: lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(file=sys.stderr)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:

        def begin(file: str) -> Show:
            text = f"Downloading {title}: {file}"
            if not console.is_terminal:
                print(text, flush=True)
            task = bar.add_task(text, total=None)
            return lambda done, size: bar.update(task, completed=done, total=size)

        yield begin
