"""Training: repeatable, a generator, and honest about what it scores."""

from __future__ import annotations

import math
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
from nas_mnist.core.fileio import write_bytes
from nas_mnist.data.dataset import DataSet, Images
from nas_mnist.data.normalize import Normalizer
from nas_mnist.engine.backend import Engine
from nas_mnist.models.network import Network, build, stack_models, unstack_models
from nas_mnist.recipes.recipe import Augmentation, Recipe, load_recipe
from nas_mnist.training.evaluate import evaluate
from nas_mnist.training.final import retrain
from nas_mnist.training.jobs import RetrainJob, Source, retrain_seeds
from nas_mnist.training.loop import EpochResult, TrainingError, train, train_together
from nas_mnist.training.plain_step import plain_sgd, plain_step
from nas_mnist.training.requirements import summarise
from nas_mnist.training.run_store import RunStore, metadata_of
from nas_mnist.training.schedule import ema_alphas, lr_table

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
RECIPES = {"plain": PLAIN, "rich": RICH, "adamw": ADAM}


def run(recipe: Recipe, data: DataSet, seed: int = 0, **options: Any) -> tuple[Network, list[EpochResult]]:
    train_data, val_data = data.split()
    model = build(SMALL, seed)
    return model, list(train(model, train_data, recipe, seed=seed, score_on=val_data, **options))


