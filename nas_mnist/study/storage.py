"""Where studies are kept: an SQLite file, a journal file, or a database server; all of it Optuna's own.

A storage is named by a database URL, or by ``journal:FILE``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial
from sqlalchemy import event
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError

from ..core.errors import InputError, NoResultError, StorageLostError
from ..core.fileio import check_regular, check_writable
from .owner import OWNER, is_alive

DEFAULT_STORAGE = "sqlite:///studies/nas_mnist.db"
JOURNAL = "journal:"
HEARTBEAT, GRACE = 10, 30  # seconds; a running trial without a heartbeat for GRACE is taken over
JOURNAL_BEGINS = b'{"op_code"'
MADE_WITHIN = 10  # seconds; for the tables of a new database
PATIENCE = 60  # seconds; how long one process waits for another one's turn in an SQLite file
_TABLES = ("stud", "trial", "version_info", "alembic_version")  # how Optuna's tables begin
FALLBACK = Path("studies")  # where a server's artifacts are kept

StaleTrial = Callable[[optuna.Study, FrozenTrial], None]


def open_storage(url: str, on_stale: StaleTrial | None = None, *, create: bool = True) -> BaseStorage:
    """The storage behind a URL; with ``create`` a file and its folder are made where missing.

    ``on_stale`` hears of a trial that Optuna's heartbeat found dead, where the storage has a heartbeat.
    Raises `InputError` where the storage cannot be opened.
    """
    file = file_of(url)
    if file is not None:
        _check_file(file, create)
        if url.startswith(JOURNAL):
            _check_beginning(file, JOURNAL_BEGINS)
        else:  # never opened by hand: closing it would drop the locks that SQLite holds for this process
            _check_tables(file, create)
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # our own display shows every trial
    # An interrupted statement would be logged with a traceback; what matters is raised, too.
    logging.getLogger("sqlalchemy").addHandler(logging.NullHandler())
    made = file is not None and not file.parent.exists()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if file is not None and made:
                file.parent.mkdir(parents=True)
            if url.startswith(JOURNAL):
                journal = str(Path(str(file)).absolute())  # the lock links to it
                return JournalStorage(JournalFileBackend(journal, _MendingLock(journal)))
            return _open_database(url, on_stale, sqlite=file is not None)
    except (SQLAlchemyError, ImportError, OSError, RuntimeError, ValueError, LookupError, TypeError,
            AssertionError) as error:  # fmt: skip
        if file is not None and made:
            with contextlib.suppress(OSError):
                file.parent.rmdir()
        raise InputError(f"storage: {shown(url)!r} cannot be opened ({_reason(error)})") from None


def file_of(url: str) -> Path | None:
    """The file in which a storage lies; None for a server.

    Raises `InputError` for what is no URL and for a database that would be forgotten.
    """
    if url.startswith(JOURNAL):
        if not (name := url.removeprefix(JOURNAL)) or "\0" in name:
            raise InputError(f"storage: {url!r} names no file (for example {JOURNAL}studies/nas_mnist.log)")
        return Path(name)
    try:
        database = make_url(url)
    except ArgumentError:
        raise InputError(f"storage: {url!r} is not a database URL (for example {DEFAULT_STORAGE})") from None
    if database.get_backend_name() != "sqlite":
        return None
    if database.database in (None, "", ":memory:"):
        raise InputError(f"storage: {url!r} is forgotten at the end (for example {DEFAULT_STORAGE})")
    return Path(str(database.database))


def shown(url: str) -> str:
    """A storage's URL as it may be printed and stored: without the password."""
    if url.startswith(JOURNAL):
        return url
    try:
        parsed = make_url(url)
    except ArgumentError:
        return url  # no URL: there is no password in it
    if "password" in parsed.query:
        parsed = parsed.update_query_dict({"password": "***"})
    return parsed.render_as_string(hide_password=True)


def artifact_folder(url: str) -> Path:
    """Where a study's pictures are kept: beside its file, else under ``studies/``."""
    return (file_of(url) or FALLBACK / "server").parent / "artifacts"


def dashboard_command(url: str) -> str:
    """The line that shows a storage's studies in a browser, on this machine only."""
    storage = str(file_of(url)) if url.startswith(JOURNAL) else shown(url)
    return shlex.join(["optuna-dashboard", storage, "--artifact-dir", str(artifact_folder(url))])


@contextlib.contextmanager
def losing(url: str) -> Iterator[None]:
    """Turn the loss of a storage (no server any more, no disk space...) into a `StorageLostError`."""
    try:
        yield
    except (InputError, NoResultError, ConnectionError):  # the last: a screen that was closed
        raise
    except Exception as error:
        lost = _storage_error(error)
        if lost is None:
            raise
        kept = "what is stored is kept, and the same command goes on"
        raise StorageLostError(f"storage: {shown(url)} failed ({_reason(lost)}); {kept}") from None


