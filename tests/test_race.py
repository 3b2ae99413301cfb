"""Finalists compared on the same images with fresh seeds."""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest

from nas_mnist.models import zoo
from nas_mnist.models.architecture import Architecture
from nas_mnist.recipes.recipe import load_recipe
from nas_mnist.search.finals import Finals
from nas_mnist.search.narrow import narrow
from nas_mnist.study.race import COPIES, FAILED_LOSS, SEED_SPREAD, SIGNIFICANCE, Finalist, FinalScores

IMAGES = 2_000


@pytest.fixture
def scores(tmp_path: Path) -> FinalScores:
    return FinalScores({}, tmp_path)


def images(seed: int) -> np.ndarray:
    """Losses of images as networks have them: nearly all small, a few large."""
    return np.random.default_rng(seed).exponential(0.02, IMAGES).astype(np.float32) ** 2


def test_scores_are_read_again_and_a_training_without_its_file_is_not_done(tmp_path: Path) -> None:
    scores = FinalScores({}, tmp_path)
    scores.add("a", 1, 0.9, images(1))
    scores.add("a", 2, 0.8, images(2))
    scores.add("b", 1, 0.7, images(3))
    again = FinalScores(scores.to_json(), tmp_path)
    assert again.to_json() == scores.to_json()
    assert (again.seeds("a"), again.seeds("b"), again.seeds("c")) == ({1, 2}, {1}, set())
    assert again.accuracy("a") == pytest.approx(0.85)
    assert again.loss("a") == pytest.approx((images(1).mean() + images(2).mean()) / 2)
    next(tmp_path.glob("a-*2*")).unlink()
    again = FinalScores(scores.to_json(), tmp_path)
    assert again.seeds("a") == {1}
    others = {"a": {"3": [0.5, 1.0]}, "d": {"1": [0.4, 2.0]}}  # of another process
    both = again.to_json(others)
    assert both["a"] == {"1": scores.to_json()["a"]["1"], "3": [0.5, 1.0]}
    assert (both["b"], both["d"]) == (scores.to_json()["b"], others["d"])


def test_a_clear_difference_is_seen_and_a_small_one_is_not(scores: FinalScores) -> None:
    base = images(1)
    for seed in (1, 2):
        scores.add("best", seed, 0.9, base)
        scores.add("close", seed, 0.9, base * np.float32(1.05))
        scores.add("rather worse", seed, 0.9, base * np.float32(1.1))
        scores.add("worse", seed, 0.9, base * np.float32(1.3))
    assert scores.is_as_good("close", "best")
    assert not scores.is_worse("close", "best")
    assert not scores.is_as_good("rather worse", "best")
    assert not scores.is_worse("rather worse", "best")
    assert scores.is_worse("worse", "best")
    assert not scores.is_as_good("worse", "best")
    assert not scores.is_worse("best", "worse")
    assert scores.is_as_good("best", "worse")


def test_the_error_is_that_of_the_paired_images_and_of_the_seeds(scores: FinalScores) -> None:
    for seed in range(3):
        scores.add("best", seed, 0.9, images(seed))
        scores.add("other", seed, 0.9, images(seed + 10) + np.float32(2e-5))
    mean = {
        key: np.mean([scores.losses[key, seed] for seed in range(3)], axis=0, dtype=np.float64)
        for key in ("best", "other")
    }
    difference = mean["other"] - mean["best"]
    assert np.allclose(scores.difference("other", "best"), difference)
    paired = difference.std(ddof=1) / np.sqrt(IMAGES)
    seeds = SEED_SPREAD * mean["best"].mean() * np.sqrt(1 / 3 + 1 / 3)
    error = scores.standard_error("other", "best")
    assert error == pytest.approx(np.sqrt(paired**2 + seeds**2))
    wanted = NormalDist().cdf(-difference.mean() / error) < SIGNIFICANCE
    assert scores.is_worse("other", "best") == wanted


def test_images_that_are_hard_for_both_cancel_out(scores: FinalScores) -> None:
    base = images(1)
    for seed in range(100):  # the seeds no longer count
        scores.add("best", seed, 0.9, base)
        scores.add("worse", seed, 0.9, base * np.float32(1.05))
    assert abs(scores.loss("worse") - scores.loss("best")) < base.std() / np.sqrt(IMAGES)
    assert scores.is_worse("worse", "best")


