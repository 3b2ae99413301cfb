"""Recorded learning curves, and searches replayed on them."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import tomllib
from itertools import product
from pathlib import Path

import pytest
from conftest import Runner

from nas_mnist.bench.curves import Curve, candidates, read_curves
from nas_mnist.bench.replay import (
    NearestToTpe,
    RandomOrder,
    Replayed,
    compare,
    distributions_of,
    front_worth,
    median,
    never,
    ranks,
    replay,
    rules,
    worth,
)
from nas_mnist.models.cost import Budget, cost_of
from nas_mnist.space.sampling import Replay
from nas_mnist.space.space import SearchSpace
from nas_mnist.study.pruner import Accuracies

SPACE = """
[[stages]]
blocks = 1
channels = { min = 2, max = 6 }
kernel = [3, 5]
downsample = "stride"

[[stages]]
blocks = [0, 1]
channels = { min = 2, max = 6 }
downsample = "stride"
"""
RECORD = ["--curves", "c/t.csv", "--dataset", "mnist-5k", "--epochs", 2, "--images", 200, "--device", "cpu"]


def curve(number: int, *accuracies: float) -> Curve:
    losses = tuple(1 - accuracy for accuracy in accuracies)
    return Curve(number, {}, 100, 1_000, 1.0, accuracies, losses)


class InOrder:
    """Candidates as they come; remembers what it heard."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, int, bool]] = []

    def choose(self) -> int:
        return len(self.heard)

    def hear(self, candidate: int, accuracies: Accuracies, trained: bool) -> None:
        self.heard.append((candidate, len(accuracies), trained))


def test_a_replayed_search_counts_epochs_until_the_target() -> None:
    curves = [curve(0, 0.5, 0.8), curve(1, 0.6, 0.9), curve(2, 0.7, 0.95)]
    assert replay(curves, InOrder(), never, 0.9) == Replayed(4.0, True)
    assert replay(curves, InOrder(), never, 0.95) == Replayed(6.0, True)
    assert replay(curves, InOrder(), never, 0.99) == Replayed(6.0, False)


def test_a_replayed_search_stops_whom_a_search_would_stop() -> None:
    curves = [
        curve(0, 0.5, 0.7, 0.8, 0.8, 0.8),
        curve(1, 0.4, 0.8, 0.9, 0.9, 0.99),  # behind after the first: what it would have had is not seen
        curve(2, 0.7, 0.6, 0.9, 0.9, 0.99),  # behind after the second
        curve(3, 0.7, 0.9, 0.9, 0.9, 0.95),
    ]
    sampler = InOrder()
    halving = rules(5)["this program's halving"]  # after one and two epochs
    assert replay(curves, sampler, halving, 0.95) == Replayed(5 + 1 + 2 + 5, True)
    assert sampler.heard == [(0, 5, True), (1, 1, False), (2, 2, False), (3, 5, True)]


def test_the_median_rule_waits_for_five() -> None:
    others = [{1: accuracy} for accuracy in (0.1, 0.2, 0.3, 0.4)]
    assert not median({1: 0.05}, others)
    others.append({1: 0.5})
    assert median({1: 0.25}, others)
    assert not median({1: 0.3}, others)


def test_how_near_a_candidate_is_depends_on_no_order_of_names() -> None:
    """Names are hashed otherwise in every process; what is added in another order is rounded otherwise."""
    program = """
import random
from optuna.distributions import IntDistribution
from nas_mnist.bench.replay import NearestToTpe
from nas_mnist.models.cost import Budget
from nas_mnist.space.space import SearchSpace

ranges = {f"choice {number}": IntDistribution(0, 10 + number) for number in range(12)}
sampler = NearestToTpe([], random.Random(0), SearchSpace.load("tiny"), Budget(1), [ranges])
print(repr(sampler._distance(dict.fromkeys(ranges, 0), {name: 7 for name in ranges})))
"""
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            check=True, capture_output=True, text=True, env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2", "3", "4")
    }  # fmt: skip
    assert len(said) == 1


