"""MNIST and its fallback: origin, split, fingerprints, and errors in one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from conftest import FULL_MNIST, TINY_SPACE, Runner, needs_full_mnist

from nas_mnist.core.errors import InputError
from nas_mnist.data import dataset as data
from nas_mnist.data.dataset import DataSet, Images, stratified

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def fake_mnist(folder: Path, **contents: bytes | None) -> Path:
    """A folder with MNIST's four file names; ``contents`` by the first letters, None leaves a file out."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FILES:
        content = next((contents[start] for start in contents if name.startswith(start)), b"garbage")
        if content is not None:
            (raw / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module", params=["mnist-5k", pytest.param("mnist", marks=needs_full_mnist)])
def loaded(request: pytest.FixtureRequest) -> DataSet:
    return data.load(request.param, Path(FULL_MNIST) if request.param == "mnist" and FULL_MNIST else None)


SIZES = {"mnist": (50_000, 10_000, 10_000), "mnist-5k": (3_473, 694, 833)}  # train, val, test


def positions(part: torch.Tensor, whole: torch.Tensor) -> list[int]:
    """Where in ``whole`` the images of ``part`` are, found by their bytes."""
    where: dict[bytes, list[int]] = {}
    for position, image in enumerate(whole.flatten(1).numpy()):
        where.setdefault(image.tobytes(), []).append(position)
    return [where[image.tobytes()].pop(0) for image in part.flatten(1).numpy()]


def test_split_has_the_promised_sizes_and_an_equal_share_of_every_class(loaded: DataSet) -> None:
    train, val = loaded.split()
    test = loaded.read_test()
    assert (len(train), len(val), len(test)) == SIZES[loaded.name]
    for part in (train, val, test):
        assert part.images.shape == (len(part), 1, 28, 28)
        assert (part.images.dtype, part.labels.dtype) == (torch.uint8, torch.int64)
        assert part.labels.unique().tolist() == list(range(10))
    assert (loaded.shape, loaded.classes) == ((1, 28, 28), 10)
    exact = torch.bincount(loaded.train.labels) * len(val) / len(loaded.train)
    assert (torch.bincount(val.labels) - exact).abs().max() < 1


def test_split_is_disjoint_and_complete_and_keeps_the_labels_with_their_images(loaded: DataSet) -> None:
    train, val = loaded.split()
    found = positions(torch.cat([train.images, val.images]), loaded.train.images)
    assert sorted(found) == list(range(len(loaded.train)))
    train, val = loaded.split()  # the same again
    assert torch.equal(loaded.train.images[found], torch.cat([train.images, val.images]))
    assert torch.equal(loaded.train.labels[found], torch.cat([train.labels, val.labels]))


def test_fingerprint_is_of_the_training_images(five_thousand: DataSet) -> None:
    train = five_thousand.train
    changed = Images(train.images.clone(), train.labels)
    changed.images[17, 0, 3, 3] ^= 1
    fields = vars(five_thousand)
    assert five_thousand.fingerprint == data.load("mnist-5k").fingerprint
    assert DataSet(**fields | {"train": changed}).fingerprint != five_thousand.fingerprint
    relabelled = Images(train.images, (train.labels + 1) % 10)
    assert DataSet(**fields | {"train": relabelled}).fingerprint != five_thousand.fingerprint


@pytest.mark.parametrize("counts", [[1, 1, 1], [7, 0, 5], [100, 3, 31], [10, 10, 11, 1], [1, 5]])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.34, 0.5, 1.0])
def test_stratified_parts_are_sorted_disjoint_complete_and_fair(counts: list[int], share: float) -> None:
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    held_out = int(len(labels) * share)
    kept, held = stratified(labels, held_out, seed=3)
    assert len(held) == held_out
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(len(labels)))
    for part in (kept, held):
        assert part.tolist() == sorted(part.tolist())
    exact = torch.bincount(labels) * held_out / len(labels)
    assert (torch.bincount(labels[held], minlength=len(counts)) - exact).abs().max() < 1


def test_the_only_image_of_a_class_is_held_out_last() -> None:
    labels = torch.tensor([0, 1, 1, 2, 2])
    assert [0 in stratified(labels, count, 0)[1] for count in range(1, 6)] == [False] * 4 + [True]


def test_another_seed_holds_out_other_images() -> None:
    labels = torch.arange(500) % 10
    assert not torch.equal(stratified(labels, 60, 0)[1], stratified(labels, 60, 1)[1])


def test_five_thousand_images_of_the_fallback_are_all_there_once(five_thousand: DataSet) -> None:
    test = five_thousand.read_test()
    assert len(five_thousand.train) + len(test) == 5_000
    counts = torch.bincount(five_thousand.train.labels) + torch.bincount(test.labels)
    assert counts.tolist() == [500] * 10
    assert five_thousand.train.images.max() == 255
    assert five_thousand.note.startswith("NOT FULL MNIST")


