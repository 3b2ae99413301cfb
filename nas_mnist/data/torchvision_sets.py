"""The data sets of torchvision that are MNIST's relatives: read from its files, and downloaded."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..core.errors import InputError
from .arrays import Array, RawData, to_images, to_labels
from .download import LIMITS, DownloadError, Limits, download, progress
from .idx import short


class TorchvisionSet(NamedTuple):
    """A data set that torchvision reads."""

    folder: str  # below the root; also the class in torchvision.datasets
    options: dict[str, Any]  # of that class
    lowest_label: int


MNIST = TorchvisionSet("MNIST", {}, 0)
TORCHVISION = {
    "fashion-mnist": TorchvisionSet("FashionMNIST", {}, 0),
    "kmnist": TorchvisionSet("KMNIST", {}, 0),
    "qmnist": TorchvisionSet("QMNIST", {"compat": True}, 0),
    "emnist-digits": TorchvisionSet("EMNIST", {"split": "digits"}, 0),
    "emnist-letters": TorchvisionSet("EMNIST", {"split": "letters"}, 1),
    "emnist-balanced": TorchvisionSet("EMNIST", {"split": "balanced"}, 0),
}


def read_torchvision(name: str, root: Path) -> RawData:
    """A set in `TORCHVISION` below ``root``, in torchvision's layout.

    Raises `InputError` where it is missing or damaged.
    """
    images, labels = _read_part(name, root, train=True)
    _, test_labels = _read_part(name, root, train=False)
    return RawData(labels, images.__getitem__, test_labels, lambda: _read_part(name, root, train=False)[0])


def _read_part(name: str, root: Path, train: bool) -> tuple[Array, Array]:
    known = TORCHVISION[name]
    try:
        read = _class_of(known)(str(root), train=train, download=False, **known.options)
    except Exception as error:  # its readers also assert and index
        where = root / known.folder
        raise InputError(f"dataset: {name} cannot be read from {where} ({short(error)})") from None
    images = torch.as_tensor(read.data, dtype=torch.uint8)
    labels = torch.as_tensor(read.targets).long() - known.lowest_label
    labels = labels[:, 0] if labels.ndim == 2 else labels  # QMNIST: the class is the first of eight columns
    if name.startswith("emnist"):
        images = images.transpose(1, 2).contiguous()  # stored transposed
    what = f"dataset: {name}"
    return to_images(what, images.numpy()), to_labels(what, labels.numpy(), len(images))


def download_torchvision(
    name: str, known: TorchvisionSet, cache: Path, quiet: bool = False, limits: Limits = LIMITS
) -> None:
    """Download a set to ``cache``, all of it or nothing; raises `DownloadError`.

    The archives are downloaded here. Torchvision then finds them in its folder and unpacks them.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as folder:
            raw = Path(folder, known.folder, "raw")
            raw.mkdir(parents=True)
            archives = _archives(known)
            with progress(name, quiet) as begin:
                first = 0  # the mirror that gave the file before
                for file, urls, md5 in archives:
                    used = download([*urls[first:], *urls[:first]], raw / file, md5, begin(file), limits)
                    first = urls.index(used)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                for train in (True, False):  # QMNIST unpacks one part at a time
                    _class_of(known)(folder, train=train, download=True, **known.options)
            for file, *_ in archives:
                (raw / file).unlink()
            target = cache / known.folder / "raw"
            target.mkdir(parents=True, exist_ok=True)
            for made in raw.iterdir():
                made.replace(target / made.name)
    except (OSError, DownloadError) as error:
        with contextlib.suppress(OSError):  # it holds other sets
            cache.rmdir()
        if isinstance(error, DownloadError):
            raise
        raise DownloadError(f"{error.filename or cache}: {error.strerror or error}") from None


def _class_of(known: TorchvisionSet) -> Any:
    from torchvision import datasets

    return getattr(datasets, known.folder)


def _archives(known: TorchvisionSet) -> list[tuple[str, list[str], str]]:
    """File name, URLs and MD5 of the archives of a set, as torchvision lists them."""
    set_ = _class_of(known)
    if known.folder == "EMNIST":
        return [(Path(set_.url).name, [set_.url], set_.md5)]
    if known.folder == "QMNIST":
        files = [one for part in ("train", "test") for one in set_.resources[part]]
        return [(Path(url).name, [url], md5) for url, md5 in files]
    return [(file, [mirror + file for mirror in set_.mirrors], md5) for file, md5 in set_.resources]
