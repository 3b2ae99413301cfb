"""Data sets from files: IDX folders, NPZ files, and the sets of torchvision."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_RECIPE, Runner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nas_mnist.core.errors import InputError
from nas_mnist.data.dataset import load
from nas_mnist.data.readers import TORCHVISION, read_idx, read_npz

pytestmark = pytest.mark.usefixtures("no_figures")

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 9, 12), dtype=np.uint8)
LABELS = np.arange(40, dtype=np.uint8) % 3


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    """An array as an IDX file, of bytes (8) or of 32-bit integers (12)."""
    header = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + (array.astype(np.uint8) if kind == 8 else array.astype(">i4")).tobytes()


def write_idx(folder: Path, test_labels: np.ndarray = LABELS, pack: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    for part, labels in (("train", LABELS), ("t10k", test_labels)):
        for name, array in ((f"{part}-images-idx3-ubyte", IMAGES), (f"{part}-labels-idx1-ubyte", labels)):
            content = idx(array)
            path = folder / (f"{name}.gz" if pack else name)
            path.write_bytes(gzip.compress(content) if pack else content)
    return folder


def write_npz(path: Path, **changes: np.ndarray) -> Path:
    arrays = {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[:10], "y_test": LABELS[:10]} | changes
    np.savez_compressed(path, **arrays)
    return path


@pytest.mark.parametrize("pack", [False, True])
def test_idx_folder(work: Path, pack: bool) -> None:
    data = load(f"idx:{write_idx(work / 'own', pack=pack)}")
    assert (data.train.images.squeeze(1).numpy() == IMAGES).all()
    assert (data.train.labels.numpy() == LABELS).all()
    assert (data.shape, data.classes, len(data.read_test())) == ((1, 9, 12), 3, 40)
    train, val = data.split()
    assert (len(train), len(val)) == (34, 6)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: x[..., None]])
def test_npz_file(work: Path, wrap: Callable[[np.ndarray], np.ndarray]) -> None:
    data = load(f"npz:{write_npz(work / 'own.npz', x_train=wrap(IMAGES), y_train=LABELS.astype(np.int32))}")
    assert (data.train.images.squeeze(1).numpy() == IMAGES).all()
    assert (data.train.labels.numpy() == LABELS).all()
    assert len(data.read_test()) == 10


TOO_LARGE = np.zeros((2, 65, 9), dtype=np.uint8)
BAD_NPZ = {
    "floats": ({"x_train": IMAGES / 255}, "images are float64"),
    "colours": ({"x_train": np.zeros((40, 9, 12, 3), dtype=np.uint8)}, "images are uint8 [40, 9, 12, 3]"),
    "too large": ({"x_train": TOO_LARGE, "y_train": LABELS[:2]}, "65 x 9 pixels"),
    "labels too few": ({"y_train": LABELS[:3]}, "labels are uint8 [3]"),
    "labels are words": ({"y_train": np.array(["a"] * 40)}, "labels are <U1 [40]"),
    "labels are objects": ({"y_train": np.array([{}] * 40)}, "no NPZ file of plain arrays"),
    "negative labels": ({"y_train": LABELS.astype(int) - 1}, "labels -1 to 1"),
    "labels too great": ({"y_train": LABELS.astype(int) + 999}, "labels 999 to 1001"),
    "no images": ({"x_train": IMAGES[:0], "y_train": LABELS[:0]}, "0 images"),
    "labels from 1": ({"y_train": LABELS + 1}, "no training image of class 0 (use labels 0, 1, 2...)"),
    "one class": ({"y_train": LABELS * 0}, "one class only"),
}


@pytest.mark.parametrize("what", BAD_NPZ)
def test_npz_that_cannot_be_used_is_refused_in_one_line(work: Path, what: str) -> None:
    changes, says = BAD_NPZ[what]
    write_npz(work / "own.npz", **changes)
    with pytest.raises(InputError) as refused:
        load("npz:own.npz")
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_test_labels_are_checked_before_a_search_and_test_images_when_they_are_read(work: Path) -> None:
    with pytest.raises(InputError, match="labels of test images 5 to 7"):
        load(f"npz:{write_npz(work / 'own.npz', y_test=LABELS[:10] + 5)}")
    with pytest.raises(InputError, match="labels of test images 5 to 7"):
        load(f"idx:{write_idx(work / 'own', test_labels=LABELS + 5)}")
    data = load(f"npz:{write_npz(work / 'own.npz', x_test=np.zeros((10, 9, 9), np.uint8))}")
    with pytest.raises(InputError, match="differ from the training images in size"):
        data.read_test()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("idx:nowhere", "nowhere/train-images-idx3-ubyte is missing"),
        ("npz:nowhere.npz", "nowhere.npz does not exist"),
        ("idx:", "dataset: 'idx:' is not known"),
        ("cifar10", "use mnist, mnist-5k, fashion-mnist"),
        ("fashion-mnist", "fashion-mnist cannot be read"),
    ],
)
def test_a_missing_data_set_is_refused_in_one_line(work: Path, name: str, says: str) -> None:
    with pytest.raises(InputError) as refused:
        load(name)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert list(work.iterdir()) == []


def test_a_missing_file_or_array_is_named(work: Path) -> None:
    (write_idx(work / "own") / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(InputError, match="t10k-images-idx3-ubyte is missing"):
        load("idx:own")
    np.savez(work / "own.npz", x_test=IMAGES, y_test=LABELS)
    with pytest.raises(InputError, match="lacks x_train"):
        load("npz:own.npz")


@pytest.mark.parametrize("pack", [False, True])
def test_a_truncated_idx_file_is_refused(work: Path, pack: bool) -> None:
    name = "train-images-idx3-ubyte" + ".gz" * pack
    file = write_idx(work / "own", pack=pack) / name
    whole = file.read_bytes()
    for cut in (0, 3, 7, 15, 100, -1):
        file.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=f"{name} is no complete IDX file"):
            load(f"idx:{work / 'own'}")


def test_a_search_on_own_images(work: Path, invoke: Runner) -> None:
    write_npz(work / "own.npz", y_test=LABELS[:10])
    (work / "recipe.toml").write_text(TINY_RECIPE.replace("64", "8"))
    asked = ["--dataset", "npz:own.npz", "--device", "cpu", "--recipe", "recipe.toml", "--epochs", 1]
    ended = invoke("search", *asked, "--trials", 1, "--workers", 1, "--finalists", 1)
    assert (ended.code, ended.err) == (0, "")
    assert "npz:own.npz: 40 images of 9x12 pixels to train, 3 classes" in ended.out
    assert "parameters < 20,000" in ended.out
    assert "99.4%" not in ended.out  # that is asked of MNIST only
    assert (work / "reports" / "nas_mnist" / "report.html").is_file()


def in_torchvisions_layout(name: str, folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """A set's files as torchvision keeps them; the test images are the first half of the training images."""
    half = len(images) // 2
    for part, what, mnists in ((slice(None), "train", "train"), (slice(half), "test", "t10k")):
        if name == "qmnist":
            raw = folder / "QMNIST" / "raw"
            more = np.stack([labels[part], *[np.arange(len(labels[part]))] * 7], 1)
            files = {f"qmnist-{what}-images-idx3-ubyte": idx(images[part]),
                     f"qmnist-{what}-labels-idx2-int": idx(more, 12)}  # fmt: skip
        elif name.startswith("emnist"):
            raw = folder / "EMNIST" / "raw"
            lying, lowest = images[part].transpose(0, 2, 1), int(name == "emnist-letters")
            files = {f"{name}-{what}-images-idx3-ubyte": idx(lying),
                     f"{name}-{what}-labels-idx1-ubyte": idx(labels[part] + lowest)}  # fmt: skip
        else:
            raw = folder / TORCHVISION[name].folder / "raw"
            files = {f"{mnists}-images-idx3-ubyte": idx(images[part]),
                     f"{mnists}-labels-idx1-ubyte": idx(labels[part])}  # fmt: skip
        raw.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            (raw / file).write_bytes(content)


