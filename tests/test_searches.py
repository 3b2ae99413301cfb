"""Whole searches in a table: the answers of a study are tested once, and a row stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from conftest import Ended, Runner, stored

from nas_mnist.bench import searches
from nas_mnist.search.config import SearchConfig
from nas_mnist.study.results import StudyResults

KIND = searches.Kind(max_params=15_000, effort="quick", trials=3)
COMMAND = ["--max-params", 15_000, "--effort", "quick", "--trials", 3, "--seeds", 1, "--table", "t.csv"]
COMMAND += ["--dataset", "mnist-5k", "--device", "cpu", "--workers", 1]


@pytest.fixture
def searched(work: Path, finished: tuple[Path, Ended], monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands of the searches that were run; each leaves the finished study."""
    commands: list[list[str]] = []

    def run(command: list[str], cwd: Path, **_: Any) -> Any:
        commands.append(command)
        name = command[command.index("--study") + 1]
        target = f"sqlite:///{work / cwd}/searches.db"
        source = f"sqlite:///{finished[0]}/studies/nas_mnist.db"
        optuna.copy_study(
            from_study_name="nas_mnist", from_storage=source, to_storage=target, to_study_name=name
        )
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr("subprocess.run", run)
    monkeypatch.setattr(searches, "TEST_SEEDS", range(1000, 1002))
    return commands


def test_the_answers_of_a_search_are_tested_once(
    searched: list[list[str]], finished: tuple[Path, Ended], invoke: Runner, work: Path
) -> None:
    ended = invoke("bench searches", *COMMAND)
    assert (ended.code, ended.err) == (0, "")
    (command,) = searched
    assert command[1:3] == ["-m", "nas_mnist.search"]
    assert "--no-retrain" in command
    table = pd.read_csv(work / "t.csv")
    assert list(table.columns) == searches.COLUMNS
    results = StudyResults.read(stored(finished[0]))
    assert dict(zip(table["answer"], table["n_params"], strict=True)) == {
        name: answer.n_params for name, answer in results.answers.items()
    }
    assert set(table["seeds"]) == {2}
    assert table["test_mean"].between(0.3, 1).all()
    assert set(table["trials"]) == {3}
    before = (work / "t.csv").read_bytes()
    again = invoke("bench searches", *COMMAND)
    assert (again.code, again.err, len(searched)) == (0, "", 1)
    assert (work / "t.csv").read_bytes() == before


@pytest.mark.usefixtures("searched")
def test_a_search_with_a_target_has_no_other_answer_tested(invoke: Runner, work: Path) -> None:
    assert searches.Kind(20_000, "quick", 50, target=99.4).asked_for == "smallest"
    ended = invoke("bench searches", *COMMAND, "--target", 99.9)  # no answer meets it
    assert (ended.code, ended.err) == (0, "")
    table = pd.read_csv(work / "t.csv")
    assert "smallest" not in set(table["answer"])
    assert set(table["objective"]) == {"params 99.9"}
    assert table["seeds"].isna().all()


@pytest.mark.parametrize("kind", [KIND, searches.Kind(20_000, "normal", 50, target=99.4)])
def test_a_search_of_the_table_is_one_that_a_user_can_type(kind: searches.Kind) -> None:
    words = kind.command(seed=3)
    options = dict(zip(words[::2], words[1::2], strict=True))
    config = SearchConfig.make(**{name[2:].replace("-", "_"): value for name, value in options.items()})
    assert (config.max_params, config.effort, config.trials) == (kind.max_params, kind.effort, kind.trials)
    assert (config.seed, config.narrows) == (3, kind.target is not None)


def test_searches_of_other_data_are_others() -> None:
    own = searches.Kind(20_000, "quick", 50, dataset="idx:/usr/share/fashion mnist")
    assert own.study(1) == "idx-usr-share-fashion-mnist-accuracy-20000-quick-50-seed-1"
    row = dict(zip(searches.ASKED, ["mnist", 20_000, 1, "quick", "accuracy"], strict=True)) | {"trials": 50}
    assert not own.is_row(row, 1)
    assert own.is_row(row | {"dataset": own.dataset}, 1)


def test_another_table_is_refused(invoke: Runner, work: Path) -> None:
    (work / "t.csv").write_text("a,b\n1,2\n")
    ended = invoke("bench searches", *COMMAND)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "no table of searches" in ended.err
    assert (work / "t.csv").read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ("default", "small")),
        ({"max_params": 5_001}, ("default", "small")),
        ({"max_params": 5_000}, ("tiny", "tiny")),
        ({"objective": "params", "target": 99.4}, ("tiny", "tiny")),
        ({"objective": "params"}, ("default", "small")),  # a front
        ({"max_params": 500, "space": "classic"}, ("classic", "tiny")),
        ({"max_params": 500, "recipe": "default"}, ("tiny", "default")),
    ],
)
def test_small_budgets_have_a_space_and_a_recipe_of_their_own(
    options: dict[str, Any], names: tuple[str, str]
) -> None:
    config = SearchConfig.make(**options)
    assert (config.space_name, config.recipe_name) == names
