"""Images from files: torchvision's sets of small grey pictures, IDX folders, NPZ files.

Every file is checked against its own header before its content is read. Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.errors import InputError

MIN_SIZE, MAX_SIZE = 8, 64  # pixels
MAX_CLASSES = 1_000
MAX_IMAGES = 10_000_000
MAX_BYTES = 1 << 31  # of one file's content

Arrays = tuple[Tensor, Tensor]  # images (N, 1, H, W) uint8, labels (N,) int64

_IDX_FILES = {True: ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
              False: ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")}  # fmt: skip
_NPZ_NAMES = {True: ("x_train", "y_train"), False: ("x_test", "y_test")}


class Known(NamedTuple):
    """A data set that torchvision downloads and verifies."""

    folder: str  # in which torchvision keeps it
    kind: str  # torchvision's class
    options: dict[str, Any]
    lowest: int  # label


TORCHVISION = {
    "fashion-mnist": Known("FashionMNIST", "FashionMNIST", {}, 0),
    "kmnist": Known("KMNIST", "KMNIST", {}, 0),
    "qmnist": Known("QMNIST", "QMNIST", {"compat": True}, 0),
    "emnist-digits": Known("EMNIST", "EMNIST", {"split": "digits"}, 0),
    "emnist-letters": Known("EMNIST", "EMNIST", {"split": "letters"}, 1),
}


def read_torchvision(name: str, folder: Path, train: bool, download: bool) -> Arrays:
    """One part of a set in `TORCHVISION`, below ``folder`` in torchvision's layout.

    Raises `InputError` where it is not there or cannot be downloaded.
    """
    from torchvision import datasets

    known = TORCHVISION[name]
    refuse_processed(folder / known.folder)
    try:
        read = getattr(datasets, known.kind)(str(folder), train=train, download=download, **known.options)
    except (OSError, RuntimeError, ValueError, AssertionError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        where = folder / known.folder
        raise InputError(f"dataset: {name} cannot be read from {where} ({reason})") from None
    images = torch.as_tensor(read.data, dtype=torch.uint8)
    labels = torch.as_tensor(read.targets).long() - known.lowest
    labels = labels[:, 0] if labels.ndim == 2 else labels  # QMNIST tells more of an image than its class
    if name.startswith("emnist"):
        images = images.transpose(1, 2).contiguous()  # stored lying on their side
    return _checked(f"dataset: {name}", images.numpy(), labels.numpy())


def refuse_processed(folder: Path) -> None:
    """Raise `InputError` where torchvision would unpickle a file from its older versions."""
    if (folder / "processed").exists():
        raise InputError(f"dataset: {folder / 'processed'} may hold pickled files (delete it)")


def read_idx(folder: Path, train: bool) -> Arrays:
    """One part of an IDX folder: MNIST's file names, plain or with .gz; raises `InputError`.

    All four files must be there, with headers that go together.
    """
    files = {part: [_find(folder, name) for name in names] for part, names in _IDX_FILES.items()}
    sizes = {part: [_idx_sizes(path) for path in paths] for part, paths in files.items()}
    for part, (images, labels) in sizes.items():
        if images[:1] != labels[:1] or images[1:] != sizes[True][0][1:]:
            counted = f"{list(images)} images and {list(labels)} labels"
            raise InputError(f"dataset: {files[part][0]} does not go with the other files ({counted})")
    where = f"dataset: {folder}"
    found = _checked(where, *(_read_idx_file(path) for path in files[train]))
    if train:  # before anything is trained
        _check_test_labels(where, found[1], _read_idx_file(files[False][1]))
    return found


def read_npz(path: Path, train: bool) -> Arrays:
    """One part of an NPZ file with x_train, y_train, x_test and y_test; raises `InputError`."""
    where = f"dataset: {path}"
    shapes: dict[str, tuple[int, ...]] = {}
    if not path.is_file():
        raise InputError(f"{where} does not exist")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            for name in (name for names in _NPZ_NAMES.values() for name in names):
                if f"{name}.npy" not in members:
                    raise InputError(f"{where} lacks {name} (needed: x_train, y_train, x_test, y_test)")
                shapes[name] = _check_member(archive, f"{name}.npy")
            found = _checked(where, *(_read_member(archive, f"{name}.npy") for name in _NPZ_NAMES[train]))
            if train:  # what is wrong with the test images is said before anything is trained
                (images, labels), wanted = (shapes[name] for name in _NPZ_NAMES[False]), found[0].shape[2:]
                if images[1:] not in (wanted, (*wanted, 1)) or images[:1] != labels[:1]:
                    told = f"x_test is {list(images)}, y_test {list(labels)}"
                    raise InputError(f"{where}: {told} (use [N, {', '.join(map(str, wanted))}] and [N])")
                _check_test_labels(where, found[1], _read_member(archive, "y_test.npy"))
            return found
    except InputError:
        raise
    except Exception as error:  # zipfile and numpy raise many kinds for files that are damaged or made up
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise InputError(f"{where} is no NPZ file of plain arrays ({reason})") from None


def _check_test_labels(where: str, labels: Tensor, tested: np.ndarray) -> None:
    """Raise `InputError` where test images are of classes that no training image has."""
    if tested.dtype.kind not in "iu" or not tested.size:
        raise InputError(f"{where}: labels of test images are {tested.dtype} {list(tested.shape)}")
    several = labels.max() > 0  # where all are of one class, that is what will be said
    if several and (tested.min() < 0 or tested.max() > labels.max()):
        told = f"{tested.min()} to {tested.max()}"
        raise InputError(f"{where}: labels of test images {told} (use 0 to {labels.max()}, as in training)")


def _check_member(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    """The shape of an array in an NPZ file, its header held against the size that the archive tells."""
    with archive.open(name) as stream:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, kind = read[version](stream)
        wanted, there = math.prod(shape) * kind.itemsize, archive.getinfo(name).file_size - stream.tell()
    if kind.hasobject or wanted != there or wanted > MAX_BYTES:
        raise ValueError(f"{name}: {wanted:,} bytes of {kind} by its header, {there:,} in the archive")
    return tuple(shape)


def _read_member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as stream:
        array: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
    return array


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise InputError(f"dataset: {folder / name} is missing (or the same with .gz)")


def _idx_sizes(path: Path) -> tuple[int, ...]:
    """What the header of an IDX file says."""
    with _opened(path) as file:
        return _read_header(path, file)


def _read_idx_file(path: Path) -> np.ndarray:
    """An IDX file of bytes."""
    with _opened(path) as file:
        sizes = _read_header(path, file)
        wanted = math.prod(sizes)
        if path.suffix != ".gz" and path.stat().st_size < wanted:
            raise InputError(f"dataset: {path} is truncated (its header says {wanted:,} bytes)")
        content = file.read(wanted + 1)
    if len(content) != wanted:
        got = "more" if len(content) > wanted else f"{len(content):,}"
        raise InputError(f"dataset: {path} is truncated or corrupt ({got} bytes, its header says {wanted:,})")
    return np.frombuffer(content, dtype=np.uint8).reshape(sizes)


def _read_header(path: Path, file: IO[bytes]) -> tuple[int, ...]:
    """The sizes: zero, zero, type 8 (bytes), number of axes, then each size as a big-endian int32."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:3] != b"\0\0\x08" or magic[3] not in (1, 3):
        raise InputError(f"dataset: {path} is no IDX file of bytes with 1 or 3 axes")
    header = file.read(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise InputError(f"dataset: {path} is truncated within its header")
    sizes = struct.unpack(f">{magic[3]}I", header)
    if math.prod(sizes) > MAX_BYTES:
        raise InputError(f"dataset: {path} says it has {math.prod(sizes):,} bytes (at most {MAX_BYTES:,})")
    return sizes


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """A file, plain or with .gz; what the system or gzip says of it is an `InputError`."""
    opened: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"dataset: {path} cannot be read ({error})") from None


def _checked(where: str, images: np.ndarray, labels: np.ndarray) -> Arrays:
    """Grey 8-bit images and whole labels that belong together, as tensors."""
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.ndim != 3 or images.dtype != np.uint8:
        raise InputError(f"{where}: images are {images.dtype} {list(images.shape)} (use uint8 [N, H, W])")
    if not all(MIN_SIZE <= side <= MAX_SIZE for side in images.shape[1:]):
        sides = " x ".join(map(str, images.shape[1:]))
        raise InputError(f"{where}: images of {sides} pixels (use {MIN_SIZE} to {MAX_SIZE})")
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        shown = f"{labels.dtype} {list(labels.shape)}"
        raise InputError(f"{where}: labels are {shown} (use whole numbers [{len(images)}])")
    if not 0 < len(images) <= MAX_IMAGES:
        raise InputError(f"{where}: {len(images):,} images (use 1 to {MAX_IMAGES:,})")
    if labels.min() < 0 or labels.max() >= MAX_CLASSES:
        raise InputError(f"{where}: labels {labels.min()} to {labels.max()} (use 0 to {MAX_CLASSES - 1})")
    return torch.from_numpy(images.copy()).unsqueeze(1), torch.from_numpy(labels.astype(np.int64))
