"""What the benchmark measures, on few images: that it measures, never how fast this machine is."""

import json
import pkgutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import Runner, run_module
from optuna.trial import Trial

import nas_mnist.bench.__main__ as bench
from nas_mnist.bench import contenders, measure, overheads, parts
from nas_mnist.bench.contenders import Contender
from nas_mnist.data.dataset import DataSet, Images, load
from nas_mnist.engine import vectors
from nas_mnist.models.architecture import Architecture
from nas_mnist.models.network import build
from nas_mnist.models.zoo import Entry
from nas_mnist.models.zoo import load as load_from_zoo
from nas_mnist.recipes.recipe import Recipe, load_recipe
from nas_mnist.study.objective import Objective, Verdict
from nas_mnist.training.loop import EpochResult, train

SMALL = Architecture.make(
    {"blocks": [{"kind": "conv", "channels": 8, "stride": 2}, {"kind": "separable", "channels": 12}]}
)


@pytest.mark.parametrize("half", [False, True])
def test_training_is_measured_for_every_contender(
    half: bool, tiny_data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "bfloat16_unit", lambda: "AMX" if half else None)
    learn, check = tiny_data.split()
    found = measure.measure_training(SMALL, learn, check, repeats=2)
    assert found["params"] == SMALL_PARAMS
    trained = {"plain", "in memory", "ours"} | ({"in memory, bfloat16"} if half else set())
    bounds = {"convolutions"} | ({"convolutions, either type"} if half else set())
    assert set(found["images_per_second"]) == trained | bounds == set(found["to_plain"])
    assert found["to_plain"]["plain"] == 1
    for speed in found["images_per_second"].values():
        assert 0 < speed["min"] <= speed["median"] <= speed["max"]
        assert sorted(speed["by_turn"]) == [speed["min"], speed["max"]]
    assert set(found["accuracy_after_one_turn"]) == trained
    assert all(0 <= accuracy <= 1 for accuracy in found["accuracy_after_one_turn"].values())
    assert found["convolution_share_of_our_step"] > 0


SMALL_PARAMS = 8 * 9 + 16 + 8 * 9 + 8 * 12 + 24 + 10 * 12 + 10


def test_contenders_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []

    def contender(name: str) -> Contender:
        return lambda: float(len(calls)) if calls.append(name) is None else 0.0

    speeds = measure.turns({"a": contender("a"), "b": contender("b")}, repeats=3)
    assert calls == ["a", "b"] * 4
    assert speeds == {"a": [3.0, 5.0, 7.0], "b": [4.0, 6.0, 8.0]}


def test_plain_loop_and_engine_learn_the_same(five_thousand: DataSet) -> None:
    learn, check = five_thousand.split()
    blocks = [{"kind": "conv", "channels": channels, "stride": 2} for channels in (8, 16, 32)]
    deep = Architecture.make({"blocks": blocks})
    accuracy = measure.measure_training(deep, learn, check, repeats=1)["accuracy_after_one_turn"]
    assert accuracy["plain"] > 0.3
    assert abs(accuracy["ours"] - accuracy["plain"]) < 0.15


@pytest.mark.usefixtures("one_process")
def test_workers_are_measured_alone_and_together(tiny_data: DataSet, monkeypatch) -> None:
    monkeypatch.setattr(measure, "auto_workers", lambda _: 2)
    found = measure.measure_workers(SMALL, tiny_data.train, repeats=1)
    assert set(found) == {
        *("images_per_second_of_1", "images_per_second_of_2"),
        *("times_faster_with_2", "slowest_turn_with_2", "fastest_turn_with_2"),
    }
    ratios = [found[f"{which}_with_2"] for which in ("slowest_turn", "times_faster", "fastest_turn")]
    assert ratios == sorted(ratios)
    assert min(found.values()) > 0


def test_time_to_an_accuracy_says_how_many_seeds_reach_it(tiny_data: DataSet) -> None:
    found = measure.measure_time_to(SMALL, tiny_data, torch.device("cpu"), seeds=1)
    assert found == {
        "seeds": 1,
        "plain_seeds_that_reach_99.0%": 0,
        "plain_mean_seconds_to_99.0%": None,
        "plain_seeds_that_reach_99.4%": 0,
        "plain_mean_seconds_to_99.4%": None,
        "ours_seeds_that_reach_99.0%": 0,
        "ours_mean_seconds_to_99.0%": None,
        "ours_seeds_that_reach_99.4%": 0,
        "ours_mean_seconds_to_99.4%": None,
    }


