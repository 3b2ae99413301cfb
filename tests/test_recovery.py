"""Trials whose process died: recognised, marked, tried again once; living processes keep theirs."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from conftest import METADATA, run_python
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from nas_mnist.core.errors import InputError, NoResultError, StorageLostError
from nas_mnist.recipes.recipe import load_recipe
from nas_mnist.study.concurrency import CLAIM_LIFE, FINALS_OWNER, finals_claimed
from nas_mnist.study.config import StudyConfig
from nas_mnist.study.owner import ABSENT_AFTER, OWNER, _started, is_gone, this_process
from nas_mnist.study.recovery import recover, requeue, requeue_once
from nas_mnist.study.search_loop import search
from nas_mnist.study.storage import dashboard_command, hide_password, open_storage, storage_guard
from nas_mnist.study.study import load_study, open_study

pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage")


CONFIG = StudyConfig(space="space", recipe="recipe", data="data", split="split", max_params=20_000, epochs=20)


@pytest.fixture(params=["sqlite:///{}/study.db", "journal:{}/study.log"], ids=["sqlite", "journal"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    text: str = request.param
    return text.format(tmp_path)


@pytest.fixture
def study(url: str) -> optuna.Study:
    return with_config(optuna.create_study(study_name="s", storage=open_storage(url)))


def with_config(study: optuna.Study, **changed: object) -> optuna.Study:
    study.set_user_attr("identity", CONFIG.model_dump() | changed)
    return study


@pytest.fixture
def dead() -> dict[str, Any]:
    """A process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    owner = this_process() | {"pid": child.pid, "started": "0"}
    child.wait()
    return owner


def begin(study: optuna.Study, owner: dict[str, Any]) -> int:
    trial = study.ask()
    trial.set_user_attr(OWNER, owner)
    trial.suggest_int("width", 1, 3)
    return trial.number


def make_and_take(url: str, start: Any, results: Any) -> None:
    """The first steps of a search; then it takes trials from the queue until there is none that waits."""
    start.wait()
    study = open_study(url, "s", CONFIG, METADATA)
    metadata = study.user_attrs
    for _ in range(20):
        study.enqueue_trial({"width": 1})
    start.wait()
    numbers = []
    while study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        numbers.append(study.ask().number)
    results.put((metadata, numbers))


def test_several_processes_may_make_one_study_and_none_takes_the_trial_of_another(url: str) -> None:
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=make_and_take, args=(url, start, results)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    assert [metadata for metadata, _ in found] == [METADATA | {"identity": CONFIG.model_dump()}] * 3
    taken = [number for _, numbers in found for number in numbers]
    assert len(taken) == len(set(taken))
    queued = [trial.system_attrs.get("fixed_params") for trial in load_study(url, "s").trials]
    assert set(taken) >= {number for number, params in enumerate(queued) if params}
    assert queued.count({"width": 1}) == 60


def test_a_study_whose_maker_died_is_completed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas_mnist.study.study.INITIALISE_TIMEOUT", 0)
    optuna.create_study(study_name="s", storage=open_storage(url), direction="maximize")
    study = open_study(url, "s", CONFIG, METADATA)
    assert study.user_attrs == METADATA | {"identity": CONFIG.model_dump()}


def waiting(study: optuna.Study) -> list[dict[str, Any]]:
    queue = study.get_trials(states=(TrialState.WAITING,))
    return [trial.system_attrs["fixed_params"] for trial in queue]


def test_a_process_is_known_to_be_gone_only_when_it_is() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
    owner = this_process() | {"pid": child.pid, "started": started}
    assert not is_gone(owner)
    assert is_gone(owner | {"started": "1"})  # the number belongs to another process by now
    child.kill()
    time.sleep(0.1)
    assert is_gone(owner)  # a zombie works no more
    child.communicate()
    assert is_gone(owner)
    assert not is_gone(owner | {"place": "another machine"})
    assert is_gone(owner | {"place": "another machine", "seen": time.time() - ABSENT_AFTER - 1})
    assert not is_gone(this_process() | {"seen": 0})  # it lives, however long it was busy


