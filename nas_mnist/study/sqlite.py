"""SQLite files: checked before they are written, and safe for several processes."""

from __future__ import annotations

import contextlib
import sqlite3
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

from ..core.errors import InputError
from .presence import FilePresence

LOCK_TIMEOUT = 60  # seconds that a process waits for its turn
_SIGNS_OF_DAMAGE = ("malformed", "not a database", "no such column", "no such table", "constraint failed")
_OPTUNA_TABLES = ("stud", "trial", "version_info", "alembic_version")  # prefixes of their names


def check_database(file: Path, create: bool) -> None:
    """Raise `InputError` for another program's database, and without ``create`` for one without studies.

    Nothing is written. The file is read through SQLite and not by `open`: closing it would drop the locks
    that SQLite holds for this process (sqlite.org/howtocorrupt.html).
    """
    if not file.exists():
        return
    try:
        with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    except sqlite3.Error as error:
        if is_damage(error):
            raise InputError(damaged(file)) from None
        raise InputError(f"storage: {file} cannot be read ({error})") from None
    tables = {name for name in tables if not name.startswith("sqlite_")}  # of SQLite itself
    others = [name for name in tables if not name.startswith(_OPTUNA_TABLES)]
    # Optuna makes `alembic_version` last; other programs make one, too.
    if "studies" not in tables and (others or not create or "alembic_version" in tables):
        found = ", ".join(sorted(others)[:5]) or ("tables of another program" if tables else "")
        but = f", but {found}" if found else ""
        raise InputError(f"storage: {file} holds no studies{but} (use another file)")


def is_damage(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that the file's content is wrong: it is damaged.

    A full disk and a lock that is held are no damage; the driver has one type of error for both.
    """
    while error is not None:
        text = str(getattr(error, "orig", None) or error)
        if isinstance(error, JSONDecodeError) or any(sign in text for sign in _SIGNS_OF_DAMAGE):
            return True
        error = error.__cause__ or error.__context__
    return False


def damaged(file: Path) -> str:
    """What to do about a file that holds no proper database."""
    return f"storage: {file} is damaged, or no database (restore it from a copy, or use another file)"


def share_between_processes(engine: Engine, file: Path) -> None:
    """Configure all connections of an engine for several processes.

    Transactions raise `StorageLostError` once the file is moved or deleted: they would write into a file that
    has another name or none.
    """
    presence = FilePresence(file)
    event.listen(engine, "do_connect", lambda *_: presence.check())  # a connection would make a new file
    event.listen(engine, "connect", _use_write_ahead_log)
    event.listen(engine, "begin", lambda _: presence.check())
    event.listen(engine, "begin", _begin_immediate)
    engine.dispose()  # connections that were opened before are not configured


def _use_write_ahead_log(connection: Any, _: Any) -> None:
    """One disk write an attribute instead of several, and readers never wait (sqlite.org/wal.html).

    With ``synchronous=NORMAL`` a power cut may lose the newest attributes, never the database.
    """
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()
    connection.isolation_level = None  # `_begin_immediate` begins transactions, not the driver


def _begin_immediate(connection: Connection) -> None:
    """Take the write lock at the beginning of every transaction.

    Python's driver takes it at the first write, so that two workers could both read that a trial waits and
    both take it (docs.sqlalchemy.org/en/21/dialects/sqlite.html).
    """
    connection.exec_driver_sql("BEGIN IMMEDIATE")
