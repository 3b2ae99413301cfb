"""Training: repeatable, a generator, and honest about what it scores."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from nas_mnist import Architecture
from nas_mnist.core.errors import InputError
from nas_mnist.core.fileio import write_bytes
from nas_mnist.data.dataset import DataSet, Images
from nas_mnist.engine.warp import Warp
from nas_mnist.models.network import Network, build, side_by_side, take_apart
from nas_mnist.recipes.recipe import (
    FACTORS,
    VALUES,
    Augmentation,
    Recipe,
    load_recipe,
    make_recipe,
    unvaried,
    vary,
)
from nas_mnist.search.jobs import RetrainTask, retrain_seeds
from nas_mnist.space.sampling import RandomDraws, Replay
from nas_mnist.training.augment import draw, warp
from nas_mnist.training.evaluate import Normalizer, Score, evaluate, predict
from nas_mnist.training.final import retrain, summarise
from nas_mnist.training.loop import EpochResult, TrainingError, train, train_together
from nas_mnist.training.run_store import Results, facts_of
from nas_mnist.training.step import schedule

SMALL = Architecture.make(
    {
        "blocks": [
            {"kind": "conv", "channels": 6, "stride": 2, "dropout": 0.1},
            {"kind": "residual", "body": [{"kind": "separable", "channels": 6, "norm": "after"}]},
            {"kind": "repeat"},
            {"kind": "pool"},
        ]
    }
)
PLAIN = Recipe(epochs=2, batch_size=60, learning_rate=0.05)
RICH = Recipe(
    epochs=2,
    batch_size=50,
    learning_rate=0.1,
    nesterov=True,
    weight_decay=1e-3,
    schedule="linear",
    warmup=0.3,
    label_smoothing=0.1,
    average=0.9,
    augmentation=Augmentation(rotate=10, translate=0.1, scale=0.1, shear=5),
)
ADAM = Recipe(epochs=2, batch_size=60, optimizer="adamw", learning_rate=0.01)
MUON = Recipe(
    epochs=2,
    batch_size=60,
    optimizer="muon",
    learning_rate=0.1,
    nesterov=True,
    weight_decay=0.01,
    average=0.9,
)
RECIPES = {"plain": PLAIN, "rich": RICH, "adamw": ADAM, "muon": MUON}


def run(recipe: Recipe, data: DataSet, seed: int = 0, **options: Any) -> tuple[Network, list[EpochResult]]:
    learn, choose = data.split()
    model = build(SMALL, seed)
    return model, list(train(model, learn, recipe, seed=seed, score_on=choose, **options))


def told(results: list[EpochResult]) -> list[tuple[Any, ...]]:
    """All that does not depend on the clock."""
    return [(r.epoch, r.train_loss, r.learning_rate, r.images, r.score) for r in results]


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(name: str, tiny_data: DataSet) -> None:
    first, again, other = (run(RECIPES[name], tiny_data, seed) for seed in (3, 3, 4))
    assert told(first[1]) == told(again[1])
    for ours, theirs in zip(first[0].state_dict().values(), again[0].state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert [r.train_loss for r in first[1]] != [r.train_loss for r in other[1]]


def test_numbers_do_not_depend_on_what_was_drawn_before(tiny_data: DataSet) -> None:
    first = told(run(RICH, tiny_data)[1])
    torch.rand(7)
    assert told(run(RICH, tiny_data)[1]) == first


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = build(SMALL, 1), build(SMALL, 1), build(SMALL, 2)
    assert torch.equal(torch.rand(3), expected)
    weights = [next(model.parameters()) for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("name", RECIPES)
def test_loss_falls_and_the_network_learns(name: str, five_thousand: DataSet) -> None:
    recipe = Recipe.model_validate(RECIPES[name].model_dump() | {"epochs": 3, "batch_size": 20})
    _, results = run(recipe, five_thousand)
    assert results[-1].train_loss < 0.9 * results[0].train_loss
    assert results[-1].score is not None
    assert results[-1].score.accuracy > 0.4  # a guess has 0.1


def plain_loop(
    architecture: Architecture, data: Images, recipe: Recipe, seed: int
) -> tuple[list[float], Network]:
    """The mean loss of every epoch of a float32 loop of torch's own modules, and the result."""
    model = build(architecture, seed).train()
    average = deepcopy(model)
    weights = [one for one in model.parameters() if one.dim() > 1]
    others = [one for one in model.parameters() if one.dim() == 1]
    groups = [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": others}]
    if recipe.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, betas=(recipe.momentum, 0.999), weight_decay=0.0)
    else:
        optimizer = torch.optim.SGD(groups, momentum=recipe.momentum, nesterov=recipe.nesterov)
    generator = torch.Generator().manual_seed(seed)
    normalize = Normalizer.of(data.images)
    means, done, total = [], 0, recipe.epochs * (len(data) // recipe.batch_size)
    for _ in range(recipe.epochs):
        losses = []
        for picked in torch.randperm(len(data), generator=generator).split(recipe.batch_size):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * schedule(recipe, (done + 1) / total)
            loss = torch.nn.functional.cross_entropy(
                model(normalize(data.images[picked])),
                data.labels[picked],
                label_smoothing=recipe.label_smoothing,
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            share = 1 - min(recipe.average, (2 + done) / (11 + done))
            for mean, newest in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                if mean.is_floating_point():
                    mean.lerp_(newest, share)
            done += 1
        means.append(sum(losses) / len(losses))
    return means, average


MIXED = Architecture.make(
    {
        "blocks": [
            {"kind": "conv", "channels": 8, "bias": True},
            {"kind": "separable", "channels": 16, "kernel": 5, "stride": 2, "norm": "after"},
            {"kind": "residual", "body": [{"kind": "conv", "channels": 12}], "activation": "relu"},
            {"kind": "conv", "channels": 12, "norm": "after"},
            {"kind": "pool"},
            {"kind": "conv", "channels": 16, "activation": "hardswish"},
        ],
        "head": {"order": "pool_then_conv"},
    }
)


# How far losses may be apart in the first epoch; differences grow with every step. A float32 loop in another
# memory layout is 0.3 % away from this one after 100 steps.
TOLERANCE = 1e-3


@pytest.mark.parametrize("seed", [0, 1])
def test_losses_agree_with_those_of_a_plain_float32_loop_for_a_hundred_steps(
    seed: int, five_thousand: DataSet
) -> None:
    data = five_thousand.train.take(torch.arange(0, 3000, 6))
    recipe = Recipe(epochs=10, batch_size=50, learning_rate=0.01, momentum=0.9, schedule="constant")
    ours = [result.train_loss for result in train(build(MIXED, seed), data, recipe, seed=seed)]
    expected, _ = plain_loop(MIXED, data, recipe, seed)
    assert expected[-1] < 0.7 * expected[0]  # there is something to agree about
    for epoch, (mine, other) in enumerate(zip(ours, expected, strict=True), 1):
        assert mine == pytest.approx(other, rel=TOLERANCE * epoch), epoch


def test_plain_training_is_a_plain_float32_loop(five_thousand: DataSet) -> None:
    data = five_thousand.train.take(torch.arange(0, 3000, 6))
    recipe = Recipe(epochs=3, batch_size=50, learning_rate=0.01, momentum=0.9, schedule="constant")
    with mock.patch("nas_mnist.training.evaluate.FusedNetwork", side_effect=AssertionError("not plain")):
        ours = [r.train_loss for r in train(build(MIXED, 0), data, recipe, seed=0, plain=True)]
    assert ours == pytest.approx(plain_loop(MIXED, data, recipe, 0)[0], rel=2e-3)


EVERYTHING = Recipe(
    epochs=2, batch_size=50, learning_rate=0.02, momentum=0.8, nesterov=True, weight_decay=0.05,
    label_smoothing=0.1, schedule="cosine", warmup=0.3, average=0.3,
)  # fmt: skip
ADAMW = EVERYTHING.model_copy(update={"optimizer": "adamw", "nesterov": False, "learning_rate": 0.003})
OTHERWISE: dict[str, dict[str, Any]] = {
    "momentum": {"momentum": 0.7},
    "nesterov": {"nesterov": False},
    "decay": {"weight_decay": 0.0},
    "smoothing": {"label_smoothing": 0.0},
    "schedule": {"schedule": "linear"},
    "warmup": {"warmup": 0.2},
    "average": {"average": 0.2},
}


def difference(data: Images, ours: Recipe, theirs: Recipe, plain: bool) -> float:
    """How far apart the results of a training and of a plain loop are, as a share of the loop's own way."""
    model, start = build(MIXED, 0), build(MIXED, 0)
    for _ in train(model, data, ours, seed=0, plain=plain):
        pass
    _, other = plain_loop(MIXED, data, theirs, 0)
    mine, loops, first = (
        torch.cat([one.detach().flatten() for one in network.parameters()])
        for network in (model, other, start)
    )
    return float((mine - loops).norm() / (loops - first).norm())


@pytest.mark.parametrize(
    ("recipe", "plain", "most"),
    [
        pytest.param(EVERYTHING, True, 1e-4, id="sgd"),
        pytest.param(EVERYTHING, False, 5e-3, id="sgd, fast"),  # rounding grows with every step
        # A gradient that is zero but for rounding counts in full.
        pytest.param(ADAMW, True, 0.01, id="adamw"),
    ],
)
def test_every_field_of_a_recipe_does_what_torch_does_by_that_name(
    recipe: Recipe, plain: bool, most: float, five_thousand: DataSet
) -> None:
    data = five_thousand.train.take(torch.arange(0, 3000, 15))
    assert difference(data, recipe, recipe, plain) < most


@pytest.mark.parametrize("field", OTHERWISE)
def test_no_field_of_a_recipe_could_be_forgotten_unseen(field: str, five_thousand: DataSet) -> None:
    data = five_thousand.train.take(torch.arange(0, 3000, 15))
    changed = EVERYTHING.model_copy(update=OTHERWISE[field])
    assert difference(data, changed, EVERYTHING, plain=True) > 1e-3


STILL = Architecture.make(  # as SMALL, without dropout
    {
        "blocks": [
            {"kind": "conv", "channels": 6, "stride": 2},
            {"kind": "residual", "body": [{"kind": "separable", "channels": 6, "norm": "after"}]},
            {"kind": "repeat"},
            {"kind": "pool"},
        ],
        "head": {"norm": True},
    }
)


@pytest.mark.parametrize("plain", [False, True], ids=["fast", "plain"])
@pytest.mark.parametrize("name", RECIPES)
def test_seeds_trained_together_learn_what_they_learn_alone(
    name: str, plain: bool, tiny_data: DataSet
) -> None:
    learn, choose = tiny_data.split()
    seeds, recipe = (3, 4, 5), RECIPES[name]
    models = [build(STILL, seed) for seed in seeds]
    together = list(train_together(models, learn, recipe, seeds=seeds, score_on=choose, plain=plain))
    for copy, seed in enumerate(seeds):
        alone = build(STILL, seed)
        results = list(train(alone, learn, recipe, seed=seed, score_on=choose, plain=plain))
        ours = [epoch[copy] for epoch in together]
        assert [r.train_loss for r in ours] == pytest.approx([r.train_loss for r in results], rel=1e-3)
        assert evaluate(models[copy], choose, Normalizer.of(learn.images), plain=plain) == ours[-1].score
        if name in ("adamw", "muon"):  # a gradient that is zero but for rounding makes a whole step
            continue
        for one, other in zip(models[copy].parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0.01, atol=1e-3)


def test_networks_side_by_side_have_the_scores_they_have_apart() -> None:
    models = [build(MIXED, seed).eval() for seed in range(3)]
    whole = side_by_side(models).eval()
    images = torch.rand(5, 3, 28, 28)  # one image a network
    expected = torch.cat([model(images[:, [at]]) for at, model in enumerate(models)], dim=1)
    torch.testing.assert_close(whole(images), expected)
    others = [build(MIXED, seed) for seed in range(3, 6)]
    take_apart(whole, others)
    for model, other in zip(models, others, strict=True):
        taken = other.state_dict()
        assert all(torch.equal(tensor, taken[name]) for name, tensor in model.state_dict().items())


def test_seeds_trained_together_draw_dropout_apart_from_each_other(tiny_data: DataSet) -> None:
    models = [build(SMALL, 0), build(SMALL, 0)]  # equal but for what they draw
    losses = [
        [epoch.train_loss for epoch in epochs]
        for epochs in train_together(models, tiny_data.train, PLAIN, seeds=(1, 2))
    ]
    assert all(one != other and math.isfinite(one + other) for one, other in losses)


def test_cuda_trains_seeds_at_once_as_far_as_memory_allows(tiny_data: DataSet) -> None:
    heard: list[Sequence[int]] = []

    class Heard(RetrainTask):
        def retrain(self, seeds: Sequence[int], *_: Any) -> list[Any]:
            heard.append(seeds)
            return list(seeds)

    task = Heard(SMALL, PLAIN, range(3, 80), "mnist", None, "cuda", True)
    done: list[Any] = []
    retrain_seeds(task, tiny_data, 1, lambda *_: None, done.append)
    assert done == list(range(3, 80))
    assert heard == [range(3, 35), range(35, 67), range(67, 80)]
    assert replace(task, plain=True).at_once == 1
    assert replace(task, device="cpu").at_once == 1
    wide = Architecture.make({"blocks": [{"kind": "conv", "channels": 256}] * 3})
    assert replace(task, architecture=wide).at_once == 9  # 1.8 million numbers an image, batches of 60


def test_a_seed_whose_loss_is_not_finite_ends_the_training_of_all(tiny_data: DataSet) -> None:
    models = [build(STILL, seed) for seed in range(2)]
    with torch.no_grad():
        next(models[1].parameters()).fill_(math.nan)
    with pytest.raises(TrainingError, match="loss not finite in epoch 1"):
        list(train_together(models, tiny_data.train, PLAIN, seeds=(0, 1)))


def test_retraining_gives_a_run_for_every_seed(tiny_data: DataSet) -> None:
    heard: list[tuple[int, int]] = []
    runs = retrain(
        *(STILL, PLAIN, tiny_data),
        seeds=(7, 5),
        device=torch.device("cpu"),
        last_only=True,
        on_epoch=lambda seed, result: heard.append((seed, result.epoch)),
    )
    assert [run.seed for run in runs] == [7, 5]
    assert heard == [(7, 1), (5, 1), (7, 2), (5, 2)]
    for run in runs:
        scored = evaluate(run.model, tiny_data.read_test(), run.normalizer)
        assert scored == run.result
        assert sum(map(sum, run.judgement.confusion)) == scored.count


def test_every_epoch_is_told_in_order(tiny_data: DataSet) -> None:
    _, results = run(PLAIN.with_epochs(3), tiny_data)
    assert [r.epoch for r in results] == [1, 2, 3]
    for result in results:
        assert result.images == 300
        assert result.seconds > 0
        assert result.score is not None
        assert (result.score.count, math.isfinite(result.score.loss)) == (60, True)


def test_a_remainder_that_fills_no_batch_is_dropped(tiny_data: DataSet) -> None:
    _, results = run(Recipe(epochs=1, batch_size=70), tiny_data)
    assert results[0].images == 280


def test_scoring_only_the_last_epoch_changes_nothing_else(tiny_data: DataSet) -> None:
    model, every = run(RICH, tiny_data)
    other, last = run(RICH, tiny_data, scored=())
    assert [r.score is None for r in last] == [True, False]
    assert last[-1].score == every[-1].score
    assert [r.train_loss for r in last] == [r.train_loss for r in every]
    for ours, theirs in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_epochs_that_are_named_are_scored_and_the_last_one(tiny_data: DataSet) -> None:
    recipe = Recipe(epochs=4, batch_size=60)
    _, results = run(recipe, tiny_data, scored={2})
    _, every = run(recipe, tiny_data)
    assert [r.score is None for r in results] == [True, False, True, False]
    assert [r.score for r in results if r.score] == [every[1].score, every[3].score]


def test_without_images_to_score_on_there_is_no_score(tiny_data: DataSet) -> None:
    learn, _ = tiny_data.split()
    results = list(train(build(SMALL, 0), learn, PLAIN, seed=0))
    assert [r.score for r in results] == [None, None]


def test_training_can_be_abandoned_after_any_epoch(tiny_data: DataSet) -> None:
    learn, choose = tiny_data.split()
    epochs = train(build(SMALL, 0), learn, RICH.with_epochs(20), seed=0, score_on=choose)
    first = next(epochs)
    epochs.close()
    with pytest.raises(StopIteration):
        next(epochs)
    assert first.epoch == 1
    assert told([first]) == told(
        [next(train(build(SMALL, 0), learn, RICH.with_epochs(20), seed=0, score_on=choose))]
    )


@pytest.mark.parametrize("name", RECIPES)
def test_the_model_ends_with_the_weights_that_were_scored(name: str, tiny_data: DataSet) -> None:
    learn, choose = tiny_data.split()
    model, results = run(RECIPES[name], tiny_data)
    assert evaluate(model, choose, Normalizer.of(learn.images)) == results[-1].score


def test_averaged_weights_are_not_the_last_ones(tiny_data: DataSet) -> None:
    base = RICH.model_dump() | {"average": 0.0}
    plain, _ = run(Recipe.model_validate(base), tiny_data)
    averaged, _ = run(RICH, tiny_data)
    assert not torch.equal(next(plain.parameters()), next(averaged.parameters()))


def test_a_loss_that_is_not_finite_is_a_training_error(tiny_data: DataSet) -> None:
    deep = Architecture.make(
        {"blocks": [{"kind": "conv", "channels": 8, "norm": "none", "activation": "none"}] * 8}
    )
    recipe = Recipe(epochs=3, batch_size=30, learning_rate=100, momentum=0.99, schedule="constant")
    learn, choose = tiny_data.split()
    with pytest.raises(TrainingError, match=r"loss not finite in epoch \d"):
        list(train(build(deep, 0), learn, recipe, seed=0, score_on=choose))


def test_batches_and_learning_rate_shrink_together_where_the_images_are_few() -> None:
    recipe = Recipe(batch_size=256, learning_rate=0.2, min_steps=40)
    assert recipe.fitted(50_000) is recipe
    assert recipe.fitted(10_240) is recipe
    small = recipe.fitted(4_000)
    assert (small.batch_size, small.learning_rate) == (100, pytest.approx(0.2 * 100 / 256))
    assert small.fitted(4_000) is small
    assert recipe.fitted(3).batch_size == 1
    assert Recipe(batch_size=256).fitted(100).batch_size == 256


def test_the_default_recipe_takes_small_steps_on_small_data(tiny_data: DataSet) -> None:
    (result, *_) = train(build(SMALL, 0), tiny_data.train, load_recipe("default").with_epochs(2), seed=0)
    assert result.images == 360  # 40 steps of 9 images


def test_fewer_images_than_a_batch_are_refused(tiny_data: DataSet) -> None:
    learn, _ = tiny_data.split()
    with pytest.raises(ValueError, match="batch_size 301 is more than the 300 images"):
        next(train(build(SMALL, 0), learn, Recipe(batch_size=301), seed=0))


def test_normaliser_measures_mean_and_deviation() -> None:
    images = torch.tensor([0, 0, 30, 90], dtype=torch.uint8).view(1, 1, 2, 2)
    normalize = Normalizer.of(images)
    assert normalize.mean == pytest.approx(30)
    assert normalize.std == pytest.approx(math.sqrt((900 + 900 + 0 + 3600) / 4))
    made = normalize(images)
    assert made.dtype == torch.float32
    assert made.flatten().tolist() == pytest.approx([-30 / normalize.std] * 2 + [0, 60 / normalize.std])


def test_normaliser_of_real_images_gives_mean_zero_and_deviation_one(five_thousand: DataSet) -> None:
    normalize = Normalizer.of(five_thousand.train.images)
    made = normalize(five_thousand.train.images)
    assert float(made.mean()) == pytest.approx(0, abs=1e-3)
    assert float(made.std()) == pytest.approx(1, abs=1e-3)
    # mean and deviation of the whole of MNIST are 0.1307 and 0.3081
    assert normalize.mean / 255 == pytest.approx(0.1307, abs=0.005)
    assert normalize.std / 255 == pytest.approx(0.3081, abs=0.005)


def test_normaliser_survives_images_of_one_colour() -> None:
    images = torch.full((2, 1, 4, 4), 7, dtype=torch.uint8)
    assert Normalizer.of(images)(images).abs().max() == 0


def test_predictions_do_not_depend_on_the_other_images(tiny_data: DataSet) -> None:
    learn, choose = tiny_data.split()
    normalize = Normalizer.of(learn.images)
    model, _ = run(PLAIN, tiny_data)
    together = predict(model, choose.images, normalize)
    alone = torch.cat([predict(model, image[None], normalize) for image in choose.images[:5]])
    assert together.shape == (len(choose), 10)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together[:5], alone, rtol=1e-4, atol=1e-4)


def test_score_counts_what_is_predicted_right(tiny_data: DataSet) -> None:
    learn, choose = tiny_data.split()
    normalize = Normalizer.of(learn.images)
    model = build(SMALL, 0)
    scores = predict(model, choose.images, normalize)
    found = evaluate(model, choose, normalize)
    right = int((scores.argmax(1) == choose.labels).sum())
    assert (found.correct, found.count) == (right, len(choose))
    assert found.accuracy == right / len(choose)
    log_shares = scores.log_softmax(1)[torch.arange(len(choose)), choose.labels]
    assert found.loss == pytest.approx(float(-log_shares.mean()), rel=1e-5)
    perfect = evaluate(model, Images(choose.images, scores.argmax(1)), normalize)
    assert perfect.accuracy == 1.0


def test_accuracy_is_a_share() -> None:
    assert Score(0.1, 9_955, 10_000).accuracy == 0.9955


@pytest.mark.parametrize("kind", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_rate_warms_up_to_its_peak_then_falls_to_zero(kind: str, warmup: float) -> None:
    recipe = make_recipe({"schedule": kind, "warmup": warmup}, "test")
    shares = [schedule(recipe, step / 100) for step in range(101)]
    peak = int(100 * warmup)
    assert shares[peak] == max(shares) == pytest.approx(1)
    assert shares[-1] == pytest.approx(0, abs=1e-12)
    assert shares[: peak + 1] == sorted(shares[: peak + 1])
    assert shares[peak:] == sorted(shares[peak:], reverse=True)
    assert all(-1e-12 <= share <= 1 + 1e-12 for share in shares)


def test_rate_by_hand() -> None:
    linear, cosine, constant = (
        make_recipe({"schedule": kind, "warmup": 0.2}, "test") for kind in ("linear", "cosine", "constant")
    )
    assert [schedule(linear, p) for p in (0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.5, 1, 0.5, 0])
    assert [schedule(cosine, p) for p in (0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.5, 1, 0.5, 0])
    assert schedule(cosine, 0.4) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert [schedule(constant, p) for p in (0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.5, 1, 1, 1])


def test_the_reported_rate_is_that_of_the_epochs_last_step(tiny_data: DataSet) -> None:
    recipe = Recipe(epochs=4, batch_size=60, learning_rate=0.2, schedule="linear")
    _, results = run(recipe, tiny_data)
    assert [r.learning_rate for r in results] == pytest.approx([0.15, 0.1, 0.05, 0.0])


def pictures() -> torch.Tensor:
    return torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 255


def moved(images: torch.Tensor, how: Augmentation, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return warp(images, draw(how, len(images), generator))


def test_no_augmentation_is_the_identity() -> None:
    assert Augmentation().off
    made = moved(pictures(), Augmentation())
    torch.testing.assert_close(made, pictures(), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("name", ["rotate", "translate", "scale", "shear"])
def test_every_kind_of_augmentation_moves_images_and_keeps_their_shape(name: str) -> None:
    how = Augmentation(**{name: 20 if name in ("rotate", "shear") else 0.3})
    assert not how.off
    made = moved(pictures(), how)
    assert (made.shape, made.dtype) == (pictures().shape, torch.float32)
    assert all((one - other).abs().max() > 1 for one, other in zip(made, pictures(), strict=True))
    assert made.min() >= 0
    assert made.max() <= 255 + 1e-2


def test_affine_maps_are_those_of_torchs_grid() -> None:
    images = torch.rand(3, 2, 10, 7)
    how = Augmentation(rotate=30, translate=0.2, scale=0.3, shear=20)
    draw = torch.rand((5, 3), generator=torch.Generator().manual_seed(4)) * 2 - 1
    angle, slant, size = draw[0] * math.pi / 6, torch.tan(draw[1] * math.pi / 9), 1 + draw[2] * 0.3
    zero, one = torch.zeros(3), torch.ones(3)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(3, 2, 2)
    shear = torch.stack([one, slant, zero, one], 1).view(3, 2, 2)
    theta = torch.cat([turn @ shear / size.view(3, 1, 1), draw[3:].T.reshape(3, 2, 1) * 0.4], 2)
    grid = torch.nn.functional.affine_grid(theta, [3, 2, 10, 7], align_corners=False)
    expected = torch.nn.functional.grid_sample(images, grid, align_corners=False)
    torch.testing.assert_close(moved(images, how, 4), expected)


def test_augmentation_depends_on_its_generator_alone() -> None:
    how = Augmentation(rotate=10, translate=0.1, scale=0.1, shear=5)
    first, again, other = (moved(pictures(), how, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_image_is_moved_by_its_own_amount() -> None:
    same = pictures()[:1].repeat(6, 1, 1, 1)
    made = moved(same, Augmentation(rotate=30))
    assert len({image.sum().item() for image in made}) == 6


def test_a_shift_stays_within_its_share_of_the_image() -> None:
    dot = torch.zeros(200, 1, 28, 28)
    dot[:, :, 14, 14] = 1.0
    made = moved(dot, Augmentation(translate=0.25))
    rows = (made.sum((1, 3)) * torch.arange(28)).sum(1) / made.sum((1, 2, 3))
    assert rows.min() >= 14 - 7 - 1e-3
    assert rows.max() <= 14 + 7 + 1e-3
    assert rows.max() - rows.min() > 10


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 10, 7), (1, 2, 5), (2, 1, 1)])
def test_the_compiled_loop_moves_images_as_torch_does(shape: tuple[int, ...], threads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, *shape), generator=generator, dtype=torch.uint8)
    picked = torch.tensor([5, 0, 0, 3, 1, 2, 4, 5, 5])
    normalize = Normalizer(40.0, 70.0)
    for how in (
        Augmentation(),
        Augmentation(rotate=10, translate=0.1, scale=0.1),
        Augmentation(rotate=180, translate=1, scale=0.9, shear=60),
    ):
        maps = draw(how, len(picked), generator)
        expected = normalize(warp(images[picked].float(), maps))
        with mock.patch("nas_mnist.engine.warp.threads", return_value=threads):
            compiled = Warp(images, normalize)
            made = compiled(picked, compiled.lines(maps))
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "muon", "adamw"])
def test_a_network_of_weights_alone_is_trained(optimizer: Any, tiny_data: DataSet) -> None:
    block = {"kind": "conv", "channels": 4, "norm": "none"}
    bare = Architecture.make({"blocks": [block], "head": {"bias": False}})
    recipe = Recipe(epochs=1, batch_size=16, optimizer=optimizer, learning_rate=0.01, average=0.9)
    for plain in (False, True):
        model = build(bare, 0)
        before = next(model.parameters()).clone()
        (result,) = train(model, tiny_data.train, recipe, seed=0, plain=plain)
        assert math.isfinite(result.train_loss)
        assert not torch.equal(next(model.parameters()), before)


