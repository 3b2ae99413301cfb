"""Storages of studies: an SQLite file, a journal file, or a database server.

A storage is named by a database URL, or by ``journal:FILE``.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import shlex
import time
import warnings
from collections.abc import Callable, Container, Iterator
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from ..core.compat import TrialModel
from ..core.defaults import DEFAULT_STORAGE
from ..core.errors import InputError, NoResultError, StorageLostError
from ..core.fileio import check_regular, check_writable
from .journal import JOURNAL, check_journal, open_journal
from .owner import OWNER, is_alive
from .presence import moved
from .sqlite import LOCK_TIMEOUT, check_database, damaged, is_damage, share_between_processes

HEARTBEAT, GRACE = 10, 30  # seconds; a running trial without a heartbeat for GRACE is taken over
CREATE_TIMEOUT = 10  # seconds in which another process makes the tables of a new database
PART = 200  # trials that are read at once
SERVER_FOLDER = Path("studies")  # for the artifacts of studies on a server

StaleTrial = Callable[[optuna.Study, FrozenTrial], None]
# What Optuna, SQLAlchemy and a driver raise for a storage that is unreachable, too old or malformed.
_CANNOT_OPEN = (SQLAlchemyError, ImportError, OSError, RuntimeError, ValueError, LookupError, TypeError,
                AssertionError)  # fmt: skip


def open_storage(url: str, on_stale: StaleTrial | None = None, *, create: bool = True) -> BaseStorage:
    """The storage behind a URL; with ``create`` a file and its folder are made where missing.

    ``on_stale`` is called with a trial that Optuna's heartbeat found dead, where the storage has a heartbeat.
    Raises `InputError` where the storage cannot be opened.
    """
    file = storage_file(url)
    if file is not None:
        _check_file(file, create)
        if url.startswith(JOURNAL):
            check_journal(file)
        else:
            check_database(file, create)
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # the search's own display shows every trial
    logging.getLogger("sqlalchemy").addHandler(logging.NullHandler())  # errors are raised, too
    new_folder = file.parent if file is not None and not file.parent.exists() else None
    try:
        if new_folder is not None:
            new_folder.mkdir(parents=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if file is not None and url.startswith(JOURNAL):
                return open_journal(file)
            return _open_database(url, on_stale, file)
    except InputError:
        raise
    except _CANNOT_OPEN as error:
        if new_folder is not None:
            with contextlib.suppress(OSError):
                new_folder.rmdir()
        raise InputError(f"storage: {hide_password(url)!r} cannot be opened ({_reason(error)})") from None


def storage_file(url: str) -> Path | None:
    """The file of a storage; None for a server.

    Raises `InputError` for text that is no URL and for a database in memory.
    """
    if url.startswith(JOURNAL):
        if not (name := url.removeprefix(JOURNAL)) or "\0" in name or name.startswith("~"):
            raise InputError(f"storage: {url!r} names no file (for example {JOURNAL}studies/nas_mnist.log)")
        return Path(name)
    try:
        database = make_url(url)
    except ArgumentError:
        raise InputError(f"storage: {url!r} is not a database URL (for example {DEFAULT_STORAGE})") from None
    if database.get_backend_name() != "sqlite":
        return None
    if database.host is not None:
        raise InputError(f"storage: {url!r} names a host (use three slashes, as {DEFAULT_STORAGE})")
    if database.database in (None, "", ":memory:"):
        raise InputError(f"storage: {url!r} is forgotten at the end (for example {DEFAULT_STORAGE})")
    name = str(database.database)
    if "?" in url:  # SQLAlchemy takes the rest for options: another file would be used
        raise InputError(f"storage: {url!r} has options or a '?' in its name (use a file name without '?')")
    if name.startswith(("~", "file:")):
        raise InputError(f"storage: {url!r}: {name!r} is no path of a file (use one as studies/own.db)")
    return Path(name)


def hide_password(url: str) -> str:
    """A storage's URL as it may be printed and stored."""
    if url.startswith(JOURNAL):
        return url
    try:
        parsed = make_url(url)
    except ArgumentError:
        return url  # no URL, so no password
    if "password" in parsed.query:
        parsed = parsed.update_query_dict({"password": "***"})
    return parsed.render_as_string(hide_password=True)


def artifact_folder(url: str) -> Path:
    """The folder of a study's pictures: beside the storage's file, for a server below `SERVER_FOLDER`."""
    return (storage_file(url) or SERVER_FOLDER / "server").parent / "artifacts"


