"""NPZ and NPY files: the arrays of a data set under any unambiguous names, in one file or in several.

A name tells a part (train, test, val) and a content (images, labels): ``x_train``, ``train_images``, ``X``,
``k49-train-imgs.npz``. Headers are read before data, and no objects are loaded.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from ..core.errors import InputError
from .arrays import MAX_BYTES, Array, RawData, image_size, to_images, to_labels
from .idx import short

TRAIN, TEST, VAL, IMAGES, LABELS = "train", "test", "val", "images", "labels"
PARTS = {"train": TRAIN, "training": TRAIN, "test": TEST, "testing": TEST, "t10k": TEST}
PARTS |= {"val": VAL, "valid": VAL, "validation": VAL}
_CONTENTS = dict.fromkeys(("x", "image", "images", "img", "imgs", "data", "pixels"), IMAGES)
_CONTENTS |= dict.fromkeys(("y", "label", "labels", "target", "targets", "class", "classes"), LABELS)
_JOINED = {a + b: (a, b) for a, b in [*product(_CONTENTS, PARTS), *product(PARTS, _CONTENTS)]}  # xtrain
_SUFFIXES = (".npz", ".npy")
_NAMELESS = re.compile(r"arr_\d+")  # keys of arrays that were saved without names
_EXAMPLE = "np.savez_compressed('own.npz', x_train=..., y_train=..., x_test=..., y_test=...)"


class _Role(NamedTuple):
    part: str  # "" where the name has none
    content: str
    rest: str  # the other words of the name

    @classmethod
    def of(cls, name: str) -> _Role:
        words = re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
        words = [one for word in words for one in _JOINED.get(word, (word,))]
        parts = [PARTS[word] for word in words if word in PARTS]
        contents = [_CONTENTS[word] for word in words if word in _CONTENTS]
        rest = [word for word in words if word not in PARTS and word not in _CONTENTS]
        return cls("".join(parts[:1]), "".join(contents[:1]), "-".join(rest))


class _Entry(NamedTuple):
    """An array in a file."""

    path: Path
    key: str  # in an NPZ file; "" for an NPY file
    role: _Role
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.path.name}:{self.key}" if self.key else self.path.name

    def read(self) -> Array:
        """The array; raises `InputError`."""
        try:
            found = np.load(self.path, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return found
            with found:
                return found[self.key]  # type: ignore[no-any-return]
        except Exception as error:  # zipfile and numpy raise many types for a damaged file
            raise _unreadable(self.path, error) from None


def read_npz(path: Path) -> RawData:
    """The data set in an NPZ file and the files beside it, or in a folder of them; raises `InputError`.

    Validation images are training images where there are test images, and test images where there are none.
    """
    where = f"dataset: {path}"
    chosen = _choose(where, list(_entries(path, where)))
    notes = []
    for part, content in product((TEST, VAL), (IMAGES, LABELS)):
        other = LABELS if content == IMAGES else IMAGES
        if (part, content) in chosen and (part, other) not in chosen:
            notes.append(f"{chosen.pop((part, content)).name} has no {other} and is not used")
    if (VAL, LABELS) in chosen:
        if (TEST, LABELS) in chosen:
            notes.append("its validation part is used for training")
        else:
            chosen |= {(TEST, content): chosen.pop((VAL, content)) for content in (IMAGES, LABELS)}
            notes.append("its validation part is the test part")
    parts = [part for part in (TRAIN, VAL) if (part, LABELS) in chosen]
    found = [_read_part(where, chosen[part, IMAGES], chosen[part, LABELS]) for part in parts]
    if len({images.shape[1:] for images, _ in found}) > 1:
        raise InputError(f"{where}: training and validation images differ in size (use one size)")
    images, labels = found[0] if len(found) == 1 else map(np.concatenate, zip(*found, strict=True))
    if (TEST, LABELS) not in chosen:
        return RawData(labels, images.__getitem__, notes=tuple(notes))
    test_where, test_images = f"{where}, test part", chosen[TEST, IMAGES]
    if (size := image_size(test_where, test_images.shape)) != images.shape[2:]:
        raise InputError(f"{test_where}: images of {size} pixels, not {images.shape[2:]} (use one size)")
    test_labels = to_labels(test_where, chosen[TEST, LABELS].read(), test_images.shape[0])

    def read_test() -> Array:
        return to_images(test_where, test_images.read())

    return RawData(labels, images.__getitem__, test_labels, read_test, tuple(notes))


def _read_part(where: str, images: _Entry, labels: _Entry) -> tuple[Array, Array]:
    pixels = to_images(f"{where}: {images.key or images.path.name}", images.read())
    return pixels, to_labels(f"{where}: {labels.key or labels.path.name}", labels.read(), len(pixels))


def _entries(path: Path, where: str) -> Iterator[_Entry]:
    """The arrays in a file, and in the files beside it whose names differ by part and content only."""
    if path.is_dir():
        files = _arrays_in(path)
        if not files:
            raise InputError(
                f"{where} holds no .npz file (idx:{path} reads IDX files, folder:{path} pictures)"
            )
        sets = sorted({_Role.of(file.stem).rest for file in files})
        if len(sets) > 1:
            firsts = [next(file for file in files if _Role.of(file.stem).rest == name) for name in sets]
            names = ", ".join(file.name for file in firsts)
            raise InputError(f"{where} holds several data sets: {names} (use one, as npz:{firsts[0]})")
    elif path.is_file():
        files, own, keys = [path], _Role.of(path.stem), _headers(path)
        contents, parts = ({one.role.content for one in keys} - {""}, {one.role.part for one in keys} - {""})
        whole = len(contents) == 2 and len(parts) > 1
        if not whole and (own.part or len(contents) == 1):  # other files have the rest
            files = [file for file in _arrays_in(path.parent) if _Role.of(file.stem).rest == own.rest]
    else:
        raise InputError(f"{where} {'is no regular file' if path.exists() else 'does not exist'}")
    for file in files:
        yield from _headers(file)


def _arrays_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES and file.is_file())


def _headers(path: Path) -> list[_Entry]:
    """The arrays of a file, by their headers alone; raises `InputError`."""
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                shapes = {"": _shape(file)}
        else:
            with zipfile.ZipFile(path) as archive:
                members = [name for name in archive.namelist() if name.endswith(".npy")]
                shapes = {}
                for member in members:
                    with archive.open(member) as packed:
                        shapes[member.removesuffix(".npy")] = _shape(packed)
    except Exception as error:
        raise _unreadable(path, error) from None
    of_file = _Role.of(path.stem)
    entries = []
    for key, shape in shapes.items():
        own = _Role("", "", "") if _NAMELESS.fullmatch(key) else _Role.of(key)
        alone = of_file.content if len(shapes) == 1 else ""
        role = _Role(own.part or of_file.part, own.content or alone, own.rest)
        entries.append(_Entry(path, key, role, shape))
    return entries


def _shape(file: IO[bytes]) -> tuple[int, ...]:
    """The shape of a plain array, from its header; raises `ValueError` for objects and large arrays."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError("an array of an unknown version of the format")
    shape, _, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError("objects of Python are not loaded")
    size = dtype.itemsize
    for side in shape:
        size *= side
    if size > MAX_BYTES:
        raise ValueError(f"an array is larger than {MAX_BYTES:,} bytes")
    return tuple(shape)


