"""Bounded reading of files from any source, and writing that leaves no half file and overwrites nothing."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import InputError

MAX_TEXT_BYTES = 1_000_000


def read_text(path: Path, what: str, limit: int = MAX_TEXT_BYTES) -> str:
    """The text of a UTF-8 file of at most ``limit`` bytes; raises `InputError` for any other file."""
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


def expand_user(text: str, what: str) -> Path:
    """A path with ``~`` and ``~NAME`` replaced by home folders; raises `InputError` for an unknown user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise InputError(f"{what}: {text[:40]!r} names no home folder (use another path)") from None


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """A TOML document as a dictionary; raises `InputError` naming ``where`` and the line."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also a number with thousands of digits
        raise InputError(f"{where}: not TOML ({str(error)[0].lower()}{str(error)[1:]})") from None


def check_regular(path: Path, what: str) -> None:
    """Raise `InputError` unless ``path`` is a regular file; OSError's own types for one that is missing.

    The message begins with ``what``, and with the path unless ``what`` ends with it.
    """
    where = what if what.endswith(str(path)) else f"{what}: {path}"
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise InputError(f"{where} cannot be read ({_reason(error)})") from None
    if stat.S_ISDIR(mode):
        raise InputError(f"{where} is a folder (use a file)")
    if not stat.S_ISREG(mode):
        raise InputError(f"{where} is no regular file")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file or none: under a temporary name first, then renamed."""
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
    """Raise `InputError` unless files can be made in ``folder``, without making any."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"{what}: {existing} is a file (use a folder)")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{what}: {existing} is not writable")


def check_new(path: Path, what: str) -> None:
    """Raise `InputError` if a file of this name exists or cannot be made."""
    if path.exists():
        raise InputError(f"{what}: {path} exists (use a new name)")
    check_writable(path.parent, what)


def new_folder(parent: Path, name: str) -> Path:
    """Make and return the first of ``parent/name``, ``name-2``, ``name-3``... that does not exist."""
    parent.mkdir(parents=True, exist_ok=True)
    for folder in _numbered(parent, name):
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError("unreachable")


def numbered_folders(parent: Path, name: str) -> Iterator[Path]:
    """The folders that `new_folder` has made under this name, the oldest first."""
    return itertools.takewhile(Path.is_dir, _numbered(parent, name))


def _numbered(parent: Path, name: str) -> Iterator[Path]:
    yield parent / name
    yield from (parent / f"{name}-{number}" for number in itertools.count(2))


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
