"""IDX files, the format of MNIST: a folder with its four file names, plain or packed."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

from ..core.errors import InputError
from .arrays import MAX_BYTES, Array, RawData, to_images, to_labels

_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


def read_idx(folder: Path) -> RawData:
    """A folder with MNIST's four file names, plain or with .gz; raises `InputError`."""
    where = f"dataset: {folder}"
    if folder.is_file():
        raise InputError(f"{where} is a file (use idx:FOLDER or npz:FILE)")
    files = {name: _find(folder, file) for name, file in _FILES.items()}
    images = to_images(where, _read(files["x_train"]))
    labels = to_labels(where, _read(files["y_train"]), len(images))
    test_labels = _read(files["y_test"])
    test_labels = to_labels(f"{where}, test part", test_labels, len(test_labels))

    def read_test() -> Array:
        return to_images(f"{where}, test part", _read(files["x_test"]))

    return RawData(labels, images.__getitem__, test_labels, read_test)


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise InputError(f"dataset: {folder / name} is missing (or the same with .gz)")


def _read(path: Path) -> Array:
    """The array in an IDX file."""
    try:
        if path.suffix != ".gz":
            return _parse(path)
        with gzip.open(path) as packed, tempfile.NamedTemporaryFile() as unpacked:
            unpacked.write(packed.read(MAX_BYTES + 1))
            unpacked.flush()
            return _parse(Path(unpacked.name))
    except Exception as error:  # torchvision's reader also asserts and indexes
        raise InputError(f"dataset: {path} is no complete IDX file ({short(error)})") from None


def _parse(path: Path) -> Array:
    from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES:,} bytes")
    array: Array = read_sn3_pascalvincent_tensor(str(path)).numpy()
    return array


def short(error: Exception) -> str:
    """An error of a library in at most 100 characters of one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:100]
