"""`reproduce` from end to end, on 5,000 images and a tiny network."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import COMMON, TINY_RECIPE, Runner, best_folder, stored
from rich.console import Console
from safetensors.torch import load_file

from nas_mnist import Architecture
from nas_mnist.models.published import PUBLISHED_LOG
from nas_mnist.report.tables import published_table
from nas_mnist.training.jobs import RetrainJob
from nas_mnist.training.loop import TrainingError
from nas_mnist.training.requirements import summarise

pytestmark = pytest.mark.usefixtures("no_figures")


def test_reproduce_best_trains_the_candidate_that_the_trial_stored(copied: Path, invoke: Runner) -> None:
    (copied / "space.toml").unlink()  # an edited or lost space breaks nothing
    study = stored(copied)
    retrained = study.user_attrs["retrained"][study.user_attrs["answers"]["most_accurate"]["key"]]
    winner = copied / retrained["folder"]
    result = json.loads((winner / "result.json").read_text())
    study.set_user_attr("identity", study.user_attrs["identity"] | {"max_params": 7_777})  # it has a budget
    ended = invoke("reproduce", "best", "--device", "cpu", "--json", "copy.json")  # the study knows its data
    assert (ended.code, ended.err) == (0, "")
    assert "parameters <= 7,777, the budget" in ended.out
    ours = json.loads((copied / "reports" / "nas_mnist-best" / "result.json").read_text())
    assert all(ours[name] == result[name] for name in ("key", "data", "recipe"))
    assert ours["command"] == "python -m nas_mnist.reproduce best --device cpu"
    assert "parameters <= 7,777, the budget" in [one["what"] for one in ours["requirements"]]
    assert ours["runs"][0]["test_correct"] == pytest.approx(result["runs"][0]["test_correct"], abs=5)


STRIDED = {"kind": "conv", "channels": 4, "stride": 2}


@pytest.fixture
def mine(work: Path) -> Path:
    (work / "recipe.toml").write_text(TINY_RECIPE)
    (work / "mine.json").write_text(Architecture.make({"blocks": [STRIDED, STRIDED]}).to_json())
    return work


ASKED = ["mine.json", *COMMON, "--recipe", "recipe.toml"]
ONE = [*ASKED, "--epochs", 1, "--workers", 1]


def test_reproduce_a_file_over_seeds_gives_mean_deviation_and_interval(mine: Path, invoke: Runner) -> None:
    asked = [*ASKED, "--epochs", 2, "--workers", 1, "--seeds", 2, "--seed", 5, "--json", "out.json"]
    ended = invoke("reproduce", *asked)
    assert (ended.code, ended.err) == (0, "")
    found = json.loads((mine / "out.json").read_text())
    assert found == json.loads((mine / "reports" / "mine" / "result.json").read_text())
    assert {path.name for path in (mine / "reports" / "mine").iterdir()} == {
        "result.json", "epochs.csv", "weights-seed-5.safetensors", "weights-seed-6.safetensors",
        "report.html", "plots",
    }  # fmt: skip
    shares = [run["test_accuracy"] for run in found["runs"]]
    assert [run["seed"] for run in found["runs"]] == [5, 6]
    assert len(set(shares)) == 2
    summary, expected = found["test_accuracy"], summarise(shares)
    assert (summary["runs"], summary["mean"], summary["std"]) == (2, expected.mean, expected.std)
    assert tuple(summary["interval"]) == expected.interval
    for run in found["runs"]:
        best = max(run["epochs"], key=lambda epoch: epoch["test_accuracy"])
        assert run["best_epoch_chosen_on_test"]["test_accuracy"] == best["test_accuracy"]
        assert run["test_accuracy"] == run["epochs"][-1]["test_accuracy"]
    assert f"{summary['mean']:.3%} mean of 2 seeds" in ended.out
    assert "chosen on test, no result" in " ".join(ended.out.split())
    assert ended.out.count("epoch  1/2") == 2
    assert ended.out.count("NOT FULL MNIST") >= 2


def test_a_training_that_fails_ends_in_one_line(mine: Path, invoke: Runner) -> None:
    wild = 'batch_size = 64\nlearning_rate = 100\nmomentum = 0.99\nschedule = "constant"\n'
    (mine / "wild.toml").write_text(wild)
    linear = STRIDED | {"norm": "none", "activation": "none"}
    deep = [linear, linear, *[linear | {"stride": 1}] * 4]
    (mine / "deep.json").write_text(Architecture.make({"blocks": deep}).to_json())
    asked = ["deep.json", *COMMON, "--recipe", "wild.toml", "--seeds", 2, "--workers", 2]
    ended = invoke("reproduce", *asked)
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "loss not finite in epoch" in ended.err
    assert not (mine / "reports").exists()


@pytest.mark.slow
def test_seeds_side_by_side_give_what_they_give_alone(mine: Path, invoke: Runner) -> None:
    asked = ["reproduce", *ASKED, "--epochs", 1, "--seeds", 2]
    found = []
    for workers in (1, 2):
        assert invoke(*asked, "--workers", workers, "--json", f"{workers}.json").code == 0
        found.append(json.loads((mine / f"{workers}.json").read_text()))
        (mine / "reports" / "mine").rename(mine / f"by-{workers}")
    alone, together = ([run["test_correct"] for run in one["runs"]] for one in found)
    assert alone == pytest.approx(together, abs=5)  # the number of threads changes the order of sums
    alone, together, other = (
        load_file(mine / folder / f"weights-seed-{seed}.safetensors")["layers.0.weight"]
        for folder, seed in (("by-1", 1), ("by-2", 1), ("by-1", 0))
    )
    assert (alone - together).abs().max() < 0.05 < (alone - other).abs().max()


def test_the_same_command_again_trains_nothing_and_overwrites_nothing(mine: Path, invoke: Runner) -> None:
    reports = mine / "reports"
    assert invoke("reproduce", *ONE).code == 0
    first = (reports / "mine" / "result.json").read_bytes()
    again = invoke("reproduce", *ONE)
    assert (again.code, again.err) == (0, "")
    assert "Nothing to train: see reports/mine" in again.out
    other = invoke("reproduce", *ONE, "--epochs", 2)
    assert (other.code, other.err) == (0, "")
    assert "reports/mine holds another training" in other.out
    assert {path.name for path in reports.iterdir()} == {"mine", "mine-2"}
    assert (reports / "mine" / "result.json").read_bytes() == first
    (reports / "mine" / "weights-seed-0.safetensors").unlink()  # published results come without weights
    assert invoke("reproduce", *ONE).code == 0
    assert {path.name for path in reports.iterdir()} == {"mine", "mine-2", "mine-3"}
    runs = [json.loads((reports / name / "result.json").read_text())["runs"] for name in ("mine", "mine-3")]
    assert runs[0][0]["test_correct"] == runs[1][0]["test_correct"]


def test_more_seeds_continue_the_folder_of_a_shorter_run(mine: Path, invoke: Runner) -> None:
    assert invoke("reproduce", *ONE, "--seed", 2).code == 0
    folder = mine / "reports" / "mine"
    one = json.loads((folder / "result.json").read_text()) | {"device": "another machine"}
    (folder / "result.json").write_text(json.dumps(one))
    ended = invoke("reproduce", *ONE, "--seed", 2, "--seeds", 2, "--json", "copy.json")
    assert (ended.code, ended.err) == (0, "")
    assert "reports/mine has 1 of 2 seeds" in ended.out
    assert "mean of 2 seeds" in ended.out
    two = json.loads((folder / "result.json").read_text())
    assert two == json.loads((mine / "copy.json").read_text())
    assert [run["seed"] for run in two["runs"]] == [2, 3]
    assert two["runs"][0] == one["runs"][0]
    assert two["runs"][1]["by"]["device"].startswith("cpu")
    changed = dict.fromkeys(("test_accuracy", "requirements", "runs", "command"))
    assert two | changed == one | changed
    lines = (folder / "epochs.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["seed", "2", "3"]
    assert {path.name for path in folder.glob("*.safetensors")} == {
        f"weights-seed-{seed}.safetensors" for seed in (2, 3)
    }
    assert "mean of 2 seeds" in (folder / "report.html").read_text()
    by_folder = invoke("reproduce", "reports/mine", *COMMON, "--seed", 2, "--seeds", 3)
    assert (by_folder.code, by_folder.err) == (0, "")
    assert [run["seed"] for run in json.loads((folder / "result.json").read_text())["runs"]] == [2, 3, 4]
    assert {path.name for path in (mine / "reports").iterdir()} == {"mine"}


def test_results_of_a_search_or_of_other_data_are_not_continued(copied: Path, invoke: Runner) -> None:
    folder = best_folder(copied)
    before = (folder / "result.json").read_bytes()
    assert invoke("reproduce", folder, "--device", "cpu", "--seeds", 2, "--workers", 1).code == 0
    assert (folder / "result.json").read_bytes() == before
    assert (copied / "reports" / folder.name / "result.json").exists()


def test_seeds_that_are_done_are_kept_when_another_fails(
    mine: Path, invoke: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [*ONE, "--seeds", 3]
    retrain = RetrainJob.retrain

    def failing(job: RetrainJob, seeds: Sequence[int], *rest: Any) -> Any:
        if seeds[0] == 2:
            raise TrainingError("no memory")
        return retrain(job, seeds, *rest)

    monkeypatch.setattr(RetrainJob, "retrain", failing)
    ended = invoke("reproduce", *asked)
    assert (ended.code, ended.err) == (1, "error: no memory\n")
    line = f"python -m nas_mnist.reproduce {' '.join(map(str, asked))}"
    assert f"Kept in reports/mine: 2 of 3 seeds. Continue with:\n{line}\n" in ended.out
    kept = json.loads((mine / "reports" / "mine" / "result.json").read_text())
    assert [run["seed"] for run in kept["runs"]] == [0, 1]
    assert kept["test_accuracy"]["runs"] == 2
    monkeypatch.setattr(RetrainJob, "retrain", retrain)
    ended = invoke("reproduce", *line.split()[3:])
    assert (ended.code, ended.err) == (0, "")
    complete = json.loads((mine / "reports" / "mine" / "result.json").read_text())
    assert [run["seed"] for run in complete["runs"]] == [0, 1, 2]
    assert (mine / "reports" / "mine" / "report.html").exists()


def test_an_interrupted_page_is_made_by_the_same_command(
    mine: Path, invoke: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    page = mine / "reports" / "mine" / "report.html"
    with monkeypatch.context() as patch:
        patch.setattr("nas_mnist.reproduce._report", interrupted)
        patch.setattr("os._exit", sys.exit)
        ended = invoke("reproduce", *ONE)
    assert ended.code == 130
    assert "Kept in reports/mine: 1 of 1 seeds. Continue with:\n" in ended.out
    assert not page.exists()
    assert invoke("reproduce", *ONE).code == 0
    assert page.exists()


def test_offline_is_said_and_no_published_log_is_laid_beside_other_data(work: Path, invoke: Runner) -> None:
    """By the data set's usual name, with no way to download it."""
    ended = invoke("reproduce", "reference", "--epochs", 1, "--device", "cpu")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.count("NOT FULL MNIST") >= 2
    assert "Total params: 19,122" in ended.out
    assert "0.0613" not in ended.out
    result = json.loads((work / "reports" / "reference" / "result.json").read_text())
    assert result["recipe"]["batch_size"] == 256  # the default one's
    assert result["data"]["note"].startswith("NOT FULL MNIST")


def test_reference_is_laid_beside_the_published_log() -> None:
    epochs = [
        {"epoch": epoch, "test_loss": 0.05, "test_accuracy": share}
        for epoch, share in ((1, 0.9701), (2, 0.9702))
    ]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(published_table({"seed": 3, "epochs": epochs}, "default"))
    text = console.export_text()
    assert "--recipe published" in text
    rows = [line for line in text.splitlines() if "%" in line]
    assert [row.replace("│", " ").split() for row in rows] == [
        ["1", "0.0500", "97.01%", "0.0613", "97.75%"],
        ["2", "0.0500", "97.02%", "0.0426", "98.52%"],
    ]


def test_published_log_is_the_published_one() -> None:
    losses, correct = zip(*PUBLISHED_LOG, strict=True)
    assert (len(correct), correct[-1], max(correct), sum(correct)) == (20, 9_952, 9_955, 198_466)
    assert round(sum(losses), 4) == 0.4768
