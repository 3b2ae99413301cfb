"""Training: repeatable, a generator, and honest about what it scores."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_mnist import Architecture
from nas_mnist.core.errors import InputError
from nas_mnist.core.fileio import write_bytes
from nas_mnist.data.dataset import DataSet, Images
from nas_mnist.data.normalize import Normalizer
from nas_mnist.engine.backend import Engine
from nas_mnist.models.network import Network, build
from nas_mnist.recipes.recipe import Augmentation, Recipe, load_recipe
from nas_mnist.training.evaluate import evaluate
from nas_mnist.training.final import retrain
from nas_mnist.training.jobs import RetrainJob, Source, retrain_seeds
from nas_mnist.training.loop import EpochResult, TrainingError, train, train_together
from nas_mnist.training.requirements import summarise
from nas_mnist.training.run_store import RunStore, metadata_of


def small(dropout: float = 0.0, **fields: Any) -> Architecture:
    blocks: list[dict[str, Any]] = [
        {"kind": "conv", "channels": 6, "stride": 2, "dropout": dropout},
        {"kind": "residual", "body": [{"kind": "separable", "channels": 6, "norm": "after"}]},
        {"kind": "repeat"},
        {"kind": "pool"},
    ]
    return Architecture.make({"blocks": blocks} | fields)


SMALL, STILL = small(dropout=0.1), small(head={"norm": True})
PLAIN = Recipe(epochs=2, batch_size=60, learning_rate=0.05)
RICH = Recipe(
    epochs=2, batch_size=50, learning_rate=0.1, nesterov=True, weight_decay=1e-3, schedule="linear",
    warmup=0.3, label_smoothing=0.1, average=0.9,
    augmentation=Augmentation(rotate=10, translate=0.1, scale=0.1, shear=5),
)  # fmt: skip
ADAM = Recipe(epochs=2, batch_size=60, optimizer="adamw", learning_rate=0.01)
RECIPES = {"plain": PLAIN, "rich": RICH, "adamw": ADAM}


def run(recipe: Recipe, data: DataSet, seed: int = 0, **options: Any) -> tuple[Network, list[EpochResult]]:
    train_data, val_data = data.split()
    model = build(SMALL, seed)
    return model, list(train(model, train_data, recipe, seed=seed, score_on=val_data, **options))


def without_times(results: list[EpochResult]) -> list[EpochResult]:
    return [replace(result, seconds=0) for result in results]


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(name: str, tiny_data: DataSet) -> None:
    results = []
    for seed in (3, 3, 4):
        torch.rand(7)  # drawn before, which changes nothing
        results.append(run(RECIPES[name], tiny_data, seed))
    first, again, other = results
    assert without_times(first[1]) == without_times(again[1])
    for ours, theirs in zip(first[0].state_dict().values(), again[0].state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert [r.train_loss for r in first[1]] != [r.train_loss for r in other[1]]
    train_data, val_data = tiny_data.split()  # the model ends with the weights that were scored
    assert evaluate(first[0], val_data, Normalizer.of(train_data.images)) == first[1][-1].score


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
    _, results = run(RECIPES[name].model_copy(update={"epochs": 3, "batch_size": 20}), five_thousand)
    assert results[-1].train_loss < 0.9 * results[0].train_loss
    assert results[-1].score is not None
    assert results[-1].score.accuracy > 0.4  # a guess has 0.1


@pytest.mark.parametrize("engine", ["auto", "torch"])
@pytest.mark.parametrize("name", ["rich", "adamw"])
def test_seeds_trained_together_learn_what_they_learn_alone(
    name: str, engine: Engine, tiny_data: DataSet
) -> None:
    train_data, val_data = tiny_data.split()
    seeds, recipe, normalize = (3, 4), RECIPES[name], Normalizer.of(train_data.images)
    models = [build(STILL, seed) for seed in seeds]
    together = list(train_together(models, train_data, recipe, seeds=seeds, score_on=val_data, engine=engine))
    for copy, seed in enumerate(seeds):
        alone = build(STILL, seed)
        results = list(train(alone, train_data, recipe, seed=seed, score_on=val_data, engine=engine))
        ours = [epoch[copy] for epoch in together]
        assert [r.train_loss for r in ours] == pytest.approx([r.train_loss for r in results], rel=1e-3)
        assert evaluate(models[copy], val_data, normalize, engine=engine) == ours[-1].score
        if name == "adamw":  # a gradient that is zero but for rounding makes a whole step
            continue
        for one, other in zip(models[copy].parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0.01, atol=1e-3)


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
    """With the rate of its last step; a remainder that fills no batch is left out."""
    recipe = Recipe(epochs=4, batch_size=70, learning_rate=0.2, schedule="linear")
    _, results = run(recipe, tiny_data)
    assert [(r.epoch, r.images) for r in results] == [(epoch, 280) for epoch in (1, 2, 3, 4)]
    assert [r.learning_rate for r in results] == pytest.approx([0.15, 0.1, 0.05, 0.0])
    for result in results:
        assert result.seconds > 0
        assert result.score is not None
        assert (result.score.count, math.isfinite(result.score.loss)) == (60, True)


def test_epochs_that_are_named_are_scored_and_the_last_one(tiny_data: DataSet) -> None:
    recipe = RICH.with_epochs(4)
    model, every = run(recipe, tiny_data)
    other, some = run(recipe, tiny_data, eval_epochs={2})
    assert [r.score for r in some] == [None, every[1].score, None, every[3].score]
    assert [r.train_loss for r in some] == [r.train_loss for r in every]
    for ours, theirs in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_without_images_to_score_on_there_is_no_score(tiny_data: DataSet) -> None:
    assert [r.score for r in train(build(SMALL, 0), tiny_data.train, PLAIN, seed=0)] == [None, None]


def test_the_default_recipe_takes_small_steps_on_small_data(tiny_data: DataSet) -> None:
    (result, *_) = train(build(SMALL, 0), tiny_data.train, load_recipe("default").with_epochs(2), seed=0)
    assert result.images == 360  # 40 steps of 9 images


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_a_network_of_weights_alone_is_trained(optimizer: Any, engine: Engine, tiny_data: DataSet) -> None:
    block = {"kind": "conv", "channels": 4, "norm": "none"}
    model = build(Architecture.make({"blocks": [block], "head": {"bias": False}}), 0)
    recipe = Recipe(epochs=1, batch_size=16, optimizer=optimizer, learning_rate=0.01, average=0.9)
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
    tiny_data: DataSet, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def no_memory(*_: object) -> None:
        raise error

    monkeypatch.setattr("nas_mnist.training.loop.TrainStep.run", no_memory)
    with pytest.raises(TrainingError, match="out of memory"):
        run(PLAIN, tiny_data)


@pytest.mark.parametrize("engine", ["auto", "torch"])
@pytest.mark.parametrize("count", [10, 79])
def test_few_small_images_are_trained_in_batches_of_two_and_more(count: int, engine: str) -> None:
    blocks = [
        {"kind": "conv", "channels": 4, "stride": 4, "activation": "silu"},
        {"kind": "pool"},  # to a map of 1 x 1
        {"kind": "conv", "channels": 4, "kernel": 1, "activation": "gelu"},
    ]
    model = build(Architecture.make({"input_shape": [1, 8, 8], "blocks": blocks}), seed=0)
    images = torch.randint(
        256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    data = Images(images, torch.arange(count) % 10)
    for name in ("default", "small", "tiny"):
        recipe = load_recipe(name).with_epochs(1)
        assert recipe.scaled_to(count).batch_size >= 2
        results = list(train(model, data, recipe, seed=0, score_on=data, engine=engine))
        assert results[-1].images >= count - 1
        assert math.isfinite(results[-1].score.loss)


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_batches_of_one_image_are_refused_where_they_are_normalised(engine: str, tiny_data: DataSet) -> None:
    few = tiny_data.train.take(torch.arange(3))
    with pytest.raises(InputError, match=r"batch_size 1 leaves .* \(use at least 2\)"):
        next(train(build(SMALL, 0), few, Recipe(batch_size=1), seed=0, engine=engine))
    plain = Architecture.make({"blocks": [{"kind": "conv", "channels": 2, "norm": "none"}]})
    assert list(train(build(plain, 0), few, Recipe(epochs=1, batch_size=1), seed=0, engine=engine))
