"""Journal files: Optuna's, repaired where a process died while it wrote a line."""

from __future__ import annotations

import os
from collections.abc import Generator
from errno import ENOSYS, EOPNOTSUPP, EPERM
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalFileSymlinkLock

from ..core.compat import BaseJournalFileLock
from ..core.errors import InputError, StorageLostError
from .presence import FilePresence

JOURNAL = "journal:"  # how the names of such storages begin
_FIRST_BYTES = b'{"op_code"'
_END = object()
_NO_LINKS = (EPERM, EOPNOTSUPP, ENOSYS)  # how systems refuse a symbolic link: man 2 symlink


def open_journal(file: Path) -> JournalStorage:
    """The storage in a journal file, which is made where missing; raises `InputError` for a damaged line."""
    path = str(file.absolute())  # the lock is a link to it
    backend = _CountingBackend(path)
    try:
        return JournalStorage(backend)
    except OSError:
        raise
    except StorageLostError as error:
        raise InputError(str(error)) from None
    except Exception as error:  # Optuna replays the lines without checking them
        raise InputError(backend.damage(error)) from None


def check_journal(file: Path) -> None:
    """Raise `InputError` for a file of another kind; nothing is written."""
    if not file.exists():
        return
    with file.open("rb") as stream:
        found = stream.read(len(_FIRST_BYTES))
    if not _FIRST_BYTES.startswith(found):
        raise InputError(f"storage: {file} is no journal of studies (its first bytes are {found!r})")


class _CountingBackend(JournalFileBackend):
    """Optuna's journal, which also knows the line that it read last and whether its file was moved."""

    def __init__(self, path: str) -> None:
        self.lock = _RepairingLock(path)
        super().__init__(path, self.lock)  # makes the file where missing
        self.presence = self.lock.presence = FilePresence(Path(path))
        self.line = 0  # the first is 1

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """The lines behind the first ``log_number_from``, as data."""
        self.presence.check()
        self.line = log_number_from + 1
        logs = super().read_logs(log_number_from)
        while True:
            try:
                log = next(logs, _END)
            except ValueError as error:  # no JSON
                raise StorageLostError(self.damage(error)) from None
            if not isinstance(log, dict):
                if log is _END:
                    return
                raise StorageLostError(self.damage(TypeError()))
            yield log
            self.line += 1

    def damage(self, error: Exception) -> str:
        """The damaged line, and the advice."""
        return (
            f"storage: line {self.line} of {self._file_path} is damaged ({type(error).__name__}); "
            "restore the file from a copy, or delete this line and those behind it"
        )


class _RepairingLock(BaseJournalFileLock):
    """The lock of a journal; its holder first drops a torn last line.

    The next line would be appended to the torn one, and no process could read the journal any more. The lock
    is a symbolic link, and a file on file systems that have no links.
    """

    def __init__(self, path: str) -> None:
        self.file = Path(path)
        self.lock: BaseJournalFileLock = JournalFileSymlinkLock(path)
        self.presence: FilePresence | None = None

    def acquire(self) -> bool:
        """Wait for the lock, then repair the file."""
        held = self._acquire()
        try:
            if self.presence is not None:
                self.presence.check()
            _drop_torn_line(self.file)
        except BaseException:
            self.release()
            raise
        return held

    def _acquire(self) -> bool:
        try:
            return self.lock.acquire()
        except OSError as error:
            if error.errno not in _NO_LINKS or isinstance(self.lock, JournalFileOpenLock):
                raise
            self.lock = JournalFileOpenLock(str(self.file))
            return self.lock.acquire()

    def release(self) -> None:
        """Release the lock."""
        self.lock.release()


def _drop_torn_line(journal: Path, block: int = 4096) -> None:
    """Cut off everything behind the last line break, read backwards in blocks of bytes."""
    with journal.open("rb+") as stream:
        end = kept = stream.seek(0, os.SEEK_END)
        while kept:
            start = max(0, kept - block)
            stream.seek(start)
            position = stream.read(kept - start).rfind(b"\n")
            if position >= 0:
                kept = start + position + 1
                break
            kept = start
        if kept < end:
            stream.truncate(kept)