@pytest.mark.parametrize("name", TORCHVISION)
def test_sets_of_torchvision_are_read_from_its_files(work: Path, name: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28)).astype(np.uint8)
    in_torchvisions_layout(name, work, images, LABELS)
    data = load(name, work)
    assert (data.train.images.squeeze(1).numpy() == images).all()
    assert (data.train.labels.numpy() == LABELS).all()
    assert data.classes == 3
    assert (data.read_test().images.squeeze(1).numpy() == images[:20]).all()
    assert (data.read_test().labels.numpy() == LABELS[:20]).all()


@pytest.mark.parametrize(
    ("shape", "stored"), [((10**12, 28, 28), 99), ((40, 9, 12), 40), ((2, 9, 12), 9_999)]
)
def test_an_npz_header_of_another_size_is_refused_in_one_line(
    work: Path, shape: tuple[int, ...], stored: int
) -> None:
    path, header = write_npz(work / "own.npz"), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path) as archive:
        kept = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (kept | {"x_train.npy": header.getvalue() + bytes(stored)}).items():
            archive.writestr(name, content)
    with pytest.raises(InputError) as refused:
        read_npz(path, True)
    assert "\n" not in str(refused.value)


@given(noise=st.binary(max_size=60), place=st.floats(0, 1) | st.just(0), cut=st.booleans())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_read_or_refused_in_one_line(
    work: Path, noise: bytes, place: float, cut: bool
) -> None:
    own = write_npz(work / "own.npz"), *sorted(write_idx(work / "own").glob("train-*"))
    for path in own:
        whole = path.read_bytes()
        start = int(place * len(whole))
        path.write_bytes(whole[:start] + noise + (b"" if cut else whole[start + len(noise) :]))
        try:
            read_npz(path, True) if path.suffix else read_idx(path.parent, True)
        except InputError as error:
            assert "\n" not in str(error)
        path.write_bytes(whole)
