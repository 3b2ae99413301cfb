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

from nas_mnist.bench import record as recording
from nas_mnist.bench.curves import Curve, read_curves
from nas_mnist.bench.record import random_candidates
from nas_mnist.bench.replay import (
    ReplayResult,
    compare_searches,
    effort_to_target,
    no_pruning,
    pruned_front,
    pruning_rules,
    rank_correlations,
    replay,
)
from nas_mnist.bench.samplers import OPTUNA_SAMPLERS, NearestSampler, RandomOrderSampler, distributions_of
from nas_mnist.models.cost import Budget, cost_of
from nas_mnist.space.sampling import FixedParams
from nas_mnist.space.space import SearchSpace

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
    """Candidates in the order of the table; keeps the results."""

    def __init__(self) -> None:
        self.told: list[float | None] = []  # accuracies; None: pruned

    def ask(self) -> int:
        return len(self.told)

    def tell(self, accuracy: float | None) -> None:
        self.told.append(accuracy)


def test_a_replayed_search_counts_epochs_until_the_target() -> None:
    curves = [curve(0, 0.5, 0.8), curve(1, 0.6, 0.9), curve(2, 0.7, 0.95)]
    assert replay(curves, InOrder(), no_pruning, 0.9) == ReplayResult(4, True)
    assert replay(curves, InOrder(), no_pruning, 0.95) == ReplayResult(6, True)
    assert replay(curves, InOrder(), no_pruning, 0.99) == ReplayResult(6, False)


def test_a_replayed_search_prunes_as_a_search_does() -> None:
    good = [curve(number, 0.5, 0.6, 0.7, 0.8) for number in range(4)]
    behind, ahead = (
        curve(4, 0.9, 0.5, 0.9, 0.9),
        curve(5, 0.1, 0.7, 0.9, 0.95),
    )  # at half
    sampler = InOrder()
    rule = pruning_rules(4)["late median (search)"]
    assert replay([*good, behind, ahead], sampler, rule, 0.95) == ReplayResult(4 * 4 + 2 + 4, True)
    assert sampler.told == [0.8] * 4 + [None, 0.95]


def test_halving_keeps_the_better_half_at_each_rung() -> None:
    rule = pruning_rules(5)["halving, early rungs"]  # after one and two epochs
    others = [[0.5, 0.4], [0.3], [0.1, 0.2, 0.1]]
    assert not rule([0.2], others)
    assert rule([0.4], others)
    assert not rule([0.4, 0.1], others)
    assert rule([0.4, 0.3], others)
    assert not rule([0.4, 0.3, 0.9], others)


def test_distances_do_not_depend_on_the_hash_seed() -> None:
    """Sums in another order are rounded otherwise, and would make replays differ between processes."""
    program = """
import random
from optuna.distributions import IntDistribution
from nas_mnist.bench.samplers import OPTUNA_SAMPLERS, NearestSampler
from nas_mnist.models.cost import Budget
from nas_mnist.space.space import SearchSpace

ranges = {f"choice {number}": IntDistribution(0, 10 + number) for number in range(12)}
space, rng = SearchSpace.load("tiny"), random.Random(0)
sampler = NearestSampler([], OPTUNA_SAMPLERS["TPE"], space, Budget(1), [ranges], rng)
print(repr(sampler.distance(dict.fromkeys(ranges, 0), {name: 7 for name in ranges})))
"""
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            check=True, capture_output=True, text=True, env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(printed) == 1


def test_a_front_keeps_candidates_that_no_cheaper_one_beats() -> None:
    constant = [curve(number, *[0.1 * number] * 20) for number in range(10)]
    found = pruned_front(constant, range(100, 0, -10), repeats=50, seed=0)  # the last is best and cheapest
    assert (found.members, found.kept) == (1, 1)
    assert 0.5 < found.epochs < 1
    assert found.lost == pytest.approx(0)
    found = pruned_front(constant, range(10, 110, 10), repeats=50, seed=0)  # all are members of the front
    assert found == (1, 10, 1, pytest.approx(0))


def test_a_front_lacks_a_late_learner_that_is_pruned() -> None:
    late = [*(curve(number, *[0.5] * 20) for number in range(5)), curve(5, *[0.3] * 19, 0.9)]
    found = pruned_front(late, [10] * 6, repeats=200, seed=0)  # pruned if four come before it
    assert found.members == 1
    assert found.kept == pytest.approx(4 / 6, abs=0.1)
    assert found.lost == pytest.approx(0.4 * (1 - found.kept))


def test_the_effort_to_a_target_by_hand() -> None:
    always = effort_to_target([ReplayResult(10, True), ReplayResult(20, True)])
    assert (always.epochs, always.reached) == (15, 1)
    assert always.error == pytest.approx(5 / math.sqrt(2))
    half = effort_to_target([ReplayResult(10, True), ReplayResult(20, False)])  # 30 epochs for one success
    assert (half.epochs, half.reached) == (30, 0.5)
    assert effort_to_target([ReplayResult(10, False)]).epochs == math.inf


def test_early_accuracies_are_ranked_against_the_last_epoch() -> None:
    curves = [curve(at, at / 10, 0.5 - at / 20, 0.5 + at / 10) for at in range(5)]
    assert rank_correlations(curves) == {
        "epoch 1": {"accuracy": 1.0, "loss": 1.0},
        "epoch 2": {"accuracy": -1.0, "loss": -1.0},
    }


