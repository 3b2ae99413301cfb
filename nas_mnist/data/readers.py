"""Grey 8-bit images from files: data sets of torchvision, IDX folders, NPZ files.

Sizes are bounded and types are checked. No code from a file is executed.
"""

from __future__ import annotations

import gzip
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.errors import InputError

MIN_SIZE, MAX_SIZE = 8, 64  # pixels a side
MAX_CLASSES = 1_000
MAX_BYTES = 1 << 31  # of one array

Arrays = tuple[Tensor, Tensor]  # images (N, 1, H, W) uint8, labels (N,) int64

_IDX_FILES = {  # MNIST's file names by the names in an NPZ file
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


class TorchvisionSet(NamedTuple):
    """A data set that torchvision downloads and verifies."""

    folder: str  # below the root; also the class in torchvision.datasets
    options: dict[str, Any]  # of that class
    lowest_label: int


TORCHVISION = {
    "fashion-mnist": TorchvisionSet("FashionMNIST", {}, 0),
    "kmnist": TorchvisionSet("KMNIST", {}, 0),
    "qmnist": TorchvisionSet("QMNIST", {"compat": True}, 0),
    "emnist-digits": TorchvisionSet("EMNIST", {"split": "digits"}, 0),
    "emnist-letters": TorchvisionSet("EMNIST", {"split": "letters"}, 1),
}


def read_torchvision(name: str, root: Path, train: bool, download: bool) -> Arrays:
    """The training or test part of a set in `TORCHVISION`, below ``root`` in torchvision's layout.

    Raises `InputError` where it is missing, damaged or cannot be downloaded.
    """
    from torchvision import datasets

    known = TORCHVISION[name]
    try:
        read = getattr(datasets, known.folder)(str(root), train=train, download=download, **known.options)
    except Exception as error:  # its readers also assert and index
        where = root / known.folder
        raise InputError(f"dataset: {name} cannot be read from {where} ({_reason(error)})") from None
    images = torch.as_tensor(read.data, dtype=torch.uint8)
    labels = torch.as_tensor(read.targets).long() - known.lowest_label
    labels = labels[:, 0] if labels.ndim == 2 else labels  # QMNIST: the class is the first of eight columns
    if name.startswith("emnist"):
        images = images.transpose(1, 2).contiguous()  # stored transposed
    return _check_arrays(f"dataset: {name}", images.numpy(), labels.numpy())


def read_idx(folder: Path, train: bool) -> Arrays:
    """The training or test part of a folder with MNIST's four file names, plain or with .gz.

    Raises `InputError`, also where one of the other files is missing.
    """
    if folder.is_file():
        raise InputError(f"dataset: {folder} is a file (use idx:FOLDER or npz:FILE)")
    files = {name: _find(folder, file) for name, file in _IDX_FILES.items()}
    return _read_part(f"dataset: {folder}", lambda name: _read_idx_file(files[name]), train)


def read_npz(path: Path, train: bool) -> Arrays:
    """The training or test part of an NPZ file with x_train, y_train, x_test and y_test.

    Raises `InputError`, also where one of the other arrays is missing.
    """
    where = f"dataset: {path}"
    if path.is_dir():
        raise InputError(f"{where} is a folder (use npz:FILE or idx:FOLDER)")
    if not path.is_file():
        raise InputError(f"{where} does not exist" if not path.exists() else f"{where} is no regular file")
    try:
        with zipfile.ZipFile(path) as archive:
            for name in _IDX_FILES:
                if f"{name}.npy" not in archive.namelist():
                    raise InputError(f"{where} lacks {name} (needed: {', '.join(_IDX_FILES)})")
                if archive.getinfo(f"{name}.npy").file_size > MAX_BYTES:
                    raise InputError(f"{where}: {name} is larger than {MAX_BYTES:,} bytes")
        with np.load(path, allow_pickle=False) as arrays:
            return _read_part(where, arrays.__getitem__, train)
    except InputError:
        raise
    except Exception as error:  # zipfile and numpy raise many types for a damaged file
        raise InputError(f"{where} is no NPZ file of plain arrays ({_reason(error)})") from None


def _read_part(where: str, read: Callable[[str], np.ndarray], train: bool) -> Arrays:
    """One part from a function that reads an array by its name in an NPZ file."""
    if not train:
        return _check_arrays(where, read("x_test"), read("y_test"))
    images, labels = _check_arrays(where, read("x_train"), read("y_train"))
    _check_test_labels(where, labels, read("y_test"))  # an error here must not wait until a search has ended
    return images, labels


def _check_test_labels(where: str, labels: Tensor, test_labels: np.ndarray) -> None:
    """Raise `InputError` where test images are of classes without a training image."""
    if test_labels.dtype.kind not in "iu" or not test_labels.size:
        found = f"{test_labels.dtype} {list(test_labels.shape)}"
        raise InputError(f"{where}: labels of test images are {found} (use whole numbers)")
    low, high = int(test_labels.min()), int(test_labels.max())
    if labels.max() > 0 and not 0 <= low <= high <= labels.max():  # one class only has an error of its own
        raise InputError(
            f"{where}: labels of test images {low} to {high} (use 0 to {labels.max()}, as in training)"
        )


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise InputError(f"dataset: {folder / name} is missing (or the same with .gz)")


def _read_idx_file(path: Path) -> np.ndarray:
    """The array in an IDX file; `_check_arrays` looks at its type and shape."""
    try:
        if path.suffix != ".gz":
            return _parse_idx(path)
        with gzip.open(path) as packed, tempfile.NamedTemporaryFile() as unpacked:
            unpacked.write(packed.read(MAX_BYTES + 1))
            unpacked.flush()
            return _parse_idx(Path(unpacked.name))
    except Exception as error:  # torchvision's reader also asserts and indexes
        raise InputError(f"dataset: {path} is no complete IDX file ({_reason(error)})") from None


def _parse_idx(path: Path) -> np.ndarray:
    from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES:,} bytes")
    array: np.ndarray = read_sn3_pascalvincent_tensor(str(path)).numpy()
    return array


def _check_arrays(where: str, images: np.ndarray, labels: np.ndarray) -> Arrays:
    """Grey 8-bit images and their whole labels as tensors; raises `InputError`."""
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.ndim != 3 or images.dtype != np.uint8:
        raise InputError(f"{where}: images are {images.dtype} {list(images.shape)} (use uint8 [N, H, W])")
    if not all(MIN_SIZE <= side <= MAX_SIZE for side in images.shape[1:]):
        sides = " x ".join(map(str, images.shape[1:]))
        raise InputError(f"{where}: images of {sides} pixels (use {MIN_SIZE} to {MAX_SIZE})")
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        found = f"{labels.dtype} {list(labels.shape)}"
        raise InputError(f"{where}: labels are {found} (use whole numbers [{len(images)}])")
    if not len(images):
        raise InputError(f"{where}: 0 images (use at least 1)")
    if labels.min() < 0 or labels.max() >= MAX_CLASSES:
        raise InputError(f"{where}: labels {labels.min()} to {labels.max()} (use 0 to {MAX_CLASSES - 1})")
    return torch.from_numpy(images.copy()).unsqueeze(1), torch.from_numpy(labels.astype(np.int64))


def _reason(error: Exception) -> str:
    """An error of a library in at most 100 characters of one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:100]
