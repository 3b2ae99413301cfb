"""Studies that an earlier version made are read, reported and continued.

Both were made with ``search --dataset mnist-5k --space space.toml --recipe seed --epochs 2 --max-params 900
--workers 1 --search-images 1000``: one in SQLite with 3 candidates, one in a journal with 4.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import optuna
import pytest
from conftest import IDENTITY, Runner

from nas_mnist.core.errors import InputError
from nas_mnist.models.architecture import Architecture
from nas_mnist.models.cost import cost_of
from nas_mnist.search.config import SearchConfig
from nas_mnist.search.setup import prepare
from nas_mnist.space.space import SearchSpace
from nas_mnist.study.config import StudyConfig
from nas_mnist.study.results import StudyResults, TrialRow
from nas_mnist.study.study import load_study, open_study

pytestmark = pytest.mark.usefixtures("no_figures")

FIXTURES = Path(__file__).parent / "fixtures"
SEARCH = ["--dataset", "mnist-5k", "--space", "space.toml", "--epochs", 2, "--max-params", 900]
SEARCH += ["--workers", 1, "--device", "cpu"]


class OldStudy(NamedTuple):
    name: str
    url: str
    restore: Callable[[Path], None]  # into a folder
    rows: list[
        tuple[object, ...]
    ]  # number, verdict, reason, n_params, macs, peak_memory, epochs, images, key
    curves: dict[int, dict[int, float]]
    finals: dict[str, dict[str, float]]
    winner: int
    test_accuracy: float


def restore_database(folder: Path) -> None:
    (folder / "studies").mkdir()
    dump = gzip.decompress((FIXTURES / "study-sqlite.sql.gz").read_bytes()).decode()
    with contextlib.closing(sqlite3.connect(folder / "studies" / "nas_mnist.db")) as database:
        database.executescript(dump)


def restore_journal(folder: Path) -> None:
    (folder / "old.log").write_bytes(gzip.decompress((FIXTURES / "study-journal.log.gz").read_bytes()))


FOUR = [
    (0, "trained", "", 121, 35_672, 12_544, 2, 1_920, "7cc911dd4264569d"),
    (1, "over budget", "206 parameters too many", 1_106, 249_312, 31_360, 0, 0, "88cf305b5f3ee848"),
    (2, "trained", "", 350, 104_664, 31_360, 2, 1_920, "39b3a4ff036707fc"),
    (3, "stopped early", "after epoch 1", 179, 56_840, 19_600, 1, 960, "c3a8307ff7b0cee0"),
]
CURVES = {
    0: {1: 0.0994236311239193, 2: 0.0994236311239193},
    2: {1: 0.10086455331412104, 2: 0.10086455331412104},
    3: {1: 0.0994236311239193},
}
STUDIES = {
    "sqlite": OldStudy(
        name="nas_mnist",
        url="sqlite:///studies/nas_mnist.db",
        restore=restore_database,
        rows=FOUR,
        curves=CURVES,
        finals={"39b3a4ff036707fc": {"1": 0.15273775216138327}, "7cc911dd4264569d": {"1": 0.138328530259366}},
        winner=2,
        test_accuracy=0.18247298919567828,
    ),
    "journal": OldStudy(
        name="old",
        url="journal:old.log",
        restore=restore_journal,
        rows=[
            *FOUR,
            (4, "over budget", "139 parameters too many", 1_039, 241_864, 35_280, 0, 0, "a60128601cdbba6e"),
            (5, "trained", "", 511, 108_192, 17_248, 2, 1_920, "e0d9e24a9eb96ca0"),
        ],
        curves=CURVES | {5: {1: 0.10806916426512968, 2: 0.10518731988472622}},
        finals={
            "e0d9e24a9eb96ca0": {"1": 0.2377521613832853},
            "39b3a4ff036707fc": {"1": 0.15273775216138327},
        },
        winner=5,
        test_accuracy=0.2581032412965186,
    ),
}


@pytest.fixture(params=STUDIES)
def old(request: pytest.FixtureRequest, work: Path) -> OldStudy:
    study = STUDIES[request.param]
    study.restore(work)
    (work / "space.toml").write_bytes((FIXTURES / "old-study-space.toml").read_bytes())
    return study


def where(old: OldStudy) -> list[str]:
    return ["--study", old.name, "--storage", old.url]


def values(row: TrialRow) -> tuple[object, ...]:
    costs = row.n_params, row.macs, row.peak_memory
    return row.trial, str(row.verdict), row.reason, *costs, row.epochs, row.images, row.key


def test_rows_curves_and_winner_are_read(old: OldStudy) -> None:
    results = StudyResults.read(load_study(old.url, old.name))
    assert [values(row) for row in results.rows] == old.rows
    assert results.curves == old.curves
    assert results.finals == old.finals
    assert results.winner is not None
    assert results.winner.trial == old.winner
    assert results.metadata["winner"]["test_accuracy"] == old.test_accuracy
    assert (results.epochs, results.images, results.config.max_params) == (2, 1_000, 900)
    assert results.low_fidelity
    assert results.cost_metric is None
    for row in results.rows:
        architecture = Architecture.make(row.architecture)
        cost = cost_of(architecture)
        assert architecture.key == row.key
        assert (cost.params, cost.macs, cost.peak_memory) == (row.n_params, row.macs, row.peak_memory)


def test_an_old_study_is_reported_and_its_winner_described(old: OldStudy, invoke: Runner, work: Path) -> None:
    ended = invoke("report", *where(old))
    assert (ended.code, ended.err) == (0, "")
    summary = json.loads((work / "reports" / old.name / "summary.json").read_text())
    assert summary["winner"]["trial"] == old.winner
    assert summary["finals"] == old.finals
    assert len((work / "reports" / old.name / "trials.csv").read_text().splitlines()) == 1 + len(old.rows)
    ended = invoke("describe", "best", *where(old), "--json")
    assert (ended.code, ended.err) == (0, "")
    (n_params,) = (row[3] for row in old.rows if row[0] == old.winner)
    assert json.loads(ended.out)["cost"]["params"] == n_params


@pytest.mark.usefixtures("one_process")
def test_the_same_command_continues_it(old: OldStudy, invoke: Runner) -> None:
    before = load_study(old.url, old.name).get_trials()
    counted = sum(row[1] in ("trained", "stopped early") for row in old.rows)
    recipe = "seed" if old.name == "old" else "published"  # the old name is an alias of the new one
    # The number of images a candidate is trained on is left out: the study goes on as it was made.
    ended = invoke("search", *SEARCH, *where(old), "--recipe", recipe, "--trials", counted + 1)
    assert (ended.code, ended.err) == (0, "")
    study = load_study(old.url, old.name)
    assert study.get_trials()[: len(before)] == before
    results = StudyResults.read(study)
    keys = [row.key for row in results.rows if row.verdict.counts]
    assert len(set(keys)) == len(keys) == counted + 1
    assert results.rows[-1].images in (960, 1_920)  # one or two epochs of 1,000 images in batches of 64


def test_other_settings_do_not_continue_it(old: OldStudy, invoke: Runner) -> None:
    for options, says in (
        (["--recipe", "default"], "another recipe"),
        (["--recipe", "seed", "--max-params", 800], "max_params 900, not 800"),
    ):
        ended = invoke("search", *SEARCH, *where(old), "--trials", 9, *options)
        assert ended.code == 2
        assert says in ended.err


def test_settings_that_a_study_lacks_have_their_defaults(work: Path) -> None:
    restore_database(work)
    old = STUDIES["sqlite"]
    study = load_study(old.url, old.name)
    names = ("space", "recipe", "data", "max_params", "epochs")  # the oldest studies have only these
    study.set_user_attr("identity", {name: study.user_attrs["identity"][name] for name in names})
    results = StudyResults.read(load_study(old.url, old.name))
    assert results.images is None
    assert not results.low_fidelity
    assert [values(row) for row in results.rows] == old.rows


def test_a_study_of_larger_images_keeps_the_space_that_it_was_made_with(work: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (120, 32, 32, 3), np.uint8)
    np.savez(work / "own.npz", images=colour, labels=np.arange(120) % 3)
    config = SearchConfig.make(dataset="npz:own.npz", device="cpu", storage="sqlite:///s.db", study="s")
    new, _ = prepare(config)
    earlier = SearchSpace.load_for("default", (3, 32, 32), 3, "own", None)
    assert new.space.digest != earlier.digest
    study = optuna.create_study(storage="sqlite:///s.db", study_name="s")
    study.set_user_attr("identity", IDENTITY | {"space": earlier.digest})
    assert prepare(config)[0].space == earlier
    study.set_user_attr("identity", IDENTITY | {"space": new.space.digest})
    assert prepare(config)[0].space == new.space


@pytest.mark.parametrize(
    ("command", "says"), [("--objective params --target 99.4", ""), ("--target 99.4", "none")]
)
@pytest.mark.usefixtures("work")
def test_a_search_for_the_smallest_that_stored_no_target_goes_on(command: str, says: str) -> None:
    study = optuna.create_study(storage="sqlite:///s.db", study_name="s")
    study.set_user_attr("identity", IDENTITY)
    study.set_user_attr("command", f"python -m nas_mnist.search {command}")
    wanted = StudyConfig.model_validate(IDENTITY | {"target": 99.4})
    if says:
        with pytest.raises(InputError, match=f"target {says}, not 99.4"):
            open_study("sqlite:///s.db", "s", wanted, {})
    else:
        assert open_study("sqlite:///s.db", "s", wanted, {}).study_name == "s"
