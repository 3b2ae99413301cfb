"""The commands from end to end, on 5,000 images and tiny networks."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from conftest import (
    COMMON,
    EPOCHS,
    FILES,
    NO_FINALS,
    SEARCH,
    TINY_SPACE,
    TRIALS,
    Ended,
    Runner,
    best_folder,
    environment,
    furnish,
    stored,
)
from rich.console import Console

from nas_mnist import Architecture
from nas_mnist.core.errors import NoResultError, StorageLostError
from nas_mnist.data.dataset import DataSet, Images, load
from nas_mnist.data.normalize import Normalizer
from nas_mnist.models.cost import cost_of
from nas_mnist.models.network import Network
from nas_mnist.recipes.recipe import load_recipe
from nas_mnist.search.config import SearchConfig
from nas_mnist.search.effort import EFFORTS
from nas_mnist.search.finals import Finals
from nas_mnist.search.pipeline import SearchPipeline
from nas_mnist.search.setup import SearchSetup
from nas_mnist.study.owner import this_process
from nas_mnist.study.race import Answer, Finalist, FinalScores
from nas_mnist.study.results import StudyResults, best_rows, trial_rows
from nas_mnist.study.verdict import Verdict, verdict_of
from nas_mnist.training.classifier import Classifier
from nas_mnist.training.evaluate import evaluate
from nas_mnist.training.jobs import Source
from nas_mnist.training.loop import train

pytestmark = pytest.mark.usefixtures("no_figures")

RUN = "nas_mnist.search.pipeline.SearchPipeline.run"
LOOK = "optuna-dashboard sqlite:///studies/nas_mnist.db --artifact-dir studies/artifacts"


def counted(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return [trial for trial in study.trials if (verdict := verdict_of(trial)) and verdict.counts]


def listing(folder: Path) -> set[str]:
    """Every file and folder, without SQLite's own temporary ones."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {name for name in names if not name.endswith(("-wal", "-shm", "-journal"))}


@pytest.fixture(scope="module")
def winner_folder(finished: tuple[Path, Ended]) -> Path:
    return best_folder(finished[0])


@pytest.fixture(scope="module")
def result(winner_folder: Path) -> dict[str, Any]:
    return json.loads((winner_folder / "result.json").read_text())


def test_search_ends_with_table_verdict_and_the_line_to_paste(
    finished: tuple[Path, Ended], result: dict[str, Any]
) -> None:
    folder, ended = finished
    assert (ended.code, ended.err) == (0, "")
    for text in (
        *("Best candidates (validation images; bytes as int8)", f"{TRIALS}/{TRIALS}"),
        *(one["what"] for one in result["requirements"]),
        *(
            "Best (lowest loss): trial-",
            "The search found the best one",
            "python -m nas_mnist.reproduce best",
        ),
        *(f"n/{TRIALS} counts trained candidates", "compile kernels", "ssh -L 8080:localhost:8080"),
    ):
        assert text in ended.out
    assert "Few draws fit" not in ended.out
    assert ended.out.splitlines()[-1] == LOOK
    assert not {"\x1b", "\r"} & set(ended.out)  # no terminal: no escape codes, nothing that moves
    assert ended.out.count("NOT FULL MNIST") >= 2  # at the start and beside the verdict
    winner = str(best_folder(folder).relative_to(folder))
    names = {name for name in listing(folder) if "artifacts/" not in name and "plots/" not in name}
    of_winner = re.compile(rf"{winner}(/|$)")  # not of a smaller answer
    assert {name for name in names if "/trial-" not in name or of_winner.match(name)} == {
        "space.toml", "recipe.toml", "studies", "studies/nas_mnist.db", "studies/artifacts", "reports",
        "reports/nas_mnist", "reports/nas_mnist/report.html", "reports/nas_mnist/summary.json",
        "reports/nas_mnist/trials.csv", "reports/nas_mnist/plots", winner, f"{winner}/result.json",
        f"{winner}/epochs.csv", f"{winner}/weights-seed-0.safetensors",
    }  # fmt: skip


