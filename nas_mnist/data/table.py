"""CSV files: an image a row, its label and its pixels, as competitions give them."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..core.errors import InputError
from ..core.fileio import check_regular
from .arrays import MAX_BYTES, Array, RawData, to_images, to_labels
from .cache import cached
from .idx import short

LABELS = ("label", "labels", "class", "target", "y")  # names of the column, in any case
_NOT_PIXELS = ("id", "index", "imageid", "unnamed: 0", "")
_PIXEL = re.compile(r"(pixel|px|p)[ _]?\d+|\d+x\d+")
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*")
_WHOLE = re.compile(r"[+-]?\d{1,15}(\.0*)?")
_ROWS = 5_000  # that are parsed at once


class _Columns(NamedTuple):
    label: int | None  # position of the label
    pixels: list[int]  # positions of the pixels
    header: bool  # whether the first line has names


def read_csv(path: Path) -> RawData:
    """A CSV file with one image a row; raises `InputError`.

    A file of the same name with ``test`` for ``train`` beside it is the test part, if it has labels. See
    `read_table` for the form of a row.
    """
    where = f"dataset: csv:{path}"
    images, labels = _labelled(where, path)
    test, notes = _test_file(path), []
    if test is not None and _columns(where, test).label is None:
        notes.append(f"{test.name} has no labels and is not used")
        test = None
    if test is None:
        return RawData(labels, images.__getitem__, notes=tuple(notes))
    test_images, test_labels = _labelled(f"dataset: csv:{test}", test)
    notes.append(f"{test.name} is the test part")
    return RawData(labels, images.__getitem__, test_labels, lambda: test_images, tuple(notes))


def read_table(path: Path, what: str = "dataset") -> tuple[Array, Array | None]:
    """The images (N, C, H, W) uint8 of a CSV file, and its labels (N,) if it has a column of them.

    The columns are named, the label's one of `LABELS`; without names, the first column is the label where
    that makes the others a square image. Pixels are row by row, of colour images red, green and blue of a
    pixel side by side. Raises `InputError`, beginning with ``what`` and the path.
    """
    where = f"{what}: {path}"
    columns = _columns(where, path)
    rows, labels = _parse(where, path, columns)
    images = to_images(where, rows, colours_beside=True)
    return images, None if labels is None else to_labels(where, _numbers_if_whole(labels), len(images))


def _labelled(where: str, path: Path) -> tuple[Array, Array]:
    """The images and labels of a file, from the cache where it was read before."""

    def read() -> dict[str, Array]:
        images, labels = read_table(path)
        if labels is None:
            raise InputError(f"{where} has no column of labels (name it {' or '.join(LABELS)})")
        return {"images": images, "labels": labels}

    check_path(where, path)
    arrays = cached(path, [path], ("images", "labels"), read)
    return arrays["images"], np.asarray(arrays["labels"])


def check_path(where: str, path: Path) -> None:
    """Raise `InputError` unless ``path`` is a file of a size that is read."""
    try:
        check_regular(path, where)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{where} does not exist") from None
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{where} is larger than {MAX_BYTES:,} bytes")


def _test_file(path: Path) -> Path | None:
    before, train, after = path.name.rpartition("train")
    test = path.with_name(f"{before}test{after}")
    return test if train and test.is_file() else None


def _columns(where: str, path: Path) -> _Columns:
    """The columns of a file, by its first two lines; raises `InputError`."""
    check_path(where, path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(iter(lambda: file.readline(1_000_000), ""))
            first, second = next(lines, []), next(lines, [])
    except OSError as error:
        raise InputError(f"{where} cannot be read ({error.strerror or error})") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{where} is no CSV file ({short(error)})") from None
    if not second and len(first) > 1 and all(map(_NUMBER.fullmatch, map(str.strip, first))):
        second = first  # one image without names
    if len(first) < 2 or not second:
        raise InputError(
            f"{where}: {len(first)} columns, no rows of pixels (use a label and pixels, by commas)"
        )
    names = [name.strip().lower() for name in first]
    named = not all(map(_NUMBER.fullmatch, names)) or (
        # Without names the first row of whole numbers may become names: 0, 0.1, 0.2...
        any("." in name for name in names) and not any("." in value for value in second)
    )
    places = range(len(names))
    words = [place for place in places if not _NUMBER.fullmatch(names[place])]
    if len(words) == 1 and names[words[0]] not in (*LABELS, *_NOT_PIXELS) and _is_square(len(names) - 1):
        # A row of numbers with one word: an image and its label, no names.
        return _Columns(words[0], [place for place in places if place != words[0]], header=False)
    if not named or not any(name in LABELS or _PIXEL.fullmatch(name) for name in names):
        square = _is_square(len(names))
        return _Columns(None if square else 0, list(places if square else places[1:]), named)
    label = next((place for place in places if names[place] in LABELS), None)
    pixels = [place for place in places if _PIXEL.fullmatch(names[place])]
    pixels = pixels or [place for place in places if place != label and names[place] not in _NOT_PIXELS]
    return _Columns(label, pixels, named)


def _is_square(columns: int) -> bool:
    return any(int(pixels**0.5) ** 2 == pixels for pixels in (columns, columns / 3))


def _parse(where: str, path: Path, columns: _Columns) -> tuple[Array, Array | None]:
    """The pixels (N, columns) and the labels (N,) as words, some rows at a time."""
    import pandas as pd

    types: dict[Any, Any] = {} if columns.label is None else {columns.label: str}
    empty: dict[Any, list[str]] = {place: [""] for place in columns.pixels}
    parts, words, done = [], [], 0
    try:
        with pd.read_csv(
            path,
            header=None,
            skiprows=int(columns.header),
            dtype=types,
            chunksize=_ROWS,
            keep_default_na=False,
            na_values=empty,
        ) as rows:
            for part in rows:
                parts.append(_pixels(where, part[columns.pixels].to_numpy(), done + 1 + columns.header))
                if columns.label is not None:
                    words.append(_words(where, part[columns.label], done + 1 + columns.header))
                done += len(part)
    except InputError:
        raise
    except Exception as error:  # pandas raises many types
        raise InputError(f"{where} is no CSV file of numbers ({short(error)})") from None
    if not parts:
        raise InputError(f"{where} has no rows")
    return np.concatenate(parts), np.concatenate(words) if words else None


def _words(where: str, labels: Any, line: int) -> Array:
    """A column of labels as words; ``line``: of the first row in the file."""
    words: Array = labels.to_numpy(dtype=str)
    if (blank := np.flatnonzero(np.char.strip(words) == "")).size:
        raise InputError(f"{where}, line {line + blank[0]}: an empty label (use a number or a word)")
    return words


def _pixels(where: str, values: Array, line: int) -> Array:
    """Rows of pixels, as bytes where they are whole; ``line``: of the first row in the file."""
    import pandas as pd

    if values.dtype.kind == "O" or (values.dtype.kind == "f" and np.isnan(values).any()):
        for row, cells in enumerate(values):
            bad = [cell for cell in cells if not _NUMBER.fullmatch(str(cell))]
            if bad:
                pixel = "an empty pixel" if pd.isna(bad[0]) else f"pixel {str(bad[0])[:20]!r}"
                raise InputError(f"{where}, line {line + row}: {pixel} (use a number)")
    if values.dtype.kind in "iu" and values.min() >= 0 and values.max() <= 255:
        return values.astype(np.uint8)
    return values.astype(np.float32)


def _numbers_if_whole(labels: Array) -> Array:
    """Labels as numbers, where all are whole."""
    values: Sequence[str] = np.unique(labels).tolist()
    return labels.astype(np.float64) if all(map(_WHOLE.fullmatch, values)) else labels
