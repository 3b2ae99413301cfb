"""What the benchmark measures, on few images: that it measures, never how fast this machine is."""

import torch

from nas_mnist import measure
from nas_mnist.architecture import Architecture
from nas_mnist.contenders import Contender
from nas_mnist.data import DataSet

SMALL = Architecture.make(
    {"blocks": [{"kind": "conv", "channels": 8, "stride": 2}, {"kind": "separable", "channels": 12}]}
)


def test_training_is_measured_for_every_contender(tiny_data: DataSet) -> None:
    learn, check = tiny_data.split()
    found = measure.measure_training(SMALL, learn, check, repeats=2)
    assert found["params"] == SMALL_PARAMS
    assert set(found["images_per_second"]) == {"plain", "in memory", "ours", "convolutions"}
    for speed in found["images_per_second"].values():
        assert 0 < speed["min"] <= speed["median"] <= speed["max"]
    assert set(found["accuracy_after_one_turn"]) == {"plain", "in memory", "ours"}
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


def test_workers_are_measured_alone_and_together(tiny_data: DataSet, monkeypatch) -> None:
    monkeypatch.setattr(measure, "auto_workers", lambda _: 2)
    found = measure.measure_workers(SMALL, tiny_data.train, repeats=1)
    assert set(found) == {"images_per_second_of_1", "images_per_second_of_2"}
    assert min(found.values()) > 0


def test_time_to_an_accuracy_says_how_many_seeds_reach_it(tiny_data: DataSet) -> None:
    found = measure.measure_time_to(SMALL, tiny_data, torch.device("cpu"), seeds=1)
    assert found == {
        "seeds": 1,
        "seeds_that_reach_99.0%": 0,
        "mean_seconds_to_99.0%": None,
        "seeds_that_reach_99.4%": 0,
        "mean_seconds_to_99.4%": None,
    }


def test_every_trick_is_measured_and_put_back(tiny_data: DataSet) -> None:
    from nas_mnist import fused, scoring, stages, step

    before = (scoring.FusedNetwork, step.Warp, stages.LONGEST, fused.own_threads)
    found = measure.measure_tricks(SMALL, tiny_data.train, repeats=1)
    assert set(found) == {
        "compiled kernels",
        "augmentation in one loop",
        "two convolutions a stage",
        "torch's threads for programs",
    }
    assert min(found.values()) > 0
    assert before == (scoring.FusedNetwork, step.Warp, stages.LONGEST, fused.own_threads)


def test_seeds_are_measured_one_after_the_other_and_at_once(tiny_data: DataSet) -> None:
    found = measure.measure_together(SMALL, tiny_data.train, repeats=1)
    assert set(found) == {
        "one after the other",
        "2 seeds at once",
        "times faster at once than one after the other",
    }
    assert min(found.values()) > 0
