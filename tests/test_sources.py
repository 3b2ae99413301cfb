"""Data sets from arrays: IDX folders, NPZ files, and the sets of torchvision."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nas_mnist.core.errors import InputError
from nas_mnist.data.dataset import load
from nas_mnist.data.idx import read_idx
from nas_mnist.data.npz import read_npz
from nas_mnist.data.torchvision_sets import TORCHVISION

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


COLOURS = np.random.default_rng(1).integers(0, 256, (40, 9, 12, 3), dtype=np.uint8)
FORMS = {  # of the same images
    "grey": (IMAGES, lambda x: x),
    "one channel": (IMAGES, lambda x: x[..., None]),
    "one channel first": (IMAGES, lambda x: x[:, None]),
    "rows": (IMAGES[:, :, :9], lambda x: x.reshape(40, -1)),
    "0 to 1": (IMAGES, lambda x: (x / 255).astype(np.float32)),
    "floats": (IMAGES, lambda x: x.astype(np.float64)),
    "integers": (IMAGES, lambda x: x.astype(np.int64)),
    "yes and no": (np.where(IMAGES > 99, 255, 0), lambda x: x > 99),
    "colour": (COLOURS, lambda x: x),
    "colour, channels first": (COLOURS, lambda x: x.transpose(0, 3, 1, 2)),
    "colourless": (IMAGES, lambda x: np.repeat(x[..., None], 3, axis=3)),
}


@pytest.mark.parametrize("form", FORMS)
def test_images_are_read_in_every_usual_form(work: Path, form: str) -> None:
    images, change = FORMS[form]
    array = change(images)
    data = load(f"npz:{write_npz(work / 'own.npz', x_train=array, x_test=array[:10])}")
    wanted = images.transpose(0, 3, 1, 2) if images.ndim == 4 else images[:, None]
    assert (data.train.images.numpy() == wanted).all()
    assert (data.read_test().images.numpy() == wanted[:10]).all()
    assert data.train.images.is_contiguous()
    assert ("40 colour images of" in data.source) == (images.ndim == 4)


X, Y, X2, Y2 = IMAGES, LABELS, IMAGES[:12], LABELS[:12]
KEYS = {  # files with their arrays; images to train and to test; a note
    "MedMNIST": (
        {"a.npz": {"train_images": X, "train_labels": Y[:, None], "val_images": X2, "val_labels": Y2[:, None],
                   "test_images": X2, "test_labels": Y2[:, None]}},
        (52, 12), "its validation part is used for training",
    ),
    "no test part": ({"a.npz": {"images": X, "labels": Y}}, (34, 6), "6 more are held out"),
    "a validation part only": (
        {"a.npz": {"X_train": X, "y_train": Y, "X_valid": X2, "y_valid": Y2}},
        (40, 12), "its validation part is the test part",
    ),
    "test images without labels": (
        {"a.npz": {"xtrain": X, "ytrain": Y, "xtest": X2}}, (34, 6), "a.npz:xtest has no labels",
    ),
    "without names": ({"a.npz": {"arr_0": X, "arr_1": Y}}, (34, 6), "6 more are held out"),
    "an array a file": (
        {"k49-train-imgs.npz": {"arr_0": X}, "k49-train-labels.npz": {"arr_0": Y},
         "k49-test-imgs.npz": {"arr_0": X2}, "k49-test-labels.npz": {"arr_0": Y2}},
        (40, 12), "",
    ),
    "a file a part": (
        {"train.npz": {"data": X, "target": Y}, "test.npz": {"data": X2, "target": Y2}}, (40, 12), "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("whole", [False, True])
def test_arrays_are_found_under_any_names_that_are_clear(work: Path, keys: str, whole: bool) -> None:
    files, counts, note = KEYS[keys]
    (work / "own").mkdir()
    for name, arrays in files.items():
        np.savez(work / "own" / name, **arrays)
    data = load("npz:own" if whole else f"npz:own/{min(files)}")
    assert (len(data.train), len(data.read_test())) == counts
    assert (data.classes, data.own_names) == (3, ())
    assert note in data.source


def test_npy_files_and_a_folder_of_several_sets(work: Path) -> None:
    for name, array in {"x_train": X, "y_train": Y, "x_test": X2, "y_test": Y2}.items():
        np.save(work / f"{name}.npy", array)
    assert len(load("npz:x_train.npy").read_test()) == len(load("npz:.").read_test()) == 12
    write_npz(work / "own.npz")
    with pytest.raises(InputError, match=r"holds several data sets: x_test.npy, own.npz \(use one"):
        load("npz:.")


TOO_LARGE = np.zeros((2, 65, 9), dtype=np.uint8)
BAD_NPZ = {
    "normalised": ({"x_train": IMAGES / 128 - 1}, "x_train: images are float64 from -1 to 0.99"),
    "another scale": (
        {"x_train": IMAGES // 16 * 1.0},
        "from 0 to 15 (use 0 to 255: ((images - images.min())",
    ),
    "transparency": (
        {"x_train": np.zeros((40, 9, 12, 4), dtype=np.uint8)},
        "uint8 [40, 9, 12, 4] (use [N, H, W], [N, H, W, 3] or [N, 3, H, W]; images[..., :3] leaves",
    ),
    "rows of colours": ({"x_train": np.zeros((40, 192), np.uint8)}, "reshape(-1, H, W, 3)"),
    "too large": ({"x_train": TOO_LARGE, "y_train": LABELS[:2]}, "65 x 9 pixels"),
    "labels too few": ({"y_train": LABELS[:3]}, "labels are uint8 [3]"),
    "one-hot labels": ({"y_train": np.eye(3)[LABELS]}, "labels are float64 [40, 3]"),
    "parts of labels": ({"y_train": LABELS / 2}, "labels are float64 [40] (use one whole number or word"),
    "labels are objects": ({"y_train": np.array([{}] * 40)}, "no NPZ file of plain arrays"),
    "too many classes": (
        {"x_train": np.zeros((1001, 9, 12), np.uint8), "y_train": np.arange(1001)},
        "1,001 cl",
    ),
    "no images": ({"x_train": IMAGES[:0], "y_train": LABELS[:0]}, "0 images"),
    "five images": ({"x_train": IMAGES[:5], "y_train": LABELS[:5]}, "has 5 images (use at least 8, or 6"),
    "one class": ({"y_train": LABELS * 0}, "has one class, '0' (use at least two)"),
    "another class in the test": ({"y_test": LABELS[:10] + 5}, "test images of class '5', which no training"),
    "another size in the test": (
        {"x_test": np.zeros((10, 9, 9), np.uint8)},
        "images of (9, 9) pixels, not (9, 12)",
    ),
    "two of a kind": (
        {"train_imgs": IMAGES},
        "own.npz:x_train and own.npz:train_imgs may both be train images",
    ),
    "an unprintable class": ({"y_train": np.array(["a", "\n"] * 20)}, "printable characters"),
}


@pytest.mark.parametrize("what", BAD_NPZ)
def test_npz_that_cannot_be_used_is_refused_in_one_line(work: Path, what: str) -> None:
    changes, says = BAD_NPZ[what]
    write_npz(work / "own.npz", **changes)
    with pytest.raises(InputError) as refused:
        load("npz:own.npz")
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


NAMED = {
    "a gap": (np.array([0, 1, 3])[LABELS], ("0", "1", "3")),
    "from one": (LABELS + 1.0, ("1", "2", "3")),
    "below zero": (LABELS.astype(int) * 10 - 10, ("-10", "0", "10")),
    "words": (np.array(["frog", "ant", "cat"])[LABELS], ("ant", "cat", "frog")),
    "bytes": (np.array([b"10", b"9", b"8"])[LABELS], ("8", "9", "10")),
}


@pytest.mark.parametrize("kind", NAMED)
def test_labels_become_numbers_and_keep_their_names(work: Path, kind: str) -> None:
    labels, names = NAMED[kind]
    data = load(f"npz:{write_npz(work / 'own.npz', y_train=labels, y_test=labels[:10])}")
    assert data.class_names == names
    said = [data.class_names[one] for one in data.train.labels]
    assert said == [str(one.decode() if isinstance(one, bytes) else one).removesuffix(".0") for one in labels]
    assert torch.equal(data.read_test().labels, data.train.labels[:10])


def test_a_class_of_one_image_is_trained_and_a_class_without_test_image_is_no_error(work: Path) -> None:
    labels = np.array([7, *[0, 1, 2] * 13])
    np.savez(work / "own.npz", x=IMAGES, y=labels)
    data = load("npz:own.npz")
    train, val = data.split()
    assert (data.train.labels == 3).sum() == (train.labels == 3).sum() == 1
    assert data.own_names == ("0", "1", "2", "7")
    assert not {3}.intersection([*val.labels.tolist(), *data.read_test().labels.tolist()])


def test_test_labels_are_checked_before_a_search_and_test_images_when_they_are_read(work: Path) -> None:
    with pytest.raises(InputError, match="test images of class '5'"):
        load(f"idx:{write_idx(work / 'own', test_labels=LABELS + 5)}")
    folder = write_idx(work / "other")
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((40, 9, 9))))
    data = load(f"idx:{folder}")
    with pytest.raises(InputError, match="the test images are 1 x 9 x 9, the training images 1 x 9 x 12"):
        data.read_test()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("idx:nowhere", "nowhere/train-images-idx3-ubyte is missing"),
        ("npz:nowhere.npz", "nowhere.npz does not exist"),
        ("idx:", "dataset: 'idx:' is not known"),
        ("folder:nowhere", "folder:nowhere does not exist (use DIR/train/CLASS/*.png"),
        ("csv:nowhere.csv", "csv:nowhere.csv does not exist"),
        ("folder:", "dataset: 'folder:' is not known (use folder:DIR)"),
        ("cifar10", "use mnist, mnist-5k, fashion-mnist"),
        ("fashion-mnist", "fashion-mnist cannot be downloaded: "),
    ],
)
def test_a_missing_data_set_is_refused_in_one_line(work: Path, name: str, says: str) -> None:
    with pytest.raises(InputError) as refused:
        load(name)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert list(work.iterdir()) == []


def test_the_kind_of_own_data_is_suggested(work: Path) -> None:
    write_idx(work / "bytes")
    for folder, file in (("pictures", "cat/1.png"), ("arrays", "train_images.npz"), ("", "rows.csv")):
        (work / folder / file).parent.mkdir(parents=True, exist_ok=True)
        (work / folder / file).touch()
    for form in ("idx:bytes", "folder:pictures", "npz:arrays", "csv:rows.csv"):
        with pytest.raises(InputError, match=f"did you mean '{form}'"):
            load(form.partition(":")[2])


def test_a_missing_file_or_array_is_named(work: Path) -> None:
    (write_idx(work / "own") / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(InputError, match="t10k-images-idx3-ubyte is missing"):
        load("idx:own")
    np.savez(work / "own.npz", x_test=IMAGES, y_test=LABELS)
    with pytest.raises(
        InputError, match=r"lacks images for training: it holds own.npz:x_test, own.npz:y_test \(np.savez"
    ):
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
        read_npz(path)
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
            read_npz(path) if path.suffix else read_idx(path.parent)
        except InputError as error:
            assert "\n" not in str(error)
        path.write_bytes(whole)


def test_every_row_of_a_table_without_names_is_read(work: Path) -> None:
    rows = [f"{label}," + ",".join(str(at % 256) for at in range(64)) for label in ("cat", "dog") * 20]
    (work / "t.csv").write_text("\n".join(rows) + "\n")
    found = load("csv:t.csv")
    assert len(found.train) + len(found.read_test()) == 40
    assert set(found.class_names) == {"cat", "dog"}


def test_a_file_with_all_parts_needs_no_files_beside_it(work: Path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 8, 8), dtype=np.uint8), np.arange(40) % 2
    parts = {"x_train": images, "y_train": labels, "x_test": images[:10], "y_test": labels[:10]}
    for name in ("own_test", "own_train"):
        np.savez(work / f"{name}.npz", **parts)
    found = load("npz:own_test.npz")
    assert (len(found.train), len(found.read_test())) == (40, 10)