COMMITTED = sorted((Path(__file__).parents[1] / "reports" / "curves").glob("*.csv"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_curves_are_read_and_their_candidates_cost_what_they_did(path: Path) -> None:
    metadata, curves = read_curves(path)
    space, budget = SearchSpace.make(metadata.space), Budget(metadata.max_params)
    assert len(curves) >= 8
    for one in curves:
        cost = cost_of(space.draw(FixedParams(one.params), budget))
        assert (cost.params, cost.macs) == (one.n_params, one.macs)


def test_random_candidates_fit_and_are_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MAX_MISSES", 3_000)
    space, budget = SearchSpace.from_toml(SPACE), Budget(400)
    first = list(random_candidates(space, budget, 0))
    assert [one.key for _, one in first] == [one.key for _, one in random_candidates(space, budget, 0)]
    every = [
        {"stage1.channels1": one, "stage1.kernel": kernel, "stage2.blocks": blocks, "stage2.channels1": two}
        for one, kernel, blocks, two in product(range(2, 7), (3, 5), (0, 1), range(2, 7))
    ]
    drawn = [space.draw(FixedParams(params), budget) for params in every]
    assert {one.key for _, one in first} == {one.key for one in drawn if budget.fits(cost_of(one))}
    assert [one.key for _, one in random_candidates(space, budget, 1)] != [one.key for _, one in first]


def test_samplers_choose_every_candidate_once_and_tpe_learns() -> None:
    space, budget = SearchSpace.from_toml(SPACE), Budget(10_000)
    drawn = [params for params, _ in random_candidates(space, budget, 0)]
    widths = [params["stage1.channels1"] for params in drawn]
    curves = [
        Curve(at, params, 100, 1_000, 1.0, (width / 10,), (1.0,))
        for at, (params, width) in enumerate(zip(drawn, widths, strict=True))
    ]
    distributions = [distributions_of(space, budget, params) for params in drawn]
    samplers = [
        RandomOrderSampler(curves, random.Random(0)),
        *(
            NearestSampler(curves, make, space, budget, distributions, random.Random(0))
            for make in OPTUNA_SAMPLERS.values()
        ),
    ]
    for number, sampler in enumerate(samplers):
        chosen = []
        for _ in curves:
            chosen.append(sampler.ask())
            sampler.tell(curves[chosen[-1]].accuracies[0])
        assert sorted(chosen) == list(range(len(curves)))
        after_startup = [widths[at] for at in chosen[10:20]]
        assert number != 1 or sum(after_startup) / 10 > sum(widths) / len(widths) + 0.5
    found = compare_searches(curves, space, budget, 0.6, repeats=3, seed=0)
    assert set(found) == {"random", *OPTUNA_SAMPLERS}
    assert found["random"]["no pruning"].reached == 1


@pytest.mark.usefixtures("one_process")
def test_a_table_of_curves_is_recorded_grows_and_is_replayed(
    work: Path, invoke: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "MAX_MISSES", 3_000)
    (work / "s.toml").write_text(SPACE)
    record = [*RECORD, "--space", "s.toml", "--max-params", 100, "--workers", 1]
    ended = invoke("bench record", *record, "--candidates", 2)
    assert (ended.code, ended.err) == (0, "")
    first = (work / "c" / "t.csv").read_text().splitlines()
    assert len(first) == 3
    assert first[0].startswith("candidate,n_params,macs,seconds,accuracy_1,accuracy_2,loss_1,")
    assert invoke("bench record", *record, "--candidates", 3).code == 0
    assert (work / "c" / "t.csv").read_text().splitlines()[:3] == first
    metadata, curves = read_curves(work / "c" / "t.csv")
    assert (metadata.max_params, metadata.images, len(curves)) == (100, 200, 3)
    assert all(0 <= accuracy <= 1 for one in curves for accuracy in one.accuracies)

    own = ["--sampler", "optuna.samplers:QMCSampler"]
    ended = invoke("bench search", "--curves", "c/t.csv", "--repeats", 3, *own, "--json", "found.json")
    assert (ended.code, ended.err) == (0, "")
    assert "3 random candidates of at most 100 parameters, 200 images an epoch, 2 epochs" in ended.out
    found = json.loads((work / "found.json").read_text())
    assert found["until_target"]["random"]["no pruning"]["reached"] == 1
    assert found["until_target"]["optuna.samplers:QMCSampler"]["no pruning"]["reached"] == 1
    assert found["fronts"]["multiply-adds"]["members"] >= 1
    assert "accuracy against a cost" in ended.out

    many = invoke("bench record", *record, "--candidates", 6)  # the space has five
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
METADATA = {"space": {}, "max_params": 1, "recipe": {"epochs": 1}, "data": "", "images": 1, "seed": 0}


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("", {}),
        ("a,b\n1,2\n", {}),
        (ROW, {"space": tomllib.loads(SPACE)}),  # without draws
        (ROW, {"max_params": "many"}),
        (ROW.replace("0.5", "half"), {}),
        (ROW, {"recipe": 5}),
        (ROW, {"recipe": {"epochs": 0}}),
        (ROW, {"recipe": {"epochs": 2}}),
        (ROW, {"unknown": 0}),
    ],
)
def test_a_file_that_is_no_table_of_curves_is_refused(
    text: str, changed: dict[str, object], work: Path, invoke: Runner
) -> None:
    (work / "t.json").write_text(json.dumps(METADATA | changed))
    (work / "t.csv").write_text(text)
    ended = invoke("bench search", "--curves", "t.csv")
    assert ended.code == 2
    assert ended.err.startswith(("error: --curves: t.", "error: t.json: "))
    assert ended.err.count("\n") == 1