def test_what_early_stopping_costs_a_front() -> None:
    same = [curve(number, *[0.1 * number] * 20) for number in range(1, 5)]  # the later, the better
    costs = [40, 30, 20, 10]  # and the cheaper: the last one is the front
    found = front_worth(same, costs, repeats=50, seed=0)
    assert (found.members, found.kept) == (1, 1)
    assert 0.25 < found.epochs < 1  # nobody who is cheapest so far is stopped, the others after an epoch
    assert found.lost == pytest.approx(0)
    found = front_worth(same, costs[::-1], repeats=50, seed=0)  # all of them are the front
    assert found == (1, 4, 1, pytest.approx(0))  # nobody who is better and no dearer stops one


def test_a_front_lacks_what_is_stopped_early() -> None:
    late = [
        curve(0, *[0.5] * 20),
        curve(1, *[0.4] * 19, 0.9),
    ]  # the second one is stopped, if it comes second
    found = front_worth(late, [10, 10], repeats=200, seed=0)
    assert found.members == 1
    assert found.kept == pytest.approx(0.5, abs=0.15)
    assert found.lost == pytest.approx(0.4 * (1 - found.kept))


def test_what_a_search_is_worth_by_hand() -> None:
    always = worth([Replayed(10, True), Replayed(20, True)])
    assert (always.epochs, always.reached) == (15, 1)
    assert always.error == pytest.approx(5 / math.sqrt(2))
    half = worth([Replayed(10, True), Replayed(20, False)])  # 30 epochs for one success
    assert (half.epochs, half.reached) == (30, 0.5)
    assert worth([Replayed(10, False)]).epochs == math.inf


def test_early_signals_are_ranked_against_the_last_epoch() -> None:
    curves = [curve(at, at / 10, 0.5 - at / 20, 0.5 + at / 10) for at in range(5)]
    assert ranks(curves) == {
        "epoch 1": {"accuracy": 1.0, "loss": 1.0},
        "epoch 2": {"accuracy": -1.0, "loss": -1.0},
    }


def test_random_candidates_fit_and_are_the_same_every_time() -> None:
    space, budget = SearchSpace.from_toml(SPACE), Budget(400)
    first = list(candidates(space, budget, 0))
    assert [one.key for _, one in first] == [one.key for _, one in candidates(space, budget, 0)]
    every = [
        {"stage1.channels1": one, "stage1.kernel": kernel, "stage2.blocks": blocks, "stage2.channels1": two}
        for one, kernel, blocks, two in product(range(2, 7), (3, 5), (0, 1), range(2, 7))
    ]
    drawn = [space.draw(Replay(draws), budget) for draws in every]
    assert {one.key for _, one in first} == {one.key for one in drawn if budget.fits(cost_of(one))}
    assert [one.key for _, one in candidates(space, budget, 1)] != [one.key for _, one in first]


def test_samplers_choose_every_candidate_once_and_tpe_learns() -> None:
    space, budget = SearchSpace.from_toml(SPACE), Budget(10_000)
    made = list(candidates(space, budget, 0))
    wide = [draws["stage1.channels1"] for draws, _ in made]
    curves = [
        Curve(at, draws, 100, 1_000, 1.0, (wide[at] / 10,), (1.0,)) for at, (draws, _) in enumerate(made)
    ]
    drawn_from = [distributions_of(space, budget, draws) for draws, _ in made]
    for sampler in (
        RandomOrder(curves, random.Random(0)),
        NearestToTpe(curves, random.Random(0), space, budget, drawn_from),
    ):
        chosen = []
        for _ in curves:
            chosen.append(sampler.choose())
            sampler.hear(chosen[-1], {1: curves[chosen[-1]].accuracies[0]}, True)
        assert sorted(chosen) == list(range(len(curves)))
    later = chosen[10:20]  # TPE's, after its random start
    assert sum(wide[at] for at in later) / 10 > sum(wide) / len(wide) + 0.5
    found = compare(curves, space, budget, 0.6, repeats=3, seed=0)
    assert set(found) == {"random", "TPE"}
    assert found["random"]["nobody is stopped"].reached == 1