def test_without_a_way_to_download_the_fallback_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    found = data.load("mnist")  # every test's proxy refuses
    assert found.name == "mnist-5k"
    assert found.note == data.FALLBACK_NOTE
    assert "5,000" in found.source
    assert re.search(
        r"cannot be downloaded: .*: Connection refused; --data-dir or NAS_MNIST_DATA", found.source
    )
    kept = [path.name for path in (tmp_path / "empty" / "nas_mnist").iterdir()]
    assert kept == ["read"]  # the parsed 5,000 images; no half download


def test_a_folder_that_was_asked_for_has_no_fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="--data-dir"):
        data.load("mnist", tmp_path)
    monkeypatch.setenv("NAS_MNIST_DATA", str(tmp_path))
    with pytest.raises(InputError, match="NAS_MNIST_DATA"):
        data.load("mnist")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    folder = fake_mnist(tmp_path / "data", **{name: None})
    missing = folder / "MNIST" / "raw" / name
    with pytest.raises(InputError, match=f"{missing} is missing"):
        data.load("mnist", folder)
    missing.mkdir()  # a folder in its place
    with pytest.raises(InputError, match=f"{missing} is missing"):
        data.load("mnist", folder)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\0\0\x08\x03" + b"\0" * 100])
def test_a_corrupt_training_file_is_named(content: bytes, tmp_path: Path) -> None:
    folder = fake_mnist(tmp_path / "data", train=content)
    with pytest.raises(InputError, match=rf"{FILES[0]} is truncated or corrupt[^\n]*$"):
        data.load("mnist", folder)


def link_full(folder: Path, *names: str) -> None:
    """Replace files of a fake folder by those of the real set."""
    for name in names:
        fake = folder / "MNIST" / "raw" / name
        fake.unlink(missing_ok=True)
        fake.symlink_to((Path(str(FULL_MNIST)) / "MNIST" / "raw" / name).absolute())


@needs_full_mnist
@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_is_named(name: str, tmp_path: Path) -> None:
    whole = (Path(str(FULL_MNIST)) / "MNIST" / "raw" / name).read_bytes()
    folder = fake_mnist(tmp_path / "data", **{name: whole[: min(len(whole) - 1, 1_000_000)]})
    link_full(folder, *(other for other in FILES if other != name))
    with pytest.raises(InputError, match=f"{name} is truncated or corrupt"):
        data.load("mnist", folder).read_test()


@needs_full_mnist
@pytest.mark.usefixtures("one_process")
def test_broken_test_files_are_read_only_to_judge_a_winner(invoke: Runner, work: Path) -> None:
    folder = fake_mnist(work / "data")
    link_full(folder, *FILES[:2])
    (work / "space.toml").write_text('[[stages]]\nblocks = 1\nchannels = 1\ndownsample = "stride"\n')
    (work / "fast.toml").write_text("batch_size = 1000\n")
    asked = ["--data-dir", folder, "--space", "space.toml", "--recipe", "fast.toml", "--trials", 1]
    asked += ["--epochs", 1, "--device", "cpu", "--workers", 1, "--finalists", 1, "--max-params", 1_000]
    ended = invoke("search", *asked, "--no-retrain")
    assert (ended.code, ended.err) == (0, "")
    assert "60,000 images to train" in ended.out
    judged = invoke("search", *asked)
    reproduced = invoke("reproduce", "reference", "--data-dir", folder, "--device", "cpu")
    for ended in (judged, reproduced):
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert "t10k-images-idx3-ubyte is truncated or corrupt" in ended.err
    assert not (work / "reports" / "reference").exists()


def test_choosing_candidates_never_reads_the_test_images(tmp_path: Path, tiny_data: DataSet) -> None:
    import optuna

    from nas_mnist import Budget, SearchSpace
    from nas_mnist.recipes.recipe import Recipe
    from nas_mnist.study.candidate import CandidateSpace
    from nas_mnist.study.objective import Objective
    from nas_mnist.training.final import retrain

    def read() -> Images:
        raise AssertionError("the test images were read")

    guarded = DataSet(**vars(tiny_data) | {"read_test": read})
    train, val = guarded.split()
    recipe = Recipe(epochs=1, batch_size=60)
    space = SearchSpace.from_toml(TINY_SPACE)
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/s.db", direction="maximize")
    candidates = CandidateSpace(space, Budget(20_000), recipe)
    study.optimize(Objective(candidates, train, val, seed=0), n_trials=2)
    assert study.best_trial.user_attrs["verdict"] == "trained"
    architecture = space.draw(optuna.trial.FixedTrial(study.best_params), Budget(20_000))
    with pytest.raises(AssertionError, match="the test images were read"):
        retrain(architecture, recipe, guarded, seeds=[0], device=torch.device("cpu"), last_only=True)