def test_time_to_an_accuracy_ends_where_it_is_reached(
    tiny_data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def epochs(_: object, __: object, ___: object, seed: int) -> Iterator[tuple[float, float]]:
        yield from [(1.0 + seed, 0.98), (1.0, 0.99), (1.0, 0.993)]
        if seed:
            yield 1.0, 0.994
            raise AssertionError("goes on")

    monkeypatch.setattr(measure, "_plain_epochs", epochs)
    monkeypatch.setattr(measure, "_our_epochs", epochs)
    found = measure.measure_time_to(SMALL, tiny_data, torch.device("cpu"), seeds=2)
    assert found == {
        "seeds": 2,
        **{
            f"{who}_{what}": value
            for who in ("plain", "ours")
            for what, value in {
                "seeds_that_reach_99.0%": 2,
                "mean_seconds_to_99.0%": 2.5,
                "seeds_that_reach_99.4%": 1,
                "mean_seconds_to_99.4%": 5.0,
            }.items()
        },
    }


def test_what_takes_a_steps_time_is_told_for_every_kernel(tiny_data: DataSet) -> None:
    blocks = [
        *({"kind": "conv", "channels": 4, "bias": True}, {"kind": "pool"}),
        *({"kind": "separable", "channels": 6, "middle": True}, {"kind": "residual", "body": [CONV_6]}),
    ]
    every = Architecture.make({"blocks": blocks})
    with mock.patch.object(parts, "ours", wraps=parts.ours) as trained:
        shares = parts.measure_parts(every, tiny_data.train, repeats=3)
    assert trained.call_count == 7
    assert shares.keys() == {*parts.PARTS, parts.REST}
    assert sum(shares.values()) == pytest.approx(1)
    assert all(shares[part] > 0 for part in parts.PARTS)
    known = {kernel for kernels in parts.PARTS.values() for kernel in kernels}
    modules = {kernel.partition(".")[0] for kernel in known}
    assert {kernel for kernel in vectors.KERNELS.values() if kernel.partition(".")[0] in modules} <= known


CONV_6 = {"kind": "conv", "channels": 6}


def test_every_trick_is_measured_and_put_back(tiny_data: DataSet) -> None:
    def replaced() -> list[Any]:
        return [pkgutil.resolve_name(name) for name, _ in measure.TRICKS.values()]

    before = replaced()
    found = measure.measure_tricks(SMALL, tiny_data.train, repeats=1)
    assert set(found) == {
        "compiled kernels",
        "augmentation in one loop",
        "two convolutions a stage",
        "torch's threads for programs",
        "head and loss without autograd",
        "optimiser in four operations",
    }
    assert min(found.values()) > 0
    assert before == replaced()


@pytest.mark.parametrize("trick", measure.TRICKS)
def test_without_a_trick_the_same_is_learned(trick: str, tiny_data: DataSet) -> None:
    recipe = load_recipe("default:epochs=2,batch_size=30")

    def losses() -> list[float]:
        return [epoch.train_loss for epoch in train(build(SMALL, 0), tiny_data.train, recipe, seed=0)]

    with_it, (name, instead) = losses(), measure.TRICKS[trick]
    if callable(instead):
        heard = mock.Mock(side_effect=instead)
        with mock.patch(name, heard):
            assert losses() == pytest.approx(with_it, rel=1e-3)
        assert heard.called
        return
    with mock.patch(name, instead):
        assert losses() == pytest.approx(with_it, rel=1e-3)


def test_seeds_are_measured_one_after_the_other_and_at_once(tiny_data: DataSet) -> None:
    found = measure.measure_together(SMALL, tiny_data.train, repeats=1)
    assert set(found) == {
        "one after the other",
        "2 at once",
        "times faster 2 at once than one after the other",
    }
    assert min(found.values()) > 0


@pytest.mark.usefixtures("one_process")
def test_the_whole_benchmark_is_kept_as_json(
    work: Path, invoke: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "NETWORKS", {})
    monkeypatch.setattr(bench, "FOUND", ["reference"])
    monkeypatch.setattr(bench, "load_from_zoo", lambda _: Entry("reference", "", SMALL, "seed"))
    trick = "augmentation in one loop"
    monkeypatch.setattr(measure, "TRICKS", {trick: measure.TRICKS[trick]})
    monkeypatch.setattr(overheads, "STARTING", {"describe reference": ["describe", "reference"]})
    monkeypatch.setattr(measure, "auto_workers", lambda _: 1)
    monkeypatch.setattr(overheads, "CANDIDATES", 20)
    monkeypatch.setattr(overheads, "STORED", (6, 12))
    monkeypatch.setattr(measure, "load_average", lambda: 1.7)
    command = ["--dataset", "mnist-5k", "--images", 640, "--repeats", 1, "--json", "found.json"]
    ended = invoke("bench", *command)
    assert (ended.code, ended.err) == (0, "")
    assert "load 1.7" in ended.out
    found = json.loads((work / "found.json").read_text())
    assert (found["images"], found["repeats"], found["load_before"]) == (640, 1, 1.7)
    assert {"processor", "torch"} < set(found["machine"])
    assert found["training"]["reference"]["params"] == SMALL_PARAMS
    assert found["times_faster_with"]["reference"].keys() == {trick}
    assert found["share_of_our_step"].keys() == found["training"].keys()
    assert found["workers"].keys() == {"images_per_second_of_1"}
    assert found["counting"]["counted_per_second"] > found["counting"]["drawn_and_counted_per_second"] > 0
    assert 1 <= found["counting"]["layers_on_average"] < 100
    assert found["building"]["milliseconds"] > 0
    assert list(found["storage"]) == ["milliseconds_at_6_trials", "milliseconds_at_12_trials"]
    assert all(0 < cost < 10_000 for cost in found["storage"].values())
    assert found["starting_seconds"].keys() == {"describe reference"}
    assert all(0.01 < seconds < 60 for seconds in found["starting_seconds"].values())
    assert "time" not in found


def test_whole_commands_are_timed_and_leave_nothing(work: Path) -> None:
    found = overheads.measure_commands({"describe": ["describe", "reference"]}, 1)
    assert 0.01 < found["describe"] < 60
    assert list(work.iterdir()) == []
    with pytest.raises(subprocess.CalledProcessError):
        overheads.measure_commands({"wrong": ["search", "--trials", "none"]}, 1)


def test_a_gpu_s_whole_commands_are_no_wrong_ones(invoke: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for command, *options in overheads.WHOLE.values():
        ended = invoke(command, *options, "--dataset", "mnist-5k")
        assert "device: 'cuda' is not on this machine" in ended.err


def test_trials_whose_storing_is_measured_are_drawn_and_end_as_in_a_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Verdict] = []
    monkeypatch.setattr(overheads, "STORED", (40,))
    ends = Objective._end

    def ending(self: Objective, trial: Trial, verdict: Verdict, reason: str = "") -> Exception:
        told.append(verdict)
        return ends(self, trial, verdict, reason)

    monkeypatch.setattr(Objective, "_end", ending)
    overheads.measure_storage()
    assert len(told) == 40
    assert told.count(Verdict.STOPPED) > 20
    assert told.count(Verdict.TRAINED) > 0


def test_the_help_of_a_second_word_says_how_it_is_called(work: Path) -> None:
    for word in bench.OTHERS:
        ended = run_module("bench", word, "--help", cwd=work)
        assert f"Usage: python -m nas_mnist.bench {word} " in ended.out


@pytest.mark.usefixtures("one_process")
def test_recipes_are_compared_and_the_table_grows(work: Path, invoke: Runner) -> None:
    (work / "net.json").write_text('{"blocks": [{"kind": "conv", "channels": 2}, {"kind": "pool"}]}')
    common = ["net.json", "seed:epochs=1", "--dataset", "mnist-5k", "--table", "t/r.csv", "--workers", 1]
    ended = invoke("bench recipes", *common, "--seeds", 1)
    assert (ended.code, ended.err) == (0, "")
    first = (work / "t" / "r.csv").read_text()
    heading, row = first.splitlines()
    assert heading == ("network,recipe,train_loss,validation_loss,validation_accuracy,key,digest,data,seed")
    name, recipe, train_loss, loss, accuracy, *_, seed = row.split(",")
    assert (name, recipe, seed) == ("net", "seed:epochs=1", "0")
    assert 0 < float(loss) < 10
    assert 0 < float(train_loss) < 10

    learn, choose = load("mnist-5k").split()
    network = Architecture.from_json((work / "net.json").read_text())
    (result,) = train(build(network, 0), learn, load_recipe("seed:epochs=1"), seed=0, score_on=choose)
    assert result.score is not None
    assert float(accuracy) == pytest.approx(result.score.accuracy)

    more = invoke("bench recipes", *common, "seed:epochs=1,learning_rate=0.05", "--seeds", 2)
    assert (more.code, more.err) == (0, "")
    rows = (work / "t" / "r.csv").read_text()
    assert rows.startswith(first)
    assert len(rows.splitlines()) == 5
    assert "seed:epochs=1,learning_rate=0.05" in more.out.replace("\n", "")
    again = invoke("bench recipes", *common, "--seeds", 2)
    assert "Nothing to train" in again.out
    assert (work / "t" / "r.csv").read_text() == rows


@pytest.mark.usefixtures("one_process")
def test_a_recipe_that_fails_is_said_and_no_row(work: Path, invoke: Runner) -> None:
    (work / "net.json").write_text('{"blocks": [{"kind": "conv", "channels": 2, "norm": "none"}]}')
    recipe = "seed:epochs=1,learning_rate=100"
    ended = invoke("bench recipes", "net.json", recipe, "--seeds", 1, "--dataset", "mnist-5k", "--workers", 1)
    assert f"{recipe}, seed 0: failed" in ended.out
    assert not (work / "reports" / "recipes").exists() or not list((work / "reports" / "recipes").iterdir())


def timed(*how: Any, **_: Any) -> Iterator[EpochResult]:
    """A training in whose epoch N every second has N images."""
    for epoch in range(1, how[2].epochs + 1):
        yield EpochResult(epoch, 0.1, 0.1, 1.0, epoch, None)


def test_on_cuda_the_epoch_that_records_a_step_is_not_timed(
    tiny_data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [contenders.epochs_on(torch.device(name)) for name in ("cpu", "cuda")] == [1, 2]
    monkeypatch.setattr(contenders, "epochs_on", lambda _: 3)
    monkeypatch.setattr(measure, "epochs_on", lambda _: 3)
    monkeypatch.setattr(contenders, "train", timed)
    monkeypatch.setattr(measure, "train", timed)
    architecture = load_from_zoo("reference").architecture
    assert contenders.ours({}, architecture, tiny_data.train) == 3
    assert measure.measure_together(architecture, tiny_data.train, 1)["one after the other"] == 3


class Cuda:
    """Images as if they were on a CUDA device."""

    def __init__(self, data: Images) -> None:
        self.data, self.images = data, mock.Mock(device=torch.device("cuda"))

    def to(self, _: torch.device) -> Images:
        return self.data


def test_on_cuda_seeds_are_measured_beside_torchs_modules_too(
    tiny_data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[int, bool]] = []  # seeds, and whether by torch's modules

    def together(models: Any, _: Any, recipe: Recipe, *, seeds: Sequence[int]) -> Iterator[Any]:
        trained.append((len(seeds), False))
        assert len(models) == len(seeds)
        assert recipe.epochs == 2
        yield from ([result] * len(seeds) for result in timed(0, 0, recipe))

    def alone(*how: Any, plain: bool, **_: int) -> Iterator[EpochResult]:
        trained.append((1, plain))
        yield from timed(*how)

    monkeypatch.setattr(measure, "train", alone)
    monkeypatch.setattr(measure, "train_together", together)
    monkeypatch.setattr(measure, "build", lambda *_: mock.MagicMock())
    found = measure.measure_together(SMALL, Cuda(tiny_data.train), repeats=1)  # type: ignore[arg-type]
    assert trained == [(1, False), (1, True), (10, False), (32, False)] * 2
    assert found["times faster 10 at once than one after the other, by torch's modules"] == 1
    assert len(found) == 8
