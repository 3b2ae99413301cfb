"""Arrays of images and labels in any usual form: checked, and brought into the form of a `DataSet`.

Sizes are bounded. A refusal says in one line which form is wanted and how to make it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import isqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.errors import InputError

MIN_SIZE, MAX_SIZE = 8, 64  # pixels a side
MAX_CLASSES = 1_000
MAX_NAME = 60  # characters of a class name
MAX_BYTES = 1 << 31  # of one array
_FORMS = "[N, H, W], [N, H, W, 3] or [N, 3, H, W]"
_CHUNK = 4_096  # images that are converted at once
_WHOLE = re.compile(r"[+-]?\d{1,15}(\.0*)?")

Array = NDArray[Any]


class RawData(NamedTuple):
    """The parts of a data set as a reader finds them."""

    labels: Array  # (N,) whole numbers or words, of the training images
    read: Callable[[Array], Array]  # training images (M, C, H, W) uint8 at positions (M,) int64
    test_labels: Array | None = None  # (T,); None: the files have no test part
    read_test: Callable[[], Array] | None = None  # the test images (T, C, H, W) uint8
    notes: tuple[str, ...] = ()  # what was done with the files, for people


def to_images(where: str, images: Array, colours_beside: bool = False) -> Array:
    """Images (N, C, H, W) uint8 of an array in one of the usual forms; raises `InputError`.

    Grey images are (N, H, W), (N, H, W, 1), (N, 1, H, W), or in rows of H * H values. Colour images are
    (N, H, W, 3) or (N, 3, H, W), with ``colours_beside`` also in rows of H * H * 3 values. Values are 0 to
    255, or all of them from 0 to 1.
    """
    pixels = _channels_first(where, images, colours_beside)
    if not all(MIN_SIZE <= side <= MAX_SIZE for side in pixels.shape[2:]):
        sides = " x ".join(map(str, pixels.shape[2:]))
        raise InputError(f"{where}: images of {sides} pixels (use {MIN_SIZE} to {MAX_SIZE}; folder: resizes)")
    if not len(pixels):
        raise InputError(f"{where}: 0 images (use at least 1)")
    factor = _factor(where, pixels)
    if pixels.dtype == np.uint8 and factor == 1:
        return pixels
    made = np.empty(pixels.shape, dtype=np.uint8)
    for start in range(0, len(pixels), _CHUNK):
        part = slice(start, start + _CHUNK)
        made[part] = np.rint(pixels[part] * np.float32(factor))
    return made


def image_size(where: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Height and width of images in an array of this shape; raises `InputError`."""
    return _channels_first(where, np.broadcast_to(np.uint8(0), shape), False).shape[2:]


