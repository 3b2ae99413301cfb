"""Reading a stranger's file and writing results so that nothing is lost or half written."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from .errors import InputError

MAX_TEXT_BYTES = 1_000_000


def read_text(path: Path, what: str, limit: int = MAX_TEXT_BYTES) -> str:
    """The text of a file of at most ``limit`` bytes; raises `InputError` that says what is wrong with it."""
    where = what if what == str(path) else f"{what}: {path}"
    try:
        check_regular(path, what)
        if path.stat().st_size > limit:
            raise InputError(f"{where} is larger than {limit:,} bytes")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{where} does not exist") from None
    except UnicodeDecodeError:
        raise InputError(f"{where} is not a text file (use UTF-8)") from None
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where} cannot be read ({_reason(error)})") from None
    if not text.strip():
        raise InputError(f"{where} is empty")
    return text


def check_regular(path: Path, what: str) -> None:
    """Raise `InputError` for a folder, and for a pipe or a device, which may never end.

    Raises `FileNotFoundError` where there is nothing.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise InputError(f"{what}: {path} is a folder (use a file)")
    if not stat.S_ISREG(mode):
        raise InputError(f"{what}: {path} is no regular file")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: a temporary name beside it, then a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def check_writable(folder: Path, what: str) -> None:
    """Raise `InputError` unless files can be made in ``folder``, without making anything."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"{what}: {existing} is a file (use a folder)")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{what}: {existing} is not writable")


def check_new(path: Path, what: str) -> None:
    """Raise `InputError` unless a file of this name can be made and does not exist."""
    if path.exists():
        raise InputError(f"{what}: {path} exists (use a new name)")
    check_writable(path.parent, what)


def new_folder(parent: Path, name: str) -> Path:
    """Make and return ``parent/name``, or ``name-2``, ``name-3``... where that exists already."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