def _storage_error(error: BaseException | None) -> BaseException | None:
    """The storage's error among those that led to an error: Optuna may stumble over the consequences."""
    while error is not None:
        if isinstance(error, SQLAlchemyError | optuna.exceptions.StorageInternalError | OSError):
            return error
        error = error.__cause__ or error.__context__
    return None


class _Database(RDBStorage):
    """Optuna's database, which takes no trial from a process of this machine that lives.

    A heartbeat stops when a machine sleeps, too, and begins before the process can say that it is back.
    """

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        stale: list[int] = super()._get_stale_trial_ids(study_id)
        return [trial for trial in stale if not is_alive(self.get_trial(trial).user_attrs.get(OWNER))]


def _open_database(url: str, on_stale: StaleTrial | None, *, sqlite: bool) -> RDBStorage:
    options: dict[str, Any] = {"connect_args": {"timeout": PATIENCE}} if sqlite else {"pool_pre_ping": True}
    deadline = time.monotonic() + MADE_WITHIN
    while True:
        try:
            storage = _Database(
                url,
                engine_kwargs=options,
                heartbeat_interval=HEARTBEAT,
                grace_period=GRACE,
                heartbeat_stale_trial_callback=on_stale,
            )
            break
        except SQLAlchemyError as error:  # another process makes the same tables just now
            made = isinstance(error, IntegrityError) or "already exists" in str(error)
            if not made or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    if sqlite:
        event.listen(storage.engine, "connect", _write_ahead)
        event.listen(storage.engine, "begin", _begin)
        storage.engine.dispose()  # the connections from before have not heard of it
    return storage


def _write_ahead(connection: Any, _: Any) -> None:
    """SQLite's write-ahead log: one disk write a trial attribute instead of several, and readers never wait.

    With ``synchronous=NORMAL`` a power cut may lose the newest attributes, never the database
    (sqlite.org/wal.html).
    """
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()
    connection.isolation_level = None  # transactions begin where `_begin` says so, not at the first write


def _begin(connection: Connection) -> None:
    """One transaction after the other, reading included.

    Python's driver begins a transaction only before it writes, so that two workers could both read that a
    trial waits and both take it (docs.sqlalchemy.org/en/21/dialects/sqlite.html).
    """
    connection.exec_driver_sql("BEGIN IMMEDIATE")


class _MendingLock(JournalFileSymlinkLock):
    """The right to write into a journal. Whoever gets it drops a line that somebody died in.

    The next line would be appended to the torn one, and no process could read the journal any more.
    """

    def acquire(self) -> bool:
        """Wait for the lock, then mend the file."""
        held = super().acquire()
        try:
            _drop_torn_line(Path(self._lock_target_file))
        except BaseException:
            self.release()
            raise
        return held


def _drop_torn_line(journal: Path) -> None:
    """Cut off what follows the last line break. Only a writer that died leaves that."""
    with journal.open("rb+") as stream:
        end = stream.seek(0, os.SEEK_END)
        kept = end
        while kept:
            start = max(0, kept - 4096)
            stream.seek(start)
            at = stream.read(kept - start).rfind(b"\n")
            if at >= 0:
                kept = start + at + 1
                break
            kept = start
        if kept < end:
            stream.truncate(kept)


def _check_file(path: Path, create: bool) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        check_regular(path, "storage")
    if not path.exists():
        if not create:
            raise InputError(f"storage: {path} does not exist (make it with python -m nas_mnist.search)")
        check_writable(path.parent, "storage")
    elif not os.access(path, os.R_OK | os.W_OK):
        raise InputError(f"storage: {path} is not writable")


def _check_beginning(file: Path, begins: bytes) -> None:
    """Refuse a file of another kind before anything is written into it."""
    if not file.exists():
        return
    with file.open("rb") as stream:
        found = stream.read(len(begins))
    if not begins.startswith(found):
        raise InputError(f"storage: {file} is no file of this kind (its first bytes are {found!r})")


def _check_tables(file: Path, create: bool) -> None:
    """Refuse somebody else's database, and one to read that holds no studies, before anything is written."""
    if not file.exists():
        return
    try:
        with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
            raise InputError(f"storage: {file} is no file of this kind ({error})") from None
        raise InputError(f"storage: {file} cannot be read ({error})") from None
    others = [name for name in tables if not name.startswith(_TABLES)]
    if "studies" not in tables and (others or not create):
        found = ", ".join(sorted(others)[:5]) or "nothing"
        raise InputError(f"storage: {file} holds no studies, but {found} (use another file)")


def _reason(error: BaseException) -> str:
    """What a database or the system says, in one line."""
    error = error.__cause__ or error
    lines = str(getattr(error, "orig", None) or error).splitlines()
    text = lines[0] if lines else type(error).__name__
    if isinstance(error, ModuleNotFoundError) and error.name in ("psycopg", "psycopg2"):
        return f"{text}: pip install 'nas-mnist[postgresql]'"
    return text