def without_times(results: list[EpochResult]) -> list[tuple[Any, ...]]:
    """All that does not depend on the clock."""
    return [(r.epoch, r.train_loss, r.learning_rate, r.images, r.score) for r in results]


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(name: str, tiny_data: DataSet) -> None:
    first, again, other = (run(RECIPES[name], tiny_data, seed) for seed in (3, 3, 4))
    assert without_times(first[1]) == without_times(again[1])
    for ours, theirs in zip(first[0].state_dict().values(), again[0].state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert [r.train_loss for r in first[1]] != [r.train_loss for r in other[1]]


def test_numbers_do_not_depend_on_what_was_drawn_before(tiny_data: DataSet) -> None:
    first = without_times(run(RICH, tiny_data)[1])
    torch.rand(7)
    assert without_times(run(RICH, tiny_data)[1]) == first


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
    """The mean loss of every epoch of a loop of `plain_step`, and the averaged network."""
    model = build(architecture, seed)
    ema, normalize = deepcopy(model), Normalizer.of(data.images)
    optimizer: torch.optim.Optimizer = plain_sgd(model, recipe)
    if recipe.optimizer == "adamw":
        betas = recipe.momentum, 0.999
        optimizer = torch.optim.AdamW(optimizer.param_groups, betas=betas, weight_decay=0.0)
    generator, steps = torch.Generator().manual_seed(seed), len(data) // recipe.batch_size
    lrs, alphas, losses = lr_table(recipe, steps), ema_alphas(recipe, steps), []
    for _ in range(recipe.epochs):
        for picked in torch.randperm(len(data), generator=generator).split(recipe.batch_size):
            batch, done = (data.images[picked], data.labels[picked], None), len(losses)
            how: Any = {"normalize": normalize, "recipe": recipe, "lr": lrs[done], "ema_alpha": alphas[done]}
            losses.append(plain_step(model, ema, optimizer, *batch, **how).item())
    means = [sum(losses[at : at + steps]) / steps for at in range(0, len(losses), steps)]
    return means, ema


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
def test_losses_agree_with_those_of_plain_steps_for_a_hundred_steps(
    seed: int, five_thousand: DataSet
) -> None:
    data = five_thousand.train.take(torch.arange(0, 3000, 6))
    recipe = Recipe(epochs=10, batch_size=50, learning_rate=0.01, momentum=0.9, schedule="constant")
    ours = [result.train_loss for result in train(build(MIXED, seed), data, recipe, seed=seed)]
    expected, _ = plain_loop(MIXED, data, recipe, seed)
    assert expected[-1] < 0.7 * expected[0]  # there is something to agree about
    for epoch, (mine, other) in enumerate(zip(ours, expected, strict=True), 1):
        assert mine == pytest.approx(other, rel=TOLERANCE * epoch), epoch


def test_torchs_modules_train_as_plain_steps_do(five_thousand: DataSet) -> None:
    data = five_thousand.train.take(torch.arange(0, 3000, 6))
    recipe = Recipe(epochs=3, batch_size=50, learning_rate=0.01, momentum=0.9, schedule="constant")
    with mock.patch("nas_mnist.engine.backend._on_cpu", side_effect=AssertionError("our kernels")):
        ours = [r.train_loss for r in train(build(MIXED, 0), data, recipe, seed=0, engine="torch")]
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


def difference(data: Images, ours: Recipe, theirs: Recipe, engine: Engine) -> float:
    """The distance of a training's result from a plain loop's, as a share of the loop's own way."""
    model, start = build(MIXED, 0), build(MIXED, 0)
    for _ in train(model, data, ours, seed=0, engine=engine):
        pass
    _, other = plain_loop(MIXED, data, theirs, 0)
    mine, loops, first = (
        torch.cat([one.detach().flatten() for one in network.parameters()])
        for network in (model, other, start)
    )
    return float((mine - loops).norm() / (loops - first).norm())


@pytest.mark.parametrize(
    ("recipe", "engine", "most"),
    [
        pytest.param(EVERYTHING, "torch", 1e-4, id="sgd"),
        pytest.param(EVERYTHING, "auto", 5e-3, id="sgd, kernels"),  # rounding grows with every step
        # A gradient that is zero but for rounding counts in full.
        pytest.param(ADAMW, "torch", 0.01, id="adamw"),
    ],
)
def test_every_field_of_a_recipe_does_what_torch_does_by_that_name(
    recipe: Recipe, engine: Engine, most: float, five_thousand: DataSet
) -> None:
    data = five_thousand.train.take(torch.arange(0, 3000, 15))
    assert difference(data, recipe, recipe, engine) < most


@pytest.mark.parametrize("field", OTHERWISE)
def test_no_field_of_a_recipe_could_be_forgotten_unseen(field: str, five_thousand: DataSet) -> None:
    data = five_thousand.train.take(torch.arange(0, 3000, 15))
    changed = EVERYTHING.model_copy(update=OTHERWISE[field])
    assert difference(data, changed, EVERYTHING, "torch") > 1e-3


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


@pytest.mark.parametrize("engine", ["auto", "torch"])
@pytest.mark.parametrize("name", RECIPES)
def test_seeds_trained_together_learn_what_they_learn_alone(
    name: str, engine: Engine, tiny_data: DataSet
) -> None:
    train_data, val_data = tiny_data.split()
    seeds, recipe = (3, 4, 5), RECIPES[name]
    models = [build(STILL, seed) for seed in seeds]
    together = list(train_together(models, train_data, recipe, seeds=seeds, score_on=val_data, engine=engine))
    for copy, seed in enumerate(seeds):
        alone = build(STILL, seed)
        results = list(train(alone, train_data, recipe, seed=seed, score_on=val_data, engine=engine))
        ours = [epoch[copy] for epoch in together]
        assert [r.train_loss for r in ours] == pytest.approx([r.train_loss for r in results], rel=1e-3)
        assert (
            evaluate(models[copy], val_data, Normalizer.of(train_data.images), engine=engine)
            == ours[-1].score
        )
        if name == "adamw":  # a gradient that is zero but for rounding makes a whole step
            continue
        for one, other in zip(models[copy].parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0.01, atol=1e-3)


def test_networks_side_by_side_have_the_scores_they_have_apart() -> None:
    models = [build(MIXED, seed).eval() for seed in range(3)]
    whole = stack_models(models).eval()
    images = torch.rand(5, 3, 28, 28)  # one image a network
    expected = torch.cat([model(images[:, [at]]) for at, model in enumerate(models)], dim=1)
    torch.testing.assert_close(whole(images), expected)
    others = [build(MIXED, seed) for seed in range(3, 6)]
    unstack_models(whole, others)
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
    seen: list[Sequence[int]] = []

    class Recording(RetrainJob):
        def retrain(self, seeds: Sequence[int], *_: Any) -> list[Any]:
            seen.append(seeds)
            return list(seeds)

    source = Source("mnist", None, "cuda")
    job = Recording(SMALL, PLAIN, range(3, 80), source, last_only=True)
    done: list[Any] = []
    retrain_seeds(job, tiny_data, 1, lambda *_: None, done.append)
    assert done == list(range(3, 80))
    assert seen == [range(3, 35), range(35, 67), range(67, 80)]
    assert replace(job, source=source._replace(engine="torch")).seeds_at_once == 1
    assert replace(job, source=source._replace(device="cpu")).seeds_at_once == 1
    wide = Architecture.make({"blocks": [{"kind": "conv", "channels": 256}] * 3})
    assert replace(job, architecture=wide).seeds_at_once == 9  # 1.8 million numbers an image, batches of 60


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
        assert sum(map(sum, run.evaluation.confusion)) == scored.count


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
    other, last = run(RICH, tiny_data, eval_epochs=())
    assert [r.score is None for r in last] == [True, False]
    assert last[-1].score == every[-1].score
    assert [r.train_loss for r in last] == [r.train_loss for r in every]
    for ours, theirs in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_epochs_that_are_named_are_scored_and_the_last_one(tiny_data: DataSet) -> None:
    recipe = Recipe(epochs=4, batch_size=60)
    _, results = run(recipe, tiny_data, eval_epochs={2})
    _, every = run(recipe, tiny_data)
    assert [r.score is None for r in results] == [True, False, True, False]
    assert [r.score for r in results if r.score] == [every[1].score, every[3].score]


def test_without_images_to_score_on_there_is_no_score(tiny_data: DataSet) -> None:
    train_data, _ = tiny_data.split()
    results = list(train(build(SMALL, 0), train_data, PLAIN, seed=0))
    assert [r.score for r in results] == [None, None]


def test_training_can_be_abandoned_after_any_epoch(tiny_data: DataSet) -> None:
    train_data, val_data = tiny_data.split()
    epochs = train(build(SMALL, 0), train_data, RICH.with_epochs(20), seed=0, score_on=val_data)
    first = next(epochs)
    epochs.close()
    with pytest.raises(StopIteration):
        next(epochs)
    assert first.epoch == 1
    assert without_times([first]) == without_times(
        [next(train(build(SMALL, 0), train_data, RICH.with_epochs(20), seed=0, score_on=val_data))]
    )


@pytest.mark.parametrize("name", RECIPES)
def test_the_model_ends_with_the_weights_that_were_scored(name: str, tiny_data: DataSet) -> None:
    train_data, val_data = tiny_data.split()
    model, results = run(RECIPES[name], tiny_data)
    assert evaluate(model, val_data, Normalizer.of(train_data.images)) == results[-1].score


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
    train_data, val_data = tiny_data.split()
    with pytest.raises(TrainingError, match=r"loss not finite in epoch \d"):
        list(train(build(deep, 0), train_data, recipe, seed=0, score_on=val_data))


def test_the_default_recipe_takes_small_steps_on_small_data(tiny_data: DataSet) -> None:
    (result, *_) = train(build(SMALL, 0), tiny_data.train, load_recipe("default").with_epochs(2), seed=0)
    assert result.images == 360  # 40 steps of 9 images


def test_fewer_images_than_a_batch_are_refused(tiny_data: DataSet) -> None:
    train_data, _ = tiny_data.split()
    with pytest.raises(ValueError, match="batch_size 301 is more than the 300 images"):
        next(train(build(SMALL, 0), train_data, Recipe(batch_size=301), seed=0))


def test_the_reported_rate_is_that_of_the_epochs_last_step(tiny_data: DataSet) -> None:
    recipe = Recipe(epochs=4, batch_size=60, learning_rate=0.2, schedule="linear")
    _, results = run(recipe, tiny_data)
    assert [r.learning_rate for r in results] == pytest.approx([0.15, 0.1, 0.05, 0.0])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_network_of_weights_alone_is_trained(optimizer: Any, tiny_data: DataSet) -> None:
    block = {"kind": "conv", "channels": 4, "norm": "none"}
    bare = Architecture.make({"blocks": [block], "head": {"bias": False}})
    recipe = Recipe(epochs=1, batch_size=16, optimizer=optimizer, learning_rate=0.01, average=0.9)
    engines: tuple[Engine, ...] = ("auto", "torch")
    for engine in engines:
        model = build(bare, 0)
        before = next(model.parameters()).clone()
        (result,) = train(model, tiny_data.train, recipe, seed=0, engine=engine)
        assert math.isfinite(result.train_loss)
        assert not torch.equal(next(model.parameters()), before)


def test_a_trained_network_has_memory_of_its_own(tiny_data: DataSet) -> None:
    model, _ = run(Recipe(epochs=1, batch_size=16, average=0.9), tiny_data)
    for tensor in model.state_dict().values():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_processes_that_add_seeds_to_one_folder_wait_for_each_other(
    tiny_data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cpu")
    runs = retrain(STILL, PLAIN, tiny_data, seeds=(0, 1, 2, 3), device=device, last_only=True)
    metadata = metadata_of("own", STILL, PLAIN, tiny_data, "cpu", 20_000) | {"command": "own"}
    first = RunStore(tmp_path, "own", metadata)
    first.add(runs[0])

    def slowly(path: Path, content: bytes) -> None:
        time.sleep(0.05)
        write_bytes(path, content)

    monkeypatch.setattr("nas_mnist.training.run_store.write_bytes", slowly)
    several = [RunStore(tmp_path, "own", metadata, first.folder) for _ in runs[1:]]
    with ThreadPoolExecutor() as pool:
        list(pool.map(RunStore.add, several, runs[1:]))
    assert first.seeds == {0, 1, 2, 3}
    assert len((first.folder / "epochs.csv").read_text().splitlines()) == 1 + 4 * PLAIN.epochs


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


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_device_without_memory_is_a_training_that_failed(
    five_thousand: DataSet, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def no_memory(*_: object) -> None:
        raise error

    monkeypatch.setattr("nas_mnist.training.loop.TrainStep.run", no_memory)
    with pytest.raises(TrainingError, match="out of memory"):
        run(Recipe(epochs=1), five_thousand)
