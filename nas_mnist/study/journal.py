"""Journal files: Optuna's, repaired where a process died while it wrote a line."""

from __future__ import annotations

import os
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from ..core.errors import InputError

JOURNAL = "journal:"  # how the names of such storages begin
_FIRST_BYTES = b'{"op_code"'


def open_journal(file: Path) -> JournalStorage:
    """The storage in a journal file, which is made where missing."""
    path = str(file.absolute())  # the lock is a link to it
    return JournalStorage(JournalFileBackend(path, _RepairingLock(path)))


def check_journal(file: Path) -> None:
    """Raise `InputError` for a file of another kind; nothing is written."""
    if not file.exists():
        return
    with file.open("rb") as stream:
        found = stream.read(len(_FIRST_BYTES))
    if not _FIRST_BYTES.startswith(found):
        raise InputError(f"storage: {file} is no journal of studies (its first bytes are {found!r})")


class _RepairingLock(JournalFileSymlinkLock):
    """The lock of a journal; its holder first drops a torn last line.

    The next line would be appended to the torn one, and no process could read the journal any more.
    """

    def acquire(self) -> bool:
        """Wait for the lock, then repair the file."""
        held = super().acquire()
        try:
            _drop_torn_line(Path(self._lock_target_file))
        except BaseException:
            self.release()
            raise
        return held


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