def test_a_trained_network_has_memory_of_its_own(tiny_data: DataSet) -> None:
    model, _ = run(Recipe(epochs=1, batch_size=16, average=0.9), tiny_data)
    for tensor in model.state_dict().values():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_those_who_add_seeds_to_one_folder_wait_for_each_other(
    tiny_data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cpu")
    runs = retrain(STILL, PLAIN, tiny_data, seeds=(0, 1, 2, 3), device=device, last_only=True)
    facts = facts_of("own", STILL, PLAIN, tiny_data, "cpu", 20_000) | {"command": "own"}
    first = Results(tmp_path, "own", facts)
    first.add(runs[0])

    def slowly(path: Path, content: bytes) -> None:
        time.sleep(0.05)
        write_bytes(path, content)

    monkeypatch.setattr("nas_mnist.training.run_store.write_bytes", slowly)
    several = [Results(tmp_path, "own", facts, first.folder) for _ in runs[1:]]
    with ThreadPoolExecutor() as pool:
        list(pool.map(Results.add, several, runs[1:]))
    assert first.seeds == {0, 1, 2, 3}
    assert len((first.folder / "epochs.csv").read_text().splitlines()) == 1 + 4 * PLAIN.epochs


BAD_RECIPES = [
    ({"epochs": 0}, "epochs: 0 (input should be greater than or equal to 1)"),
    ({"epochs": 21}, "epochs: 21 (input should be less than or equal to 20)"),
    ({"epochs": "20"}, "epochs: '20' (input should be a valid integer)"),
    ({"batch_size": 0}, "batch_size: 0 (input should be greater than or equal to 1)"),
    ({"optimizer": "adam"}, "optimizer: 'adam' (input should be 'sgd', 'muon' or 'adamw')"),
    ({"learning_rate": 0}, "learning_rate: 0 (input should be greater than 0)"),
    ({"learning_rate": -1.0}, "learning_rate: -1.0 (input should be greater than 0)"),
    ({"learning_rate": float("nan")}, "learning_rate: nan (input should be a finite number)"),
    ({"momentum": 1.0}, "momentum: 1.0 (input should be less than 1)"),
    ({"weight_decay": -1e-3}, "weight_decay: -0.001 (input should be greater than or equal to 0)"),
    ({"schedule": "step"}, "schedule: 'step' (input should be 'constant', 'cosine' or 'linear')"),
    ({"warmup": 1.0}, "warmup: 1.0 (input should be less than 1)"),
    ({"label_smoothing": 1.0}, "label_smoothing: 1.0 (input should be less than 1)"),
    ({"average": 1.0}, "average: 1.0 (input should be less than 1)"),
    ({"dropout": 0.1}, "dropout: unknown field"),
    ({"augmentation": {"flip": True}}, "augmentation.flip: unknown field"),
    (
        {"augmentation": {"rotate": 181}},
        "augmentation.rotate: 181 (input should be less than or equal to 180)",
    ),
    ({"augmentation": {"scale": 1.0}}, "augmentation.scale: 1.0 (input should be less than 1)"),
    (
        {"nesterov": True, "optimizer": "adamw"},
        "nesterov: true needs optimizer 'sgd' or 'muon' and a momentum above 0",
    ),
    (
        {"nesterov": True, "momentum": 0.0},
        "nesterov: true needs optimizer 'sgd' or 'muon' and a momentum above 0",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "said"), BAD_RECIPES, ids=[said.split(":")[0] for _, said in BAD_RECIPES])
def test_a_recipe_that_cannot_be_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        make_recipe(fields, "my.toml")
    assert str(refused.value) == f"my.toml: {said}"


def test_the_packages_recipes() -> None:
    seed, default = load_recipe("seed"), load_recipe("default")
    assert (seed.epochs, seed.batch_size, seed.learning_rate, seed.momentum) == (20, 64, 0.01, 0.9)
    assert (seed.optimizer, seed.augmentation.off, seed.average, seed.weight_decay) == ("sgd", True, 0, 0)
    assert default.epochs <= 20
    assert schedule(default, 1.0) == pytest.approx(0, abs=1e-12)
    assert not default.augmentation.off
    assert default.average > 0
    small, tiny = load_recipe("small"), load_recipe("tiny")
    assert small.augmentation == default.augmentation
    assert (tiny.epochs, tiny.batch_size, tiny.augmentation.rotate) == (20, 32, small.augmentation.rotate / 2)
    assert tiny.model_copy(update={"augmentation": small.augmentation}) == small
    with pytest.raises(InputError, match=r"recipe: 'fast' is not known \(use default, seed, small, tiny or"):
        load_recipe("fast")


def test_a_recipe_with_other_fields() -> None:
    tiny = load_recipe("tiny")
    changed = load_recipe("tiny:learning_rate=0.5, augmentation.rotate = 3,schedule=linear,nesterov=false")
    said = {
        "learning_rate": 0.5,
        "augmentation": tiny.augmentation.model_dump() | {"rotate": 3.0},
        "schedule": "linear",
        "nesterov": False,
    }
    assert changed.model_dump() == tiny.model_dump() | said


def test_another_number_of_epochs_is_another_recipe() -> None:
    assert PLAIN.with_epochs(3).epochs == 3
    assert PLAIN.with_epochs(3).digest != PLAIN.digest
    assert PLAIN.with_epochs(2).digest == PLAIN.digest


def test_mean_deviation_and_interval_by_hand() -> None:
    one = summarise([0.99])
    assert (one.runs, one.mean, one.std, one.interval) == (1, 0.99, None, None)
    three = summarise([0.994, 0.995, 0.996])
    assert three.mean == pytest.approx(0.995)
    assert three.std == pytest.approx(0.001)
    # Student's t for 2 degrees of freedom, 97.5 %: 4.302653
    half = 4.302653 * 0.001 / math.sqrt(3)
    assert three.interval == pytest.approx((0.995 - half, 0.995 + half), abs=1e-9)
    same = summarise([0.99, 0.99])
    assert (same.std, same.interval) == (0, (0.99, 0.99))


LIMITS = Recipe(learning_rate=100.0, augmentation=Augmentation(rotate=180, translate=1, scale=0.9, shear=60))


@pytest.mark.parametrize(
    "recipe", [load_recipe("default"), load_recipe("seed"), LIMITS], ids=["default", "seed", "limits"]
)
def test_a_recipe_is_varied_around_itself(recipe: Recipe) -> None:
    assert vary(recipe, Replay(unvaried(recipe))) == recipe
    seen = set()
    for seed in range(200):
        draws = RandomDraws(random.Random(seed))
        varied = vary(recipe, draws)
        assert set(draws.draws) == {*FACTORS, *VALUES} == set(unvaried(recipe))
        fixed = {"learning_rate", "augmentation", "label_smoothing", "average"}
        assert varied.model_dump(exclude=fixed) == recipe.model_dump(exclude=fixed)
        seen.add(varied.digest)
    assert len(seen) > 50


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_device_without_memory_is_a_training_that_failed(
    five_thousand: DataSet, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def no_memory(*_: object) -> None:
        raise error

    monkeypatch.setattr("nas_mnist.training.loop.Step.run", no_memory)
    with pytest.raises(TrainingError, match="out of memory"):
        run(Recipe(epochs=1), five_thousand)