def _channels_first(where: str, images: Array, colours_beside: bool) -> Array:
    shape = images.shape
    if len(shape) == 3:
        return images[:, None]
    if len(shape) == 4 and shape[3] in (1, 3):
        return images.transpose(0, 3, 1, 2)
    if len(shape) == 4 and shape[1] in (1, 3):
        return images
    if len(shape) == 2 and (side := isqrt(shape[1])) ** 2 == shape[1]:
        return images.reshape(-1, 1, side, side)
    if len(shape) == 2 and colours_beside and 3 * (side := isqrt(shape[1] // 3)) ** 2 == shape[1]:
        return images.reshape(-1, side, side, 3).transpose(0, 3, 1, 2)
    how = f"use {_FORMS}"
    if len(shape) == 4 and 4 in (shape[1], shape[3]):
        how += "; images[..., :3] leaves transparency out"
    elif len(shape) == 2 and colours_beside:
        how = "use a square number of pixels a row, or three times as many values for colour"
    elif len(shape) == 2:
        how += "; images.reshape(-1, H, W, 3) for red, green and blue side by side"
    raise InputError(f"{where}: images are {_kind(images)} ({how})")


def _factor(where: str, pixels: Array) -> int:
    """255 for values from 0 to 1, else 1; raises `InputError` for values that are not 0 to 255."""
    if pixels.dtype.kind not in "buif":
        raise InputError(f"{where}: images are {_kind(pixels)} (use uint8 {_FORMS})")
    low, high = float(pixels.min()), float(pixels.max())
    if low >= 0 and high <= 1:
        return 255
    if low >= 0 and high <= 255 and (pixels.dtype == np.uint8 or high >= 128):
        return 1
    how = "((images - images.min()) * (255 / np.ptp(images))).astype('uint8')"
    raise InputError(f"{where}: images are {pixels.dtype} from {low:g} to {high:g} (use 0 to 255: {how})")


def is_grey(images: Array) -> bool:
    """Whether images (N, 3, H, W) have no colour: red, green and blue are the same everywhere."""
    parts = (images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK))
    return all(bool((part[:, :1] == part[:, 1:]).all()) for part in parts)


def to_grey(images: Array) -> Array:
    """Images (N, 3, H, W) uint8 as luma (N, 1, H, W) uint8, ITU-R 601, as Pillow rounds it.

    Images without colour keep their values.
    """
    grey = np.empty_like(images[:, :1])
    for start in range(0, len(images), _CHUNK):
        red, green, blue = images[start : start + _CHUNK].astype(np.uint32).swapaxes(0, 1)
        grey[start : start + _CHUNK, 0] = (19_595 * red + 38_470 * green + 7_471 * blue + 0x8000) >> 16
    return grey


def to_labels(where: str, labels: Array, count: int) -> Array:
    """Labels (N,) of ``count`` images, whole numbers (int64) or words; raises `InputError`."""
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.dtype.kind == "S":
        labels = np.asarray(np.char.decode(labels, "utf-8", "replace"))
    whole = labels.dtype.kind in "iub"
    if labels.dtype.kind == "f":
        whole = bool(((labels % 1 == 0) & (np.abs(labels) < 1 << 53)).all())
    if labels.shape != (count,) or not (whole or labels.dtype.kind == "U"):
        how = f"use one whole number or word an image, [{count}]"
        one_hot = labels.ndim == 2 and len(labels) == count and labels.shape[1] <= MAX_CLASSES
        how += "; labels.argmax(1) of rows with a 1 for the class" * one_hot
        raise InputError(f"{where}: labels are {_kind(labels)} ({how})")
    return labels.astype(np.int64) if whole else labels


class Classes(NamedTuple):
    """The classes of the training labels, in order: numbers by value, words by alphabet."""

    names: tuple[str, ...]

    @classmethod
    def of(cls, where: str, labels: Array) -> Classes:
        """Those of labels (N,); raises `InputError`."""
        found = [str(one) for one in np.unique(labels)]
        if labels.dtype.kind == "U" and all(map(_WHOLE.fullmatch, found)):
            found.sort(key=float)
        if len(found) < 2:
            raise InputError(f"{where} has one class, {', '.join(found)[:20]!r} (use at least two)")
        if len(found) > MAX_CLASSES:
            raise InputError(f"{where} has {len(found):,} classes (use at most {MAX_CLASSES:,})")
        for name in found:
            if not (name.isprintable() and name.strip() and len(name) <= MAX_NAME):
                raise InputError(f"{where}: class {name[:20]!r} (use 1 to {MAX_NAME} printable characters)")
        return cls(tuple(found))

    @property
    def own_names(self) -> tuple[str, ...]:
        """The names; empty where they are the numbers 0, 1, 2... themselves."""
        return () if self.names == tuple(map(str, range(len(self.names)))) else self.names

    def numbers(self, where: str, labels: Array) -> Array:
        """Class numbers (N,) int64 of labels (N,); raises `InputError` for a label that is no class."""
        values, inverse = np.unique(labels, return_inverse=True)
        number = {name: place for place, name in enumerate(self.names)}
        if other := [str(one) for one in values if str(one) not in number]:
            raise InputError(
                f"{where}: test images of class {other[0][:20]!r}, which no training image has "
                "(add training images of it, or leave those test images out)"
            )
        of_value = np.array([number[str(one)] for one in values], dtype=np.int64)
        return of_value[inverse.reshape(-1)]


def _kind(array: Array) -> str:
    return f"{array.dtype} {list(array.shape)}"