def dashboard_command(url: str) -> str:
    """The command that shows a storage's studies in a browser."""
    storage = str(storage_file(url)) if url.startswith(JOURNAL) else hide_password(url)
    return shlex.join(["optuna-dashboard", storage, "--artifact-dir", str(artifact_folder(url))])


_LOST = (StorageLostError, SQLAlchemyError, optuna.exceptions.StorageInternalError, OSError, JSONDecodeError)


@contextlib.contextmanager
def storage_guard(url: str) -> Iterator[None]:
    """Raise `StorageLostError` where the storage is lost meanwhile: no server, no disk space.

    Raises `InputError` for a damaged database.
    """
    file = storage_file(url)
    existed = file is not None and file.exists()
    try:
        yield
    except (InputError, NoResultError, ConnectionError):  # the last: a closed terminal
        raise
    except Exception as error:
        lost = _storage_error(error)
        if lost is None:
            raise
        if isinstance(lost, StorageLostError):
            raise lost from None
        if file is not None and existed and not file.exists():
            raise StorageLostError(moved(file)) from None
        if file is not None and is_damage(lost):
            raise InputError(damaged(file)) from None
        advice = "what is stored is kept, and the same command goes on"
        raise StorageLostError(f"storage: {hide_password(url)} failed ({_reason(lost)}); {advice}") from None


def _storage_error(error: BaseException | None) -> BaseException | None:
    """The storage's error among the causes of an error: Optuna may stumble over its consequences."""
    while error is not None:
        if isinstance(error, _LOST):
            return error
        error = error.__cause__ or error.__context__
    return None


class _Database(RDBStorage):
    """Optuna's database, which takes no trial from a living process of this machine.

    The heartbeat alone would: it stops while a machine sleeps. The trials of a study are first read in parts:
    Optuna's objects of a database row take several times the memory of the trials.
    """

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        if trial_id_greater_than >= 0 or states is not None:
            return super()._get_trials(study_id, states, included_trial_ids, trial_id_greater_than)
        with Session(self.engine) as session:
            query = select(TrialModel.trial_id).where(TrialModel.study_id == study_id)
            ids = sorted(session.scalars(query))
        none, found = 2**31 - 1, []  # no trial has a higher number than `none`
        for start in range(0, len(ids), PART):
            with _without_garbage_collection():
                found += super()._get_trials(study_id, None, set(ids[start : start + PART]), none)
        return found

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        stale: list[int] = super()._get_stale_trial_ids(study_id)
        return [trial for trial in stale if not is_alive(self.get_trial(trial).user_attrs.get(OWNER))]


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Many new objects make Python look for garbage again and again: a third of the time of reading."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _open_database(url: str, on_stale: StaleTrial | None, file: Path | None) -> RDBStorage:
    options: dict[str, Any] = {"pool_pre_ping": True}
    if file is not None:
        options = {"connect_args": {"timeout": LOCK_TIMEOUT}}
    deadline = time.monotonic() + CREATE_TIMEOUT
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
        except SQLAlchemyError as error:
            by_others = isinstance(error, IntegrityError) or "already exists" in str(error)
            if not by_others or time.monotonic() > deadline:
                raise
            time.sleep(0.1)  # another process makes the same tables
    if file is not None:
        share_between_processes(storage.engine, file)
    return storage


def _check_file(path: Path, create: bool) -> None:
    """Raise `InputError` for a file that cannot be read and written."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        check_regular(path, "storage")
    if not path.exists():
        if not create:
            raise InputError(f"storage: {path} does not exist (make it with python -m nas_mnist.search)")
        check_writable(path.parent, "storage")
    elif not os.access(path, os.R_OK | os.W_OK):
        raise InputError(f"storage: {path} is not writable")


def _reason(error: BaseException) -> str:
    """The first line of an error of a database or of the system."""
    error = error.__cause__ or error
    lines = str(getattr(error, "orig", None) or error).splitlines()
    text = lines[0] if lines else type(error).__name__
    if text == "disk I/O error":
        return f"{text}: is the disk full?"
    if "pip install -U optuna" in text:  # also where another program has its tables in the same database
        return "its tables are of another program, or of a later version of Optuna; use another database"
    if isinstance(error, ModuleNotFoundError) and error.name in ("psycopg", "psycopg2"):
        return f"{text}: pip install 'nas-mnist[postgresql]'"
    return text