@pytest.mark.usefixtures("one_process")
def test_a_table_of_curves_is_recorded_grows_and_is_replayed(work: Path, invoke: Runner) -> None:
    (work / "s.toml").write_text(SPACE)
    record = [*RECORD, "--space", "s.toml", "--max-params", 400, "--workers", 1]
    ended = invoke("bench record", *record, "--candidates", 2)
    assert (ended.code, ended.err) == (0, "")
    first = (work / "c" / "t.csv").read_text().splitlines()
    assert len(first) == 3
    assert first[0].startswith("candidate,n_params,macs,seconds,accuracy_1,accuracy_2,loss_1,")
    assert invoke("bench record", *record, "--candidates", 3).code == 0
    assert (work / "c" / "t.csv").read_text().splitlines()[:3] == first
    setting, curves = read_curves(work / "c" / "t.csv")
    assert (setting.max_params, setting.images, len(curves)) == (400, 200, 3)
    assert all(0 <= accuracy <= 1 for one in curves for accuracy in one.accuracies)

    ended = invoke("bench search", "--curves", "c/t.csv", "--repeats", 3, "--json", "found.json")
    assert (ended.code, ended.err) == (0, "")
    assert "3 random candidates of at most 400 parameters, 200 images an epoch, 2 epochs" in ended.out
    found = json.loads((work / "found.json").read_text())
    assert found["until_target"]["random"]["nobody is stopped"]["reached"] == 1
    assert found["fronts"]["multiply-adds"]["members"] >= 1
    assert "Accuracy against a cost" in ended.out

    many = invoke("bench record", *record, "--candidates", 60)  # the space has fewer
    assert many.code == 1
    assert "the space has no candidate" in many.err
    before = {path: path.read_bytes() for path in (work / "c").iterdir()}
    other = invoke("bench record", *record, "--candidates", 4, "--seed", 1)
    assert other.code == 2
    assert "c/t.csv was made with another seed (use a new file)" in other.err
    lofty = invoke("bench search", "--curves", "c/t.csv", "--target", 99.9)
    assert lofty.code == 2
    assert "--target: 99.90% is more than the best candidate has" in lofty.err
    assert {path: path.read_bytes() for path in (work / "c").iterdir()} == before


ROW = "candidate,n_params,macs,seconds,accuracy_1,loss_1,draws\n0,1,1,1,0.5,1,{}\n"
SETTING = {"space": {}, "max_params": 1, "recipe": {"epochs": 1}, "data": "", "images": 1, "seed": 0}


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("", {}),
        ("a,b\n1,2\n", {}),
        ("candidate\n0\n", {}),
        (ROW, {}),  # without a space
        (ROW, {"space": tomllib.loads(SPACE)}),  # without draws
        (ROW, {"space": tomllib.loads(SPACE), "max_params": "many"}),
        (ROW.replace("0.5", "half"), {}),
        (ROW, {"recipe": {}}),
        (ROW, {"recipe": 5}),
        (ROW, {"recipe": {"epochs": 0}}),
        (ROW, {"recipe": {"epochs": 2}}),
        (ROW, {"unknown": 0}),
    ],
)
def test_what_is_no_table_of_curves_is_refused(
    text: str, changed: dict[str, object], work: Path, invoke: Runner
) -> None:
    (work / "t.json").write_text(json.dumps(SETTING | changed))
    (work / "t.csv").write_text(text)
    ended = invoke("bench search", "--curves", "t.csv")
    assert ended.code == 2
    assert ended.err.startswith(("error: --curves: t.", "error: t.json: "))
    assert ended.err.count("\n") == 1