def test_a_network_is_as_good_as_itself_and_a_failed_training_is_worse(scores: FinalScores) -> None:
    scores.add("best", 1, 0.9, images(1))
    scores.add("twin", 1, 0.9, images(1))
    scores.add("failed", 1, 0.0, None)
    assert scores.is_as_good("twin", "best")
    assert not scores.is_worse("twin", "best")
    assert scores.loss("failed") == FAILED_LOSS
    assert scores.is_worse("failed", "best")
    assert not scores.is_as_good("failed", "best")


def test_a_candidate_that_failed_with_one_of_its_seeds_is_compared(scores: FinalScores) -> None:
    for seed in (1, 2):
        scores.add("best", seed, 0.9, images(seed))
    scores.add("half", 1, 0.9, images(1))
    scores.add("half", 2, 0.0, None)
    assert len(scores.difference("half", "best")) == IMAGES
    assert scores.is_worse("half", "best")
    assert not scores.is_as_good("half", "best")
    for seed in (1, 2):
        scores.add("failed", seed, 0.0, None)
        scores.add("too", seed, 0.0, None)
    assert not scores.is_worse("failed", "too")
    assert scores.is_as_good("failed", "too")


def test_more_seeds_make_a_difference_clear(scores: FinalScores) -> None:
    base = images(1)
    for seed in (1, 2):
        scores.add("best", seed, 0.9, base)
        scores.add("other", seed, 0.9, base * np.float32(1.15))  # 1.3 standard errors of one seed, 1.9 of two
        assert scores.is_worse("other", "best") == (seed == 2)


def test_fresh_seeds_alone_make_the_mean_and_no_right_answer_is_no_failure(scores: FinalScores) -> None:
    for key, accuracies in (("a", [0.984, 0.985]), ("b", [0.98, 0.98])):  # "b" had 0.99 as a candidate
        for seed, accuracy in enumerate(accuracies, 1):
            scores.add(key, seed, accuracy, images(seed))
    assert (scores.accuracy("a"), scores.accuracy("b")) == pytest.approx((0.9845, 0.98))
    scores.add("none right", 1, 0.0, images(1)[:1])
    scores.add("failed", 1, 0.0, None)
    assert [scores.has_failed(key) for key in ("a", "none right", "failed")] == [False, False, True]


@pytest.mark.parametrize(("as_good", "enough"), [(7_000, 3_000), (12_000, 2_600), (3_000, 7_000), (100, 100)])
def test_the_smallest_copies_that_are_good_enough_are_looked_for(
    scores: FinalScores, monkeypatch: pytest.MonkeyPatch, as_good: int, enough: int
) -> None:
    tried: list[Finalist] = []

    def train(_: Finals, __: Any, ___: Any, finalists: list[Finalist], _seeds: list[int]) -> None:
        for one in finalists:
            tried.append(one)
            worse = np.float32(1 if one.params >= as_good else 2)
            scores.add(one.key, 1, 0.995 if one.params >= enough else 0.99, images(1) * worse)

    monkeypatch.setattr(Finals, "_train", train)
    entry = zoo.load("reference")
    key, recipe = entry.architecture.key, load_recipe("small")
    best = Finalist("best", key, entry.architecture, recipe, "found", 0)
    setup: Any = SimpleNamespace(target=0.994)
    finals, study = Finals(setup, setup, setup), optuna.create_study()
    train(finals, None, scores, [best], [1])
    copies = finals._narrow(study, scores, best, [1])
    assert study.user_attrs[COPIES] == {one.key: [0, one.params] for one in copies}
    assert copies == tried[1:]
    sizes, least = [one.params for one in tried], min(as_good, enough)
    assert len(set(sizes)) == len(sizes) <= 8
    halves = [best.params // 2, best.params // 4, best.params // 8]
    useful = [half for half, before in zip(halves, [best.params, *halves], strict=False) if before >= least]
    assert all(0.8 * half < size <= half for size, half in zip(sizes[1:], useful, strict=False))
    assert not any(size < 0.8 * useful[-1] for size in sizes)
    stubborn = {"input_shape": [2, 9, 9], "blocks": [{"kind": "conv", "channels": 2}, {"kind": "repeat"}]}
    architecture = Architecture.make(stubborn)
    assert narrow(best._replace(architecture=architecture), 10) is None
    for limit in (as_good, enough):
        found = min(size for size in sizes if size >= limit)
        assert found < 1.25 * limit or limit < halves[2]
