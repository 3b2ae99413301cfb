"""The benchmark on few images: its results are complete and consistent. No test compares speeds."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Runner

import nas_mnist.bench.__main__ as bench
from nas_mnist.bench import networks, speed
from nas_mnist.bench.trainings import COLUMNS, TABLE, rank_correlations
from nas_mnist.data.dataset import DataSet, load
from nas_mnist.models.architecture import Architecture
from nas_mnist.models.network import build
from nas_mnist.recipes.recipe import load_recipe
from nas_mnist.training.loop import train

SMALL = Architecture.make(
    {"blocks": [{"kind": "conv", "channels": 8, "stride": 2}, {"kind": "separable", "channels": 12}]}
)
SMALL_PARAMS = 8 * 9 + 16 + 8 * 9 + 8 * 12 + 24 + 10 * 12 + 10


def test_training_is_measured_by_every_loop(tiny_data: DataSet) -> None:
    found = speed.measure_training(SMALL, *tiny_data.split(), repeats=2)
    assert found["params"] == SMALL_PARAMS
    for field in ("images_per_second", "to_plain", "accuracy_after_one_turn"):
        assert found[field].keys() == {"plain", "in memory", "ours"}
    assert found["to_plain"]["plain"] == 1
    for one in found["images_per_second"].values():
        assert 0 < one["min"] <= one["median"] <= one["max"]
        assert sorted(one["by_turn"]) == [one["min"], one["max"]]


def test_contenders_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []

    def turn(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    speeds = speed.interleave({"a": lambda: turn("a"), "b": lambda: turn("b")}, repeats=3)
    assert calls == ["a", "b"] * 4
    assert speeds == {"a": [3.0, 5.0, 7.0], "b": [4.0, 6.0, 8.0]}


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds() -> None:
    assert speed.median_ratio([10, 40, 90], [10, 20, 30]) == 2


def test_the_tutorial_loop_and_ours_reach_similar_accuracies(five_thousand: DataSet) -> None:
    blocks = [{"kind": "conv", "channels": channels, "stride": 2} for channels in (8, 16, 32)]
    deep = Architecture.make({"blocks": blocks})
    found = speed.measure_training(deep, *five_thousand.split(), repeats=1)
    accuracy = found["accuracy_after_one_turn"]
    assert accuracy["plain"] > 0.3
    assert abs(accuracy["ours"] - accuracy["plain"]) < 0.15


def test_seconds_to_a_target_are_added_up_until_the_last_target() -> None:
    def epochs() -> Iterator[tuple[float, float]]:
        yield from [(1.5, 0.98), (1.0, 0.99), (1.0, 0.993), (1.0, 0.995)]
        raise AssertionError("trains on after the last target")

    assert speed.seconds_to_targets(epochs(), (0.99, 0.994)) == {0.99: 2.5, 0.994: 4.5}
    assert speed.seconds_to_targets(iter([(1.0, 0.992)]), (0.99, 0.994)) == {0.99: 1.0}


def test_time_to_accuracy_counts_the_seeds_that_reach_it(
    tiny_data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "TUTORIAL_EPOCHS", 2)
    monkeypatch.setattr(speed, "load_recipe", lambda name: load_recipe(f"{name}:epochs=2"))
    monkeypatch.setattr(speed, "TARGETS", (0.0, 0.994))
    found = speed.measure_time_to_accuracy(SMALL, tiny_data, torch.device("cpu"), seeds=2)
    assert found.pop("seeds") == 2
    for name in ("plain", "ours"):
        assert found.pop(f"{name}_seeds_that_reach_0.0%") == 2
        assert found.pop(f"{name}_mean_seconds_to_0.0%") is not None
        assert found.pop(f"{name}_seeds_that_reach_99.4%") == 0
        assert found.pop(f"{name}_mean_seconds_to_99.4%") is None
    assert found == {}


def test_seeds_are_measured_one_after_the_other_and_at_once(tiny_data: DataSet) -> None:
    found = speed.measure_seeds(SMALL, tiny_data.train, repeats=1)
    ratio = "times faster 2 at once than one after the other"
    assert found.keys() == {"one after the other", "2 at once", ratio}
    assert min(found.values()) > 0


def test_the_whole_benchmark_is_written_as_json(
    work: Path, invoke: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "benchmark_networks", lambda: {"reference": SMALL})
    monkeypatch.setattr(speed, "load_average", lambda: 1.7)
    command = ["--dataset", "mnist-5k", "--images", 640, "--repeats", 1, "--device", "cpu"]
    ended = invoke("bench", *command, "--json", "found.json")
    assert (ended.code, ended.err) == (0, "")
    assert "load 1.7" in ended.out
    found = json.loads((work / "found.json").read_text())
    assert (found["images"], found["repeats"], found["load_before"]) == (640, 1, 1.7)
    assert {"processor", "torch"} < found["machine"].keys()
    assert found["training"]["reference"]["params"] == SMALL_PARAMS
    assert found["seeds"].keys() >= {"one after the other", "2 at once"}
    assert "time" not in found


def test_images_that_the_measured_networks_do_not_take_are_refused(work: Path, invoke: Runner) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (60, 28, 28, 3), np.uint8)
    np.savez(work / "own.npz", images=colour, labels=np.arange(60) % 10)
    ended = invoke("bench", "--dataset", "npz:own.npz", "--json", "found.json")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "input_shape 1 x 28 x 28 does not fit" in ended.err
    assert not (work / "found.json").exists()


def test_timed_commands_leave_nothing_and_may_not_fail(work: Path) -> None:
    assert speed.measure_commands({"describe": ["describe", "reference"]})["describe"] > 0
    assert list(work.iterdir()) == []
    with pytest.raises(subprocess.CalledProcessError):
        speed.measure_commands({"wrong": ["search", "--trials", "none"]})


def test_the_whole_commands_lack_nothing_but_a_gpu(invoke: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for command, *options in speed.WHOLE.values():
        ended = invoke(command, *options, "--dataset", "mnist-5k")
        assert "device: 'cuda' is not on this machine" in ended.err


@pytest.mark.parametrize("name", bench.SUBCOMMANDS)
def test_the_help_of_a_sub_command_names_it(name: str, invoke: Runner) -> None:
    ended = invoke(f"bench {name}", "--help")
    assert ended.code == 0
    assert f"nas_mnist.bench {name} " in ended.out


def test_the_committed_table_counts_as_trained() -> None:
    rows = TABLE.read(Path(__file__).parents[1] / "reports" / "trainings" / "mnist.csv")
    assert len(rows) > 50
    assert load_recipe("tiny").digest in {row["digest"] for row in rows if row["recipe"] == "tiny"}


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("one_process")
def test_trainings_are_compared_and_the_table_grows(
    work: Path, invoke: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "net.json").write_text('{"blocks": [{"kind": "conv", "channels": 2}, {"kind": "pool"}]}')
    common = ["net.json", "--dataset", "mnist-5k", "--table", "t/r.csv", "--workers", 1]
    common += ["--recipe", "published:epochs=1"]
    ended = invoke("bench train", *common, "--seeds", 1)
    assert (ended.code, ended.err) == (0, "")
    first = (work / "t" / "r.csv").read_text()
    heading, _ = first.splitlines()
    assert heading.split(",") == COLUMNS
    (row,) = TABLE.read(work / "t" / "r.csv")
    assert (row["network"], row["recipe"], row["seed"]) == ("net.json", "published:epochs=1", 0)
    assert (row["n_params"], row["images"]) == (18 + 4 + 30, 3473)
    assert 0 < row["train_loss"] < 10

    train_data, val_data = load("mnist-5k").split()
    model = build(Architecture.from_json((work / "net.json").read_text()), 0)
    (result,) = train(model, train_data, load_recipe("published:epochs=1"), seed=0, score_on=val_data)
    assert result.score is not None
    assert row["validation_accuracy"] == pytest.approx(result.score.accuracy)
    assert row["validation_loss"] == pytest.approx(result.score.loss)

    grown = [*common, "--recipe", "published:epochs=1,learning_rate=0.05", "--images", 500, "--seeds", 2]
    more = invoke("bench train", *grown)
    assert (more.code, more.err) == (0, "")
    rows = (work / "t" / "r.csv").read_text()
    assert rows.startswith(first)
    assert len(rows.splitlines()) == 6
    assert "Nothing to train" in invoke("bench train", *grown).out
    assert (work / "t" / "r.csv").read_text() == rows
    with monkeypatch.context() as patched:
        patched.setattr("nas_mnist.bench.trainings.run_workers", interrupted)
        stopped = invoke("bench train", *common, "--max-params", 500, "--seeds", 2)
    assert (stopped.code, stopped.err) == (130, "")
    assert "Kept in t/r.csv: 0 of 2 trainings" in stopped.out
    wide = invoke("bench train", *common, "--max-params", 500, "--seeds", 1)
    assert wide.code == 0
    assert 400 < TABLE.read(work / "t" / "r.csv")[-1]["n_params"] <= 500


def test_short_trainings_are_ranked_against_those_on_the_most_images() -> None:
    rows = [
        dict.fromkeys(COLUMNS, 0)
        | {"key": str(key), "digest": "", "images": images, "seed": seed}
        | {"validation_loss": loss, "validation_accuracy": 1 - abs(loss)}
        for key in range(6)
        for seed in (0, 1)
        for images, loss in ((100, 0.5 + key + seed), (500, -key if key else 0.5), (900, 0.1 + key / 10))
    ]
    found = {
        (images, score): (count, loss)
        for images, score, count, loss, _ in rank_correlations(pd.DataFrame(rows, columns=COLUMNS))
    }
    assert found[100, "loss"] == (6, pytest.approx(1.0))
    assert found[500, "loss"] == (6, pytest.approx(-1.0))
    assert {images for images, _ in found} == {100, 500}
    assert rank_correlations(pd.DataFrame(rows[:4], columns=COLUMNS)) == []


@pytest.mark.usefixtures("one_process")
def test_a_training_that_fails_is_reported_without_a_row(work: Path, invoke: Runner) -> None:
    (work / "net.json").write_text('{"blocks": [{"kind": "conv", "channels": 2, "norm": "none"}]}')
    recipe = "published:epochs=1,learning_rate=100"
    options = ["--recipe", recipe, "--seeds", 1, "--dataset", "mnist-5k", "--workers", 1]
    ended = invoke("bench train", "net.json", *options)
    assert ended.code == 0
    assert "seed 0: failed" in ended.out
    assert not (work / "reports").exists()
