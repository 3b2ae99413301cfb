"""``python -m nas_mnist.bench searches``: whole searches, and the test accuracy of what they find.

Each search is the command that a user types, in a folder of its own. An interrupted command continues.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Annotated

from ..core.cli import (
    HOW_WELL,
    OUTPUT,
    WHAT,
    DataDir,
    Dataset,
    Device,
    Workers,
    as_path,
    as_table,
    check_data_dir,
    integer,
    option,
)
from ..core.defaults import MAX_PARAMS, MAX_SEED
from ..core.errors import InputError, NoResultError
from ..core.fileio import check_writable
from ..core.process_pool import auto_workers, parse_workers
from ..models.architecture import Architecture
from ..recipes.recipe import stored_recipe
from ..search.effort import DEFAULT_EFFORT, EFFORTS
from ..training.jobs import RetrainJob, Source, retrain_seeds
from .rows import Row, TableFormat

if TYPE_CHECKING:
    import optuna
    from rich.console import Console
    from rich.table import Table

    from ..data.dataset import DataSet
    from ..study.race import Answer
    from ..training.final import Run

DEFAULT_TABLE = "reports/searches/searches.csv"
FOLDER = Path("studies/searches")  # of the searches' own files
STORAGE = f"sqlite:///{FOLDER}/searches.db"
TEST_SEEDS, NEAR_TARGET = range(1000, 1003), range(1000, 1005)  # of tests; of no search and no final
ALL_ANSWERS = 3  # searches of each kind whose three answers are tested; of others the one asked for is
# User attributes of a study: the seconds of its search so far; test accuracies by key, by seed.
SECONDS, TESTED = "search_seconds", "tested"
ASKED = ["dataset", "max_params", "seed", "effort", "objective"]
SEARCH = [*ASKED, "seconds", "trials", "trained", "stopped", "rejected"]
ANSWER = ["origin", "answer", "n_params", "macs", "validation_accuracy", "validation_loss"]
COLUMNS = [*SEARCH, *ANSWER, "test_mean", "test_std", "seeds"]
TABLE = TableFormat(
    "searches",
    COLUMNS,
    {
        "dataset": str,
        "max_params": int,
        "seed": int,
        "trials": int,
        "objective": str,
        "effort": str,
        "seeds": "Int64",
    },
)


@dataclass(frozen=True)
class Kind:
    """Searches that differ in their seed only."""

    max_params: int
    effort: str
    trials: int
    target: float | None = None  # percent, of a search that narrows its budget
    dataset: str = "mnist"

    @property
    def asked_for(self) -> str:
        """The answer that is tested in any case; of a search that narrows its budget no other one is."""
        return "smallest" if self.target else "most_accurate"

    @property
    def test_seeds(self) -> range:
        """The seeds of the tests: more near a target."""
        return NEAR_TARGET if self.target else TEST_SEEDS

    @property
    def objective(self) -> str:
        """The aim of the searches, as in the table."""
        return f"params {self.target:g}" if self.target else "accuracy"

    def study(self, seed: int) -> str:
        """The name of the study of one search."""
        aim = self.objective.replace(" ", "-")
        data = "" if self.dataset == "mnist" else re.sub(r"\W+", "-", self.dataset) + "-"
        return f"{data}{aim}-{self.max_params}-{self.effort}-{self.trials}-seed-{seed}"

    def command(self, seed: int) -> list[str]:
        """The options of ``python -m nas_mnist.search`` for one search."""
        words = ["--max-params", self.max_params, "--trials", self.trials, "--effort", self.effort]
        words += ["--objective", "params", "--target", self.target] if self.target else []
        return [str(word) for word in [*words, "--seed", seed, "--study", self.study(seed)]]

    def is_row(self, row: Row, seed: int) -> bool:
        """Whether a row of the table is of the search with this seed."""
        own = [self.dataset, self.max_params, seed, self.effort, self.objective, self.trials]
        return [row[name] for name in (*ASKED, "trials")] == own


def searches(
    max_params: Annotated[
        list[int] | None,
        integer(WHAT, 1, 10**9, f"The parameter budget ({MAX_PARAMS:,}); repeatable."),
    ] = None,
    target: Annotated[
        float | None, option(WHAT, "PERCENT", "Narrow the budget to the smallest network of this accuracy.")
    ] = None,
    effort: Annotated[
        str, option(HOW_WELL, "EFFORT", f"Spend: quick, normal or thorough ({DEFAULT_EFFORT}).")
    ] = DEFAULT_EFFORT,
    trials: Annotated[int, integer(HOW_WELL, 1, 100_000, "Candidates of a search (50).")] = 50,
    seeds: Annotated[int, integer(HOW_WELL, 1, 1000, "Search with N seeds (3).")] = 3,
    seed: Annotated[int, integer(HOW_WELL, 0, MAX_SEED, "Begin with seed N (0).")] = 0,
    table: Annotated[
        str, option(OUTPUT, "FILE.csv", f"Make or extend this table ({DEFAULT_TABLE}).")
    ] = DEFAULT_TABLE,
    dataset: Dataset = "mnist",
    data_dir: DataDir = None,
    device: Device = "auto",
    workers: Workers = "auto",
) -> None:
    """Run whole searches, and test the answers with fresh seeds.

    The same command continues. Searches that the table has are not repeated.
    """
    path = as_table("--table", table)
    check_data_dir(data_dir, dataset)
    if effort not in EFFORTS:
        raise InputError(f"--effort: {effort!r} (use {', '.join(EFFORTS)})")
    if target is not None and not 0 < target < 100:
        raise InputError(f"--target: {target} (use more than 0 and less than 100)")
    processes, rows = parse_workers(workers), TABLE.read(path)
    check_writable(path.parent, "--table")
    check_writable(FOLDER, str(FOLDER))

    from ..data.dataset import load
    from ..report.progress import make_console
    from ..training.device import pick_device

    data, console = load(dataset, as_path(data_dir)), make_console()
    source = Source(dataset, as_path(data_dir), pick_device(device).type)
    bench = SearchBench(data, source, processes or auto_workers(source.device), console)
    for number in range(seed, seed + seeds):
        for budget in max_params or [MAX_PARAMS]:
            kind = Kind(budget, effort, trials, target, dataset)
            if any(kind.is_row(row, number) for row in rows):
                continue
            rows += bench.run(kind, number, all_answers=number < ALL_ANSWERS and target is None)
            TABLE.write(path, rows)
    console.print(_table(rows))
    console.print(f"Written: {path}")


@dataclass(frozen=True)
class SearchBench:
    """Runs searches as users do, and tests their answers."""

    data: DataSet
    source: Source
    workers: int
    console: Console

    def run(self, kind: Kind, seed: int, all_answers: bool) -> list[Row]:
        """The rows of one search, an answer each; raises `NoResultError` if it ended without one."""
        from ..study.results import StudyResults
        from ..study.study import load_study
        from ..study.verdict import Verdict

        self.console.rule(kind.study(seed))
        self._search(kind, seed)
        study = load_study(STORAGE, kind.study(seed))
        results = StudyResults.read(study)
        counts = results.counts
        rejected = counts[Verdict.OVER_BUDGET] + counts[Verdict.IMPOSSIBLE]
        asked = [kind.dataset, kind.max_params, seed, kind.effort, kind.objective]
        ended = [kind.trials, counts[Verdict.TRAINED], counts[Verdict.STOPPED], rejected]
        search: Row = dict(zip(SEARCH, [*asked, round(study.user_attrs[SECONDS]), *ended], strict=True))
        rows = []
        for name, answer in results.answers.items():
            is_tested = all_answers or name == kind.asked_for
            tested = self._test(study, answer, kind.test_seeds) if is_tested else []
            row = search | {"answer": name}
            row |= {column: getattr(answer, column) for column in ANSWER if column != "answer"}
            if tested:
                row |= {"test_mean": fmean(tested), "test_std": stdev(tested), "seeds": len(tested)}
            rows.append(row)
        return rows

    def _search(self, kind: Kind, seed: int) -> None:
        """Run or continue a search without its test images, and add up its seconds."""
        from ..study.study import load_study

        FOLDER.mkdir(parents=True, exist_ok=True)
        words = [*kind.command(seed), "--no-retrain", "--storage", "sqlite:///searches.db"]
        words += ["--dataset", self.source.dataset, "--device", self.source.device]
        words += ["--workers", str(self.workers)]
        if self.source.data_dir is not None:
            words += ["--data-dir", str(self.source.data_dir.resolve())]
        start = time.monotonic()
        try:
            ended = subprocess.run(
                [sys.executable, "-m", "nas_mnist.search", *words],
                cwd=FOLDER,
                env=_environment(),
                check=False,
            )
        finally:
            with suppress(InputError):  # it ended before it made its study
                study = load_study(STORAGE, kind.study(seed))
                before = study.user_attrs.get(SECONDS, 0.0)
                study.set_user_attr(SECONDS, before + time.monotonic() - start)
        if ended.returncode:
            raise NoResultError(f"{kind.study(seed)}: the search ended with exit code {ended.returncode}")

    def _test(self, study: optuna.Study, answer: Answer, seeds: Sequence[int]) -> list[float]:
        """Test accuracies (0 to 1) of an answer after trainings on all training images; kept in the study."""
        from ..report.epoch_log import EpochLog

        known: dict[str, dict[str, float]] = study.user_attrs.get(TESTED, {})
        own = known.setdefault(answer.key, {})
        missing = [seed for seed in seeds if str(seed) not in own]

        def on_run(run: Run) -> None:
            own[str(run.seed)] = run.result.accuracy
            study.set_user_attr(TESTED, known)

        if missing:
            recipe = stored_recipe(answer.recipe, f"{answer.name}: recipe")
            architecture = Architecture.make(answer.architecture)
            job = RetrainJob(architecture, recipe, missing, self.source, last_only=True)
            with EpochLog(self.console, recipe.epochs, len(missing), lines=False) as log:
                retrain_seeds(job, self.data, self.workers, log, on_run)
        return [own[str(seed)] for seed in seeds]


def _environment() -> dict[str, str]:
    """This process's environment, with a folder of data that is right in another folder, too."""
    folder = os.environ.get("NAS_MNIST_DATA")
    return {**os.environ, "NAS_MNIST_DATA": str(Path(folder).resolve())} if folder else {**os.environ}


def _table(rows: Sequence[Row]) -> Table:
    """A row an answer, in the order of the table, within 80 columns; the CSV file has more."""
    from ..report.tables import new_table

    headings = ["Min", "Params", "Valid. %", "Test %"]
    table = new_table(
        "Searches: budget, effort, seed", ["Search", "Answer", "Origin"], headings, compact=True
    )
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    for row in rows:
        aim = row["objective"].removeprefix("accuracy").replace("params", "to")
        own = "" if row["dataset"] == "mnist" else row["dataset"]
        words = own, f"{row['max_params']:,}", aim, row["effort"], str(row["seed"])
        search = " ".join(word for word in words if word)
        mean = row.get("test_mean", nan)
        test = "" if isnan(mean) else f"{100 * mean:.3f}"
        numbers = (
            f"{row['seconds'] / 60:.0f}",
            f"{row['n_params']:,}",
            f"{100 * row['validation_accuracy']:.2f}",
        )
        table.add_row(search, row["answer"], row["origin"], *numbers, test)
    return table