def test_one_living_process_trains_the_finalists(tmp_path: Path) -> None:
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/s.db")
    parent = this_process() | {"pid": os.getppid(), "started": _started(os.getppid())}
    with finals_claimed(study), finals_claimed(study):  # this process may, again
        pass
    assert study.user_attrs[FINALS_OWNER] is None
    with finals_claimed(study):
        study.set_user_attr(FINALS_OWNER, parent)  # another process took it: it keeps it
    assert study.user_attrs[FINALS_OWNER] == parent
    said = rf"process {os.getppid()} on .*, seen \d+ seconds ago, trains the finalists of this study"
    elsewhere = parent | {"place": "elsewhere"}
    for owner in (parent, elsewhere):
        study.set_user_attr(FINALS_OWNER, owner)
        with pytest.raises(NoResultError, match=said), finals_claimed(study):
            pass
        assert study.user_attrs[FINALS_OWNER] == owner
    study.set_user_attr(FINALS_OWNER, elsewhere | {"seen": time.time() - CLAIM_LIFE - 1})
    with finals_claimed(study):
        pass
    study.set_user_attr(FINALS_OWNER, parent | {"started": "1"})  # its number is in use again
    with pytest.raises(KeyboardInterrupt), finals_claimed(study):
        raise KeyboardInterrupt
    assert study.user_attrs[FINALS_OWNER] is None


def test_a_dead_process_loses_its_trial_and_the_candidate_is_tried_again_once(
    study: optuna.Study, dead: dict[str, Any]
) -> None:
    number = begin(study, dead)
    params = study.trials[number].params
    recover(study)
    assert study.trials[number].state == TrialState.FAIL
    assert waiting(study) == [params]
    recover(study)
    assert waiting(study) == [params]
    assert begin(study, dead) == number + 1  # takes it from the queue, and dies as well
    recover(study)
    assert study.trials[number + 1].state == TrialState.FAIL
    assert waiting(study) == []


def test_a_candidate_that_was_interrupted_and_then_lost_its_process_is_tried_again(
    study: optuna.Study, dead: dict[str, Any]
) -> None:
    number = begin(study, this_process())
    study.tell(number, state=TrialState.FAIL)
    requeue(study, study.trials[number])  # what Ctrl-C does
    begin(study, dead)
    recover(study)
    assert waiting(study) == [study.trials[number].params]


def test_a_process_that_dies_while_it_recovers_loses_nothing(study: optuna.Study) -> None:
    number = begin(study, this_process())
    study.tell(number, state=TrialState.FAIL)  # and died before it put the candidate back
    recover(study)
    recover(study)
    assert waiting(study) == [study.trials[number].params]


@pytest.mark.parametrize(
    "end",
    [
        ("trained", 1, {}, TrialState.COMPLETE),
        ("stopped early", 1, {}, TrialState.PRUNED),
        ("", CONFIG.epochs, {}, TrialState.COMPLETE),  # after the last epoch, before the verdict
        ("", 5, {"search_epochs": 5}, TrialState.COMPLETE),
    ],
)
def test_a_trial_that_had_come_to_its_end_gets_it(study: optuna.Study, dead: Any, end: Any) -> None:
    verdict, last_epoch, config, state = end
    with_config(study, **config)
    number = begin(study, dead)
    trial = optuna.trial.Trial(study, study.trials[number]._trial_id)
    trial.report(0.9, last_epoch)
    if verdict:
        trial.set_user_attr("verdict", verdict)
    recover(study)
    assert study.trials[0].user_attrs["verdict"] == (verdict or "trained")
    assert (study.trials[0].state, study.trials[0].value) == (state, 0.9)
    assert waiting(study) == []