def test_study_holds_what_it_was_made_with_and_its_winner(
    finished: tuple[Path, Ended], result: dict[str, Any]
) -> None:
    study = stored(finished[0])
    assert len(counted(study)) == TRIALS
    attrs = study.user_attrs
    assert {"space", "recipe", "data", "device", "versions", "identity", "answers"} <= set(attrs)
    assert (attrs["identity"]["max_params"], attrs["identity"]["epochs"]) == (15_000, EPOCHS)
    assert attrs["data_note"].startswith("NOT FULL MNIST")
    rows = trial_rows(study)
    winner = StudyResults.read(study).answers["most_accurate"]
    assert winner.trial in [row.trial for row in best_rows(rows, 2)]
    assert attrs["retrained"][winner.key]["test_accuracy"] == result["test_accuracy"]["mean"]
    assert (result["trial"], result["key"]) == (winner.trial, winner.key)


def test_result_has_stable_fields(result: dict[str, Any]) -> None:
    assert set(result) >= {
        "name", "key", "architecture", "cost", "recipe", "data", "device", "versions", "test_accuracy",
        "requirements", "runs",
    }  # fmt: skip
    architecture = Architecture.make(result["architecture"])
    assert result["key"] == architecture.key
    assert result["cost"] == asdict(cost_of(architecture))
    assert set(result["data"]) >= {"name", "source", "note", "fingerprint"}
    assert result["data"]["name"] == "mnist-5k"
    assert result["data"]["note"].startswith("NOT FULL MNIST")
    assert set(result["versions"]) >= {"python", "nas-mnist", "torch", "torchvision", "optuna"}
    assert result["recipe"]["epochs"] == EPOCHS
    (run,) = result["runs"]
    assert run["test_images"] == 833
    assert run["test_accuracy"] == run["test_correct"] / 833 == result["test_accuracy"]["mean"]
    assert [epoch["epoch"] for epoch in run["epochs"]] == [1, 2]
    assert [epoch["test_accuracy"] for epoch in run["epochs"]] == [None, run["test_accuracy"]]
    assert run["best_epoch_chosen_on_test"] is None  # the test images were read once
    assert {one["what"]: one["met"] for one in result["requirements"]} == {
        "accuracy >= 99.4%": False,
        "parameters <= 15,000, the budget": True,
        "epochs <= 20": True,
        "no fully connected layer": True,
    }


