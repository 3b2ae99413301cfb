"""Whether the file of a storage is still where it was opened."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import StorageLostError


class FilePresence:
    """Remembers a file by device and inode, so that another file of the same name is not mistaken for it."""

    def __init__(self, file: Path) -> None:
        self.file = file.absolute()
        self.identity = self._identity()

    def check(self) -> None:
        """Raise `StorageLostError` if the file was moved, deleted or replaced."""
        if self._identity() != self.identity:
            raise StorageLostError(moved(self.file))

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = self.file.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino


def moved(file: Path) -> str:
    """What to do about a storage that is not where it was."""
    return (
        f"storage: {file} was moved or deleted while it was in use (put it back, and the same command goes "
        "on; without it the same command begins a new study)"
    )