def test_a_heartbeat_that_stopped_takes_no_trial_from_a_living_process(
    tmp_path: Path, dead: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas_mnist.study.storage.GRACE", 1)
    storage: Any = open_storage(f"sqlite:///{tmp_path}/study.db", requeue_once)
    study = with_config(optuna.create_study(study_name="s", storage=storage))
    for owner in (this_process(), dead | {"place": "another machine"}):
        number = begin(study, owner)
        storage.record_heartbeat(study.trials[number]._trial_id)
    time.sleep(2.5)
    recover(study)
    assert [trial.state for trial in study.trials[:2]] == [TrialState.RUNNING, TrialState.FAIL]


def test_a_trial_without_an_owner_is_taken_over_later(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.enqueue_trial({"width": 2})
    study.ask()
    recover(study)
    assert study.trials[0].state == TrialState.RUNNING
    monkeypatch.setattr("nas_mnist.study.recovery.UNOWNED_AFTER", -1)
    recover(study)
    assert study.trials[0].state == TrialState.FAIL


def test_a_trial_that_others_have_given_up_is_no_error_for_the_process_that_wakes_up(
    study: optuna.Study,
) -> None:
    class Sleepy:
        """Sleeps in its first trial until another process has ended it."""

        interrupted, compare_by = False, None
        candidates = SimpleNamespace(recipe=load_recipe("default"))

        def __call__(self, trial: optuna.Trial) -> float:
            if not trial.number:
                study.tell(trial.number, state=TrialState.FAIL)
            trial.set_user_attr("verdict", "trained")
            return 0.5

    objective: Any = Sleepy()
    search(study, objective, 2, seed="0")
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, *[TrialState.COMPLETE] * 2]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A journal with one finished trial."""
    add_trial(tmp_path / "study.log")
    return tmp_path / "study.log"


def add_trial(journal: Path) -> list[float | None]:
    """Finish one more trial; returns the values of all."""
    study = optuna.create_study(
        study_name="s", storage=open_storage(f"journal:{journal}"), load_if_exists=True
    )
    study.tell(study.ask(), 0.5)
    return [trial.value for trial in study.get_trials()]


@given(cut=st.integers(1, 200))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_line_that_a_writer_died_in_is_dropped_and_nothing_else(journal: Path, cut: int) -> None:
    before = add_trial(journal)
    whole = journal.read_bytes()
    with journal.open("ab") as stream:
        stream.write((b'{"op_code":8,"worker_id":"' + b"x" * 9_000)[: cut * 45])
    assert add_trial(journal) == [*before, 0.5]
    assert journal.read_bytes().startswith(whole)


@pytest.mark.parametrize("content", [b"my notes", b"\x00\x01", b'{"op":', b"[]\n"])
def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"no journal of studies"):
        open_storage(f"journal:{file}")
    assert file.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_passwords_are_not_shown() -> None:
    url = "postgresql+psycopg://me:secret@server/studies"
    assert "secret" not in hide_password(url) + dashboard_command(url)
    assert hide_password("my.db") == "my.db"
    with pytest.raises(InputError) as refused:
        open_storage(url.replace("server", "server.invalid"))
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(InputError, match=r"pip install 'nas-mnist\[postgresql\]'"):
        open_storage("postgresql+psycopg://me@server/studies")


@pytest.mark.parametrize("stumbling", [False, True])
def test_a_lost_storage_is_said_in_one_line_and_a_mistake_of_the_program_is_not(stumbling: bool) -> None:
    with pytest.raises(NoResultError) as told, storage_guard("sqlite:///studies/my.db"):
        try:
            raise optuna.exceptions.StorageInternalError("Commit failed.\nMore.") from OSError(28, "No space")
        except optuna.exceptions.StorageInternalError:
            if stumbling:  # as Optuna does where it cannot store how a trial ended
                raise UnboundLocalError("state") from None
            raise
    assert str(told.value).startswith("storage: sqlite:///studies/my.db failed (")
    assert "No space" in str(told.value)
    with pytest.raises(ZeroDivisionError), storage_guard("sqlite:///studies/my.db"):
        _ = 1 / 0


def test_opening_a_storage_again_drops_no_lock_that_sqlite_holds(tmp_path: Path) -> None:
    """By POSIX, closing a file drops all locks of the process on it (sqlite.org/howtocorrupt.html)."""
    url = f"sqlite:///{tmp_path / 'a.db'}"
    first = open_storage(url)
    optuna.create_study(storage=first)
    with first.engine.connect():  # with a write-ahead log a connection keeps its shared lock
        open_storage(url)
        code = (
            "import fcntl, sys; file = open(sys.argv[1], 'rb+');"
            "fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 510, 0x40000002)"  # SQLite's shared bytes
        )
        other = run_python(["-c", code, str(tmp_path / "a.db")], tmp_path)
    assert "BlockingIOError" in other.err


@pytest.mark.parametrize("url", ["sqlite:///{}/a/study.db", "journal:{}/a/study.log"])
@pytest.mark.parametrize("how", ["moved", "deleted", "folder moved", "replaced"])
def test_a_storage_that_is_moved_or_deleted_ends_the_search(url: str, how: str, tmp_path: Path) -> None:
    url = url.format(tmp_path)
    file = Path(url.partition(":")[2].removeprefix("///"))
    study = optuna.create_study(study_name="s", storage=open_storage(url))
    study.tell(study.ask(), 0.5)
    match how:
        case "moved":
            file.rename(tmp_path / "b")
        case "deleted":
            file.unlink()
        case "folder moved":
            file.parent.rename(tmp_path / "b")
        case "replaced":
            file.rename(tmp_path / "b")
            file.write_bytes((tmp_path / "b").read_bytes())
    with pytest.raises(StorageLostError, match="was moved or deleted") as lost, storage_guard(url):
        study.tell(study.ask(), 0.5)
    assert "begins a new study" in str(lost.value)
    assert file.exists() == (how == "replaced")  # nothing was made in its place


DAMAGE = {
    "a page": lambda file: file.write_bytes(
        file.read_bytes()[:8192] + bytes(4096) + file.read_bytes()[12288:]
    ),
    "a table": lambda file: changed(file, "ALTER TABLE trials RENAME COLUMN number TO nr"),
    "an attribute": lambda file: changed(file, "UPDATE trial_user_attributes SET value_json = '{'"),
    "another file": lambda file: file.write_text("no database" * 100),
}


def changed(file: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute(statement)


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_database_is_called_damaged(what: str, tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    study = optuna.create_study(study_name="s", storage=f"sqlite:///{file}")
    trial = study.ask()
    trial.set_user_attr("verdict", "trained")
    study.tell(trial, 0.5)
    study._storage.remove_session()
    DAMAGE[what](file)
    with pytest.raises(InputError, match=r"^storage: .*study.db is damaged, or no database .*a copy"):
        load_study(f"sqlite:///{file}", "s")


def test_a_journal_needs_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.symlink", refused)
    assert add_trial(tmp_path / "study.log") == [0.5]
    assert add_trial(tmp_path / "study.log") == [0.5, 0.5]
    assert [path.name for path in tmp_path.iterdir()] == ["study.log"]


@pytest.mark.parametrize(
    "damage", [b"{}", b"[]", b"null", b"x", b'{"op_code":99}', b'{"op_code":8,"trial_id":77}', b""]
)
def test_the_damaged_line_of_a_journal_is_named(journal: Path, damage: bytes) -> None:
    lines = journal.read_bytes().splitlines()
    journal.write_bytes(b"\n".join([*lines[:2], damage, *lines[2:], b""]))
    with pytest.raises(InputError, match=r"^storage: line 3 of .* is damaged .*delete this line") as refused:
        open_storage(f"journal:{journal}")
    assert "\n" not in str(refused.value)
    assert "op_code" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "sqlite:///a?b.db",
            "sqlite:///a.db?",
            "sqlite:///a.db?mode=ro",
            "sqlite://a.db",
            "sqlite://a/b.db",
        ),
        *("sqlite:///file:a.db", "sqlite:///~/a.db", "journal:~/a.log"),
    ],
)
def test_a_url_that_would_name_another_file_is_refused(url: str, work: Path) -> None:
    with pytest.raises(InputError, match="storage: ") as refused:
        open_storage(url)
    assert repr(url) in str(refused.value)
    assert not list(work.iterdir())


def test_another_programs_database_is_left_alone_and_no_internals_are_named(tmp_path: Path) -> None:
    file = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.executescript(
            "CREATE TABLE alembic_version (version_num TEXT); INSERT INTO alembic_version VALUES ('0b5f');"
        )
    before = file.read_bytes()
    with pytest.raises(InputError, match="holds no studies, but tables of another program"):
        open_storage(f"sqlite:///{file}")
    assert file.read_bytes() == before
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.executescript("CREATE TABLE mine (id INTEGER PRIMARY KEY AUTOINCREMENT);")
    with pytest.raises(InputError, match=r"holds no studies, but mine \(use another file\)"):
        open_storage(f"sqlite:///{file}")


def test_a_shared_table_of_versions_is_no_reason_to_update_optuna(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    open_storage(url)
    with contextlib.closing(sqlite3.connect(tmp_path / "shared.db")) as database:
        database.executescript("UPDATE alembic_version SET version_num = '0b5f';")
    with pytest.raises(InputError, match="use another database") as refused:
        open_storage(url)
    assert "pip install" not in str(refused.value)


def test_without_proc_a_number_that_is_in_use_again_keeps_no_trial_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nas_mnist.study.owner._started", lambda _: None)
    owner = this_process()
    assert owner["started"] is None
    assert not is_gone(owner)
    assert is_gone(owner | {"seen": time.time() - ABSENT_AFTER - 1})


def test_trials_are_read_in_parts_each_one_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(study_name="s", storage=open_storage(url))
    for number in range(5):
        study.tell(study.ask(), number)
    study.ask()
    monkeypatch.setattr("nas_mnist.study.storage.PART", 2)
    again = optuna.load_study(study_name="s", storage=open_storage(url))
    assert [trial.value for trial in again.get_trials()] == [0, 1, 2, 3, 4, None]
    study.tell(5, 5)
    assert [trial.value for trial in again.get_trials()] == [0, 1, 2, 3, 4, 5]