def _choose(where: str, entries: Sequence[_Entry]) -> dict[tuple[str, str], _Entry]:
    """The arrays by part and content, for training at least; raises `InputError` for unclear names."""
    known = [one for one in entries if one.role.content] or _by_shape(entries)
    whole = not any(one.role.part == TRAIN for one in known)  # a name without a part is of the training part
    chosen: dict[tuple[str, str], _Entry] = {}
    for one in known:
        part = one.role.part or (TRAIN if whole else "")
        if not part:
            continue
        if (other := chosen.setdefault((part, one.role.content), one)) is not one:
            raise InputError(
                f"{where}: {other.name} and {one.name} may both be {part} {one.role.content} ({_EXAMPLE})"
            )
    for content in (IMAGES, LABELS):
        if (TRAIN, content) not in chosen:
            names = ", ".join(one.name for one in entries[:12]) or "nothing"
            raise InputError(f"{where} lacks {content} for training: it holds {names} ({_EXAMPLE})")
    return chosen


def _by_shape(entries: Sequence[_Entry]) -> list[_Entry]:
    """Two arrays without telling names: the one with more dimensions has the images."""
    if len(entries) != 2:
        return []
    labels, images = sorted(entries, key=lambda one: len(one.shape))
    flat = len(labels.shape) == 1 or (len(labels.shape) == 2 and labels.shape[1] == 1)
    if not flat or len(images.shape) < 2 or images.shape[0] != labels.shape[0]:
        return []
    return [
        one._replace(role=one.role._replace(content=content))
        for one, content in ((images, IMAGES), (labels, LABELS))
    ]


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"dataset: {path} is no NPZ file of plain arrays ({short(error)})")