def test_epochs_table_agrees_with_the_result(winner_folder: Path, result: dict[str, Any]) -> None:
    with (winner_folder / "epochs.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert " ".join(rows[0]) == ("seed epoch train_loss test_loss test_accuracy learning_rate seconds images")
    for row, epoch in zip(rows, result["runs"][0]["epochs"], strict=True):
        assert row.pop("seed") == "0"
        assert {name: float(value) if value else None for name, value in row.items()} == epoch


def test_weights_load_back_and_reach_the_recorded_accuracy(
    winner_folder: Path, result: dict[str, Any], five_thousand: DataSet
) -> None:
    classifier = Classifier.load(winner_folder / "weights-seed-0.safetensors")
    assert classifier.model.architecture == Architecture.make(result["architecture"])
    assert classifier.normalizer == Normalizer.of(five_thousand.train.images)
    score = evaluate(classifier.model, five_thousand.read_test(), classifier.normalizer)
    (run,) = result["runs"]
    assert abs(score.correct - run["test_correct"]) <= 1  # threads may round otherwise
    assert score.loss == pytest.approx(run["test_loss"], rel=1e-3)


def test_the_same_command_again_trains_nothing_and_writes_nothing(copied: Path, invoke: Runner) -> None:
    before, trials = listing(copied), len(stored(copied).trials)
    ended = invoke("search", *SEARCH, "--trials", TRIALS)
    assert (ended.code, ended.err) == (0, "")
    assert "Retrained before" in ended.out
    assert ended.out.splitlines()[-1] == LOOK
    assert listing(copied) == before
    assert len(stored(copied).trials) == trials
    # For scripts: silence, and a file.
    quiet = [*SEARCH, "--trials", TRIALS, "--quiet", "--json", "out.json"]
    assert invoke("search", *quiet) == (0, "", "")
    summary = (copied / "reports" / "nas_mnist" / "summary.json").read_bytes()
    assert (copied / "out.json").read_bytes() == summary
    assert json.loads(summary)["trials"]["trained"] > 0
    assert invoke("search", *quiet).code == 2  # the file exists


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
def test_candidates_are_trained_shorter_and_on_fewer_images_than_finalists_and_winner(
    work: Path, invoke: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    furnish(work)
    trained_on: list[int] = []

    def heard(model: Network, data: Images, *how: Any, **more: Any) -> Any:
        trained_on.append(len(data))
        return train(model, data, *how, **more)

    monkeypatch.setattr("nas_mnist.training.loop.train", heard)
    (work / "recipe.toml").write_text("batch_size = 300\nlearning_rate = 0.05\n")
    asked = [*SEARCH, "--epochs", 2, "--workers", 1, "--trials", 3, "--finalists", 2, "--finalist-seeds", 2]
    less = ["--search-epochs", 1, "--search-images", 600]
    ended = invoke("search", *asked, *less)
    assert (ended.code, ended.err) == (0, "")
    assert "3 candidates, 1 epoch (finalists: 2) of 600 images (finalists: all)" in ended.out
    assert "Training 2 candidates again" in ended.out
    assert {count for count in trained_on if count != 600} == {3473}
    study = stored(work)
    rows, attrs = trial_rows(study), study.user_attrs
    assert {(row.epochs, row.images) for row in best_rows(rows, 3)} == {(1, 600)}
    identity, race = attrs["identity"], attrs["race"]
    assert (identity["epochs"], identity["search_epochs"], identity["search_images"]) == (2, 1, 600)
    losses = {key: statistics.fmean(loss for _, loss in scores.values()) for key, scores in race.items()}
    finalists = {row.key for row in best_rows(rows, 2)}
    assert finalists < set(losses)  # and narrower copies of the best
    best = StudyResults.read(study).answers["most_accurate"]
    assert best.key == min(finalists, key=lambda key: losses[key])
    assert set(race[best.key]) <= {"1", "2"}  # fresh seeds: the search's own does not count
    reports = work / "reports" / "nas_mnist"
    summary = json.loads((reports / "summary.json").read_text())
    assert summary["winner"]["key"] == summary["answers"]["most_accurate"]["key"] == best.key
    assert set(summary["finals"]) == set(race)
    result = json.loads((best_folder(work) / "result.json").read_text())
    epochs = result["runs"][0]["epochs"]
    assert (result["recipe"]["epochs"], len(epochs)) == (2, 2)
    assert epochs[0]["images"] == 3900  # of 4,167, whole batches
    page = " ".join((reports / "report.html").read_text().split())
    assert "Mean over seeds" in page
    assert "again with fresh seeds for 2 epochs of all images of the training split." in page
    again = invoke("search", *asked, *less)  # nothing is trained twice
    assert again.code == 0
    assert "Retraining" not in again.out
    assert stored(work).user_attrs["race"] == race
    repeated = invoke("reproduce", "best", *COMMON, "--json", "again.json")
    assert (repeated.code, repeated.err) == (0, "")
    told = json.loads((work / "again.json").read_text())
    assert (told["key"], told["recipe"]) == (best.key, result["recipe"])
    for options, says in (
        (["--search-images", 600], "search_epochs 1, not none"),
        (["--search-epochs", 1, "--search-images", "all"], "search_images 600, not all"),
    ):
        refused = invoke("search", *asked, *options)
        assert refused.code == 2
        assert says in refused.err
    more = invoke("search", *asked, "--search-epochs", 1, "--trials", 4)  # on as many images as the study
    assert (more.code, more.err) == (0, "")
    assert {row.images for row in trial_rows(stored(work)) if row.verdict.counts} == {600}


@pytest.mark.parametrize(
    ("options", "part", "of_finalists"),
    [
        ([], 1500, None),
        (["--search-images", "all"], None, None),
        (["--search-images", 700], 700, None),
        (["--no-retrain"], 1500, None),
        (["--search-epochs", 1], None, None),
        (["--effort", "quick"], 1000, 2000),
        (["--effort", "quick", "--search-images", 2500], 2500, 2500),
        (["--effort", "quick", "--objective", "params", "--target", 99], 1000, None),  # of all images
        (["--recipe", "large.toml"], None, None),  # a batch is more than the part
    ],
)
def test_candidates_are_trained_on_a_part_where_there_is_plenty(
    options: list[object],
    part: int | None,
    of_finalists: int | None,
    work: Path,
    invoke: Runner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    furnish(work)
    (work / "recipe.toml").write_text("batch_size = 300\n")
    (work / "large.toml").write_text("batch_size = 1600\n")
    asked: list[object] = []

    def ask(pipeline: Any, *_: object) -> None:
        asked.append((pipeline.setup.images, pipeline.setup.final_images(3473)))

    monkeypatch.setattr(RUN, ask)
    for name, images, final in (("normal", 1500, None), ("quick", 1000, 2000)):  # of 3,473 that train
        monkeypatch.setitem(EFFORTS, name, EFFORTS[name]._replace(images=images, final_images=final))
    for _ in range(1 if options else 2):
        assert invoke("search", *FILES, *options).code == 0
    assert set(asked) == {(part, of_finalists)}


@pytest.mark.usefixtures("one_process")
def test_a_target_that_no_finalist_meets_is_told_with_their_images(
    work: Path, invoke: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    furnish(work)
    small = EFFORTS["quick"]._replace(images=600, final_images=1200, finalists=2)
    monkeypatch.setitem(EFFORTS, "quick", small)
    asked = ["--effort", "quick", "--target", 99.95, "--trials", 2, "--workers", 1, "--no-retrain"]
    ended = invoke("search", *SEARCH, *asked)
    assert (ended.code, ended.err) == (0, "")
    says = "No finalist reaches 99.95% of the validation images; they trained on 1,200 images"
    assert says in ended.out


class Race:
    """Finals of a finished study whose trainings end with given losses."""

    def __init__(self, folder: Path) -> None:
        self.study = stored(folder)
        self.study.set_user_attr("race", {})
        self.study.set_user_attr("answers", {})
        self.rows = best_rows(trial_rows(self.study), TRIALS)
        self.losses: dict[str, list[float]] = {}  # by key, of seed 1 and 2; 0.1 of all others
        self.enough = 0  # parameters, from which the target is met
        self.trained: list[str] = []

    def train(self, study: optuna.Study, scores: FinalScores, finalists: Any, seeds: list[int]) -> None:
        """Instead of `Finals._train`."""
        for one in finalists:
            for seed in set(seeds) - scores.seeds(one.key):
                self.trained.append(one.name)
                loss = self.losses.get(one.key, [0.1, 0.1])[seed - 1]
                noise = np.random.default_rng(one.params + seed).random(50)
                accuracy = 0.5 if one.params >= self.enough else 0.3
                scores.add(one.key, seed, accuracy, (loss + 1e-4 * noise).astype(np.float32))
        study.set_user_attr("race", scores.to_json())

    def finals(self, **options: Any) -> Finals:
        """The finals of one command."""
        config = SearchConfig.make(dataset="mnist-5k", max_params=15_000, target=40, **options)
        nothing: Any = None
        setup = SearchSetup(config, Source("mnist-5k", None, "cpu"), nothing, load_recipe("tiny"), 4, None)
        return Finals(setup, load("mnist-5k"), Console(quiet=True))

    def choose(self, finalists: int, seeds: int) -> dict[str, Answer]:
        """The answers of one command."""
        return self.finals(finalists=finalists, finalist_seeds=seeds).choose(self.study)


@pytest.fixture
def race(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Race:
    race = Race(copied)
    monkeypatch.setattr(Finals, "_train", lambda _, *how: race.train(*how))
    return race


def test_networks_that_raced_before_race_again_without_training(race: Race) -> None:
    first = race.choose(2, seeds=1)
    assert {f"trial-{row.trial}" for row in race.rows[:2]} < set(race.trained)  # and copies
    assert first["smallest"].n_params < min(row.n_params or 0 for row in race.rows)
    race.trained.clear()
    other = race.rows[2]  # was no finalist yet
    race.losses[other.key or ""] = [0.05, 0.05]
    again = race.choose(3, seeds=1)
    name = f"trial-{other.trial}"
    assert race.trained
    assert all(one == name or one.startswith(f"{name}-") for one in race.trained)
    assert again["most_accurate"].trial == again["smaller"].trial == other.trial  # no copy of others
    assert again["smallest"].n_params <= first["smallest"].n_params


def test_a_narrowed_copy_that_is_ahead_is_the_best(race: Race) -> None:
    race.losses = {row.key or "": [0.2, 0.2] for row in race.rows}  # copies have less
    answers = race.choose(2, seeds=1)
    tried = {key: score["1"][1] for key, score in race.study.user_attrs["race"].items()}
    assert tried[answers["most_accurate"].key] == min(tried.values()) < 0.15
    assert answers["most_accurate"].name.count("-") == 2
    assert race.choose(2, seeds=1) == answers
    other = race.rows[2].key or ""  # is ahead of the first two, and not of the copy
    race.losses[other] = [0.15, 0.15]
    again = race.choose(3, seeds=1)
    assert other in race.study.user_attrs["race"]
    assert again["most_accurate"].validation_loss <= answers["most_accurate"].validation_loss


def test_the_same_finals_again_train_nothing_and_choose_the_same(race: Race) -> None:
    first, second, third = (row.key or "" for row in race.rows)
    race.losses = {first: [0.1, 0.3], second: [0.15, 0.1], third: [0.101, 0.3]}
    answers = race.choose(3, seeds=2)
    best = {row.trial for row in race.rows if row.key in (first, third)}
    assert answers["most_accurate"].trial in best  # the second one dropped out with its first seed
    race.trained.clear()
    assert race.choose(3, seeds=2) == answers
    assert race.trained == []


def test_the_smallest_network_of_a_search_that_narrows_its_budget_is_narrowed_further(race: Race) -> None:
    least, enough, *_ = sorted(row.n_params or 0 for row in race.rows)
    race.enough = (3 * least + enough) // 4
    race.losses = {row.key or "": [0.2, 0.2] for row in race.rows}  # copies have less
    finals = race.finals(objective="params", finalist_seeds=1)
    assert finals.meets_target(race.study, 15_000) == enough
    answers = finals.choose_smallest(race.study)
    assert answers["most_accurate"].name.count("-") == 2  # the copies have the lowest loss
    assert race.enough <= answers["smallest"].n_params < enough
    assert answers["smallest"].name.count("-") == 2
    race.trained.clear()
    assert finals.choose_smallest(race.study) == answers
    assert race.trained == []


@pytest.mark.usefixtures("copied")
def test_a_network_given_to_a_study_that_has_its_total_is_said_to_wait(invoke: Runner, work: Path) -> None:
    architecture = {"blocks": [{"kind": "conv", "channels": 3}]}
    (work / "mine.json").write_text(json.dumps(architecture))
    ended = invoke("search", *SEARCH, "--trials", TRIALS, "--start", "mine.json")
    assert (ended.code, ended.err) == (0, "")
    assert "Given, and not tried: the study has its candidates (--trials N: for more): mine" in ended.out


@pytest.mark.usefixtures("copied")
def test_finals_that_another_process_trains_are_left_to_it(invoke: Runner, work: Path) -> None:
    study = stored(work)
    study.set_user_attr("finals_owner", this_process() | {"place": "elsewhere"})
    before = study.user_attrs["race"], study.user_attrs["answers"]
    ended = invoke("search", *SEARCH, "--trials", TRIALS)
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "on elsewhere, seen " in ended.err
    assert "Retrained" not in ended.out
    after = stored(work).user_attrs
    assert (after["race"], after["answers"]) == before


@pytest.mark.usefixtures("one_process")
def test_more_trials_go_on_from_where_it_ended(copied: Path, invoke: Runner) -> None:
    before = [(trial.number, trial.value) for trial in stored(copied).trials]
    ended = invoke("search", *SEARCH, "--trials", TRIALS + 2, "--no-retrain")
    assert (ended.code, ended.err) == (0, "")
    assert f"Continuing: {TRIALS} of {TRIALS + 2} candidates are done." in ended.out
    study = stored(copied)
    assert [(trial.number, trial.value) for trial in study.trials][: len(before)] == before
    keys = [trial.user_attrs["key"] for trial in counted(study)]
    assert len(set(keys)) == len(keys) == TRIALS + 2


def test_a_part_has_all_classes(work: Path, invoke: Runner) -> None:
    furnish(work)
    labels = np.arange(1200) % 9
    labels[:12] = 9  # ten of them train
    images = np.random.default_rng(0).integers(0, 256, (1200, 28, 28), np.uint8)
    np.savez(work / "own.npz", x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20])
    (work / "recipe.toml").write_text("batch_size = 20\n")
    refused = invoke("search", *SEARCH, "--dataset", "npz:own.npz", "--search-images", 40)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "--search-images: 40 (use more: a class is not among so few)" in refused.err


OTHERWISE = {  # by the setting that a message names
    "space": ["--space", "other.toml"],
    "max_params": ["--max-params", 9_999],
    "max_macs": ["--max-macs", 10_000_000],
    "max_memory": ["--max-memory", 10_000_000],  # of earlier versions; not in --help
    "max_flash": ["--max-flash", "9.5MB"],
    "max_ram": ["--max-ram", "10000KB"],
    "epochs": ["--epochs", 3],
    "recipe": ["--recipe", "published"],
    "search_recipe": ["--search-recipe"],
}
MADE = {  # the same by the settings that the study was made with
    "data": {"data": "mnist 0123456789abcdef"},
    "other data": {"data": "mnist 0123456789abcdef", "search_images": 4000},  # more than there are
    "split": {"split": "0123456789abcdef"},
}


def test_a_study_made_with_something_else_is_refused_and_not_touched(copied: Path, invoke: Runner) -> None:
    (copied / "other.toml").write_text(TINY_SPACE.replace("max = 12", "max = 13"))
    made = stored(copied).user_attrs["identity"]
    for what in [*OTHERWISE, *MADE]:
        stored(copied).set_user_attr("identity", made | MADE.get(what, {}))
        study = stored(copied)
        before = listing(copied), study.user_attrs, len(study.trials)
        ended = invoke("search", *SEARCH, "--trials", TRIALS + 1, *OTHERWISE.get(what, []))
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert "study: 'nas_mnist' was made with " in ended.err
        said = ended.err.partition("made with ")[2].partition("(use ")[0]
        assert f"{what} " in said
        assert ("another space" in said, "another recipe" in said) == (what == "space", what == "recipe")
        assert "--study NEW_NAME" in ended.err
        study = stored(copied)
        assert (listing(copied), study.user_attrs, len(study.trials)) == before


@pytest.mark.usefixtures("one_process")
def test_another_name_makes_another_study_in_the_same_file(copied: Path, invoke: Runner) -> None:
    otherwise = ["--max-params", 150, "--study", "second", "--no-retrain"]
    ended = invoke("search", *SEARCH, "--trials", 1, *otherwise)
    assert (ended.code, ended.err) == (0, "")
    names = optuna.get_all_study_names(f"sqlite:///{copied}/studies/nas_mnist.db")
    assert set(names) == {"nas_mnist", "second"}
    assert "Few draws fit: of the spaces 'default' and 'tiny' (--space) nearly every draw does" in ended.out
    assert len(counted(stored(copied))) == TRIALS


def test_a_storage_that_is_lost_ends_the_search_and_trains_no_winner(
    copied: Path, invoke: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise StorageLostError("storage: sqlite:///a.db failed (gone)")

    monkeypatch.setattr("nas_mnist.search.pipeline.run_workers", lost)
    before = listing(copied)
    ended = invoke("search", *SEARCH, "--trials", TRIALS + 1)
    assert (ended.code, ended.err) == (1, "error: storage: sqlite:///a.db failed (gone)\n")
    assert "Ended early" not in ended.out
    assert listing(copied) == before


@pytest.mark.usefixtures("one_process")
def test_a_search_may_choose_the_recipe_too(work: Path, invoke: Runner) -> None:
    furnish(work)
    ended = invoke("search", *SEARCH, "--epochs", 1, "--trials", 2, "--search-recipe", "--workers", 1)
    assert (ended.code, ended.err) == (0, "")
    assert "Its recipe differs in: " in ended.out
    study = stored(work)
    drawn = {name for trial in study.trials for name in trial.params if name.startswith("recipe.")}
    assert drawn == {
        f"recipe.{name}" for name in ("learning_rate", "augmentation", "label_smoothing", "average")
    }
    winner = StudyResults.read(study).answers["most_accurate"]
    assert json.loads((best_folder(work) / "result.json").read_text())["recipe"] == winner.recipe
    recipes = [row.recipe for row in trial_rows(study) if row.verdict.counts]
    assert any(one != recipes[0] for one in recipes)


def begin(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    """A search in a process group of its own, as a terminal would start it."""
    return subprocess.Popen(
        [sys.executable, "-m", "nas_mnist.search", *map(str, arguments)],
        cwd=folder,
        env=environment(folder.parent / "cache"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def reported_epochs(file: Path) -> int:
    """How many epochs a study's file has, also while it is being made."""
    try:
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
            return connection.execute("SELECT COUNT(*) FROM trial_intermediate_values").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


@pytest.mark.usefixtures("one_process")  # the last time
def test_ctrl_c_and_the_same_command_again_reach_the_same_total(work: Path, invoke: Runner) -> None:
    furnish(work)
    command = [*NO_FINALS, "--epochs", 4, "--trials", 2, "--workers", 2]

    running = begin(work, *command)  # interrupted while it trains its first candidate
    while not reported_epochs(work / "studies" / "nas_mnist.db") and running.poll() is None:
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGINT)
    out, first_err = running.communicate(timeout=300)
    assert running.returncode == 130, out + first_err
    again = out.partition("Continue with:\n")[2].splitlines()[0]
    assert again == " ".join(["python -m nas_mnist.search", *map(str, command)])
    assert LOOK in out
    study = stored(work)
    assert len(counted(study)) < 2
    ends = (None, Verdict.INTERRUPTED)  # None: on a machine with much to do there was no time to put it back
    unfinished = [trial for trial in study.trials if verdict_of(trial) in ends]
    lost = {trial.user_attrs["key"] for trial in unfinished if "key" in trial.user_attrs}
    assert lost

    command[-1] = 1  # the number of workers is not part of a study
    running = begin(work, *command)  # interrupted while the winner is retrained
    assert running.stdout is not None
    seen = ""
    for line in running.stdout:
        seen += line
        if line.startswith("Retraining"):
            break
    os.killpg(running.pid, signal.SIGINT)
    out, second_err = running.communicate(timeout=300)
    assert running.returncode == 130, seen + out + second_err
    study = stored(work)
    assert len(counted(study)) == 2
    assert lost <= {trial.user_attrs["key"] for trial in counted(study)}
    assert not list((work / "reports").rglob("result.json"))

    ended = invoke("search", *command)
    assert (ended.code, ended.err) == (0, "")
    assert len(stored(work).trials) == len(study.trials)
    assert (best_folder(work) / "result.json").exists()
    assert (first_err, second_err) == ("", "")


@pytest.mark.usefixtures("one_process")
def test_a_search_for_the_smallest_network_narrows_its_budget(work: Path, invoke: Runner) -> None:
    furnish(work)
    (work / "wide.toml").write_text("fill = 1.0\n" + TINY_SPACE)
    smallest = ["--space", "wide.toml", "--objective", "params", "--target", 15, "--max-params", 800]
    both = invoke("search", *SEARCH, *smallest)
    assert both.code == 2
    assert "--finalists: '2' counts only without --objective params --target" in both.err
    command = [*FILES, "--finalist-seeds", 1, *smallest, "--trials", 6, "--workers", 1, "--no-retrain"]
    ended = invoke("search", *command)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.count("Estimated minutes: at most") == 1
    assert ended.out.count("the target is 15.00%") >= 4  # a step may find no candidate so small
    study = stored(work)
    answers = StudyResults.read(study).answers
    sizes = [row.n_params for row in trial_rows(study) if row.verdict is Verdict.TRAINED]
    assert len(sizes) >= 4
    assert min(sizes) < 500  # the first steps meet the target
    assert answers["smallest"].n_params <= answers["most_accurate"].n_params
    assert answers["smallest"].validation_accuracy >= 0.15
    assert answers["smallest"].margin == pytest.approx(answers["smallest"].validation_accuracy - 0.15)
    again = invoke("search", *command)  # nothing is trained twice
    assert (again.code, again.err) == (0, "")
    assert len(trial_rows(stored(work))) == len(trial_rows(study))
    assert StudyResults.read(stored(work)).answers == answers
    for other in (["--target", 16], ["--objective", "accuracy"]):  # the last of two counts
        ended = invoke("search", *command, *other)
        assert ended.code == 2
        assert "was made with target 15.0, not " in ended.err


def test_the_first_steps_of_a_narrowing_search_have_few_candidates(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[int | None, int | None]] = []

    def draw(pipeline: SearchPipeline, _: Any) -> str:
        steps.append((pipeline.setup.step_params, pipeline.setup.step_trials))
        return ""

    monkeypatch.setattr(SearchPipeline, "_train_candidates", draw)
    monkeypatch.setattr(Finals, "meets_target", lambda *asked: asked[2] if asked[2] >= 2_300 else None)
    config = SearchConfig.make(objective="params", target=99.4, trials=48, max_params=20_000)
    nothing: Any = None
    setup = SearchSetup(config, Source("mnist-5k", None, "cpu"), nothing, nothing, 1, None)
    assert SearchPipeline(setup, nothing)._narrow(nothing) == ""
    budgets, totals = zip(*steps, strict=True)
    assert budgets == (19_999, 9_999, 4_999, 2_499, 1_249, 1_767)
    assert totals == (3, 6, 12, 24, 36, 48)
    assert list(work.iterdir()) == []


@pytest.mark.parametrize("workers", [1, 2, 9])
def test_a_step_of_a_narrowing_search_tries_as_many_as_there_are_workers(
    finished: tuple[Path, Ended], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    tried: list[list[int]] = []

    def score(_: Finals, __: Any, scores: FinalScores, finalists: list[Finalist], seeds: list[int]) -> None:
        tried.append([one.params for one in finalists])
        for one in finalists:
            scores.scores[one.key] = {seeds[0]: (0.5, 1.0)}

    monkeypatch.setattr(Finals, "_train", score)
    config = SearchConfig.make(objective="params", target=50, max_params=15_000)
    nothing: Any = None
    setup = SearchSetup(config, Source("mnist-5k", None, "cpu"), nothing, load_recipe("tiny"), workers, None)
    finals, study = Finals(setup, nothing, Console(quiet=True)), stored(finished[0])
    sizes = [row.n_params for row in best_rows(trial_rows(study), 9)]
    assert finals.meets_target(study, 15_000) == min(sizes[:workers][:4])
    assert finals.meets_target(study, min(sizes) - 1) is None
    assert tried == [sizes[:workers][:4], []]


@pytest.mark.usefixtures("one_process")
def test_finalists_that_all_fail_end_the_search_with_a_report(
    work: Path, invoke: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    furnish(work)

    def failed(job: Any, _: int, handlers: dict[str, Any]) -> None:
        for training in job.trainings:
            handlers["score"](training.key, training.seed, 0.0, None)

    monkeypatch.setattr("nas_mnist.search.finals.run_here", failed)
    ended = invoke("search", *SEARCH, "--trials", 2, "--workers", 1)
    assert ended.code == 1
    assert "also as a finalist" in ended.err
    assert (work / "reports" / "nas_mnist" / "report.html").exists()
    assert "answers" not in stored(work).user_attrs or not stored(work).user_attrs["answers"]


@pytest.mark.usefixtures("copied", "no_figures")
def test_a_search_without_its_total_ends_with_1_and_all_the_same_with_answers(
    invoke: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> None:
        raise NoResultError("the space is exhausted")

    monkeypatch.setattr("nas_mnist.search.pipeline.run_workers", exhausted)
    ended = invoke("search", *SEARCH, "--trials", TRIALS + 1)
    said = f"error: the study has {TRIALS} of {TRIALS + 1} candidates: the space is exhausted\n"
    assert (ended.code, ended.err) == (1, said)
    assert "Ended early: the space is exhausted" in ended.out
    assert "Best (lowest loss): trial-" in ended.out
    monkeypatch.setattr("nas_mnist.search.pipeline.run_workers", lambda *_: None)  # its time is over
    ended = invoke("search", *SEARCH, "--trials", TRIALS + 1)
    assert (ended.code, ended.err) == (1, said.replace("the space is exhausted", "--timeout is over"))
