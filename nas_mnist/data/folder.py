"""A folder of pictures: a folder for every class, and around them perhaps one for every part."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..core.errors import InputError
from .arrays import MAX_BYTES, MAX_SIZE, MIN_SIZE, Array, RawData, is_grey
from .cache import cached
from .npz import PARTS, TEST, TRAIN, VAL
from .pictures import SUFFIXES, picture_size, read_picture

RESIZED = 32  # pixels a side of pictures that differ in size, or are smaller or larger than a network takes
MANY = 2_000  # pictures: to read so many takes more than a second
_THREADS = 4
_LAYOUT = "use DIR/train/CLASS/*.png and DIR/test/CLASS/*.png, or DIR/CLASS/*.png"


def read_folder(folder: Path, quiet: bool = False) -> RawData:
    """The pictures below ``folder``, with a progress line for many of them; raises `InputError`.

    Without a test part, validation pictures are test pictures; with one they are training pictures. Pictures
    of one size from `MIN_SIZE` to `MAX_SIZE` pixels keep it, others are resized to `RESIZED` x `RESIZED`.
    """
    where = f"dataset: folder:{folder}"
    if not folder.is_dir():
        raise InputError(f"{where} {'is a file' if folder.exists() else 'does not exist'} ({_LAYOUT})")
    parts, notes = _parts(where, folder), []
    if VAL in parts:
        use, into = ("is used for training", TRAIN) if TEST in parts else ("is the test part", TEST)
        parts[into] = parts.get(into, []) + parts.pop(VAL)
        notes.append(f"its validation part {use}")
    files, labels = _pictures(where, parts[TRAIN])
    arrays = cached(folder / TRAIN, files, ("images", "resized"), lambda: _read_training(where, files, quiet))
    images, resized = arrays["images"], bool(arrays["resized"])
    height, width = images.shape[2:]
    if resized:
        notes.append(f"pictures resized to {height}x{width} pixels")
    if TEST not in parts:
        return RawData(labels, images.__getitem__, notes=tuple(notes))
    test_files, test_labels = _pictures(where, parts[TEST])

    def read_test() -> Array:
        name = f"images-{height}x{width}"
        made = cached(
            folder / TEST,
            test_files,
            (name,),
            lambda: {name: _read(where, test_files, height, width, quiet)},
        )
        return made[name]

    return RawData(labels, images.__getitem__, test_labels, read_test, tuple(notes))


def _parts(where: str, folder: Path) -> dict[str, list[Path]]:
    """The folders whose folders are classes, by part."""
    inside = _folders(folder)
    parts: dict[str, list[Path]] = {}
    for one in inside:
        if (part := PARTS.get(one.name.lower())) is not None:
            parts.setdefault(part, []).append(one)
    if TRAIN in parts:
        return parts
    if parts:
        raise InputError(f"{where} has no folder 'train' ({_LAYOUT})")
    return {TRAIN: [folder]}


def _pictures(where: str, parents: Sequence[Path]) -> tuple[list[Path], Array]:
    """All pictures below the class folders in ``parents``, sorted, and the class of each."""
    files: list[Path] = []
    labels: list[str] = []
    for parent in parents:
        classes = _folders(parent)
        if not classes:
            is_part = f"'{parent.name}' is read as a part; " if parent.name.lower() in PARTS else ""
            raise InputError(f"{where}: {parent} holds no folder of pictures ({is_part}{_LAYOUT})")
        if len(classes) == 1 and len(_folders(classes[0])) > 1:
            raise InputError(
                f"{where} has one class, {classes[0].name!r} (did you mean 'folder:{classes[0]}'? {_LAYOUT})"
            )
        for class_ in classes:
            found = [Path(root, name) for root, _, names in os.walk(class_) for name in names]
            found = [one for one in found if one.suffix.lower() in SUFFIXES and one.name[0] != "."]
            if not found:
                known = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
                raise InputError(
                    f"{where}: {class_} holds no picture (add one of {known}, or remove the folder)"
                )
            files += sorted(found, key=str)
            labels += [class_.name] * len(found)
    return files, np.array(labels)


def _folders(parent: Path) -> list[Path]:
    """The folders in a folder, but hidden ones and those that archives of macOS add."""
    folders = (one for one in parent.iterdir() if one.is_dir())
    return sorted(one for one in folders if one.name[0] != "." and one.name != "__MACOSX")


def _read_training(where: str, files: Sequence[Path], quiet: bool) -> dict[str, Array]:
    """The images, and whether they were resized."""
    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = set(pool.map(picture_size, files))
    size = next(iter(sizes))
    resized = len(sizes) > 1 or not all(MIN_SIZE <= side <= MAX_SIZE for side in size)
    size = (RESIZED, RESIZED) if resized else size
    return {"images": _read(where, files, *size, quiet), "resized": np.array(resized)}


def _read(where: str, files: Sequence[Path], height: int, width: int, quiet: bool) -> Array:
    """The images (N, 3, H, W) uint8, or (N, 1, H, W) if all are grey."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    hidden = quiet or len(files) < MANY or not console.is_terminal
    if len(files) * 3 * height * width > MAX_BYTES:
        raise InputError(
            f"{where}: {len(files):,} pictures (use at most {MAX_BYTES // (3 * height * width):,})"
        )
    images = np.empty((len(files), 3, height, width), dtype=np.uint8)
    with ThreadPoolExecutor(_THREADS) as pool:
        made = pool.map(read_picture, files, [height] * len(files), [width] * len(files))
        shown = track(made, "Reading pictures", len(files), console=console, transient=True, disable=hidden)
        for place, image in enumerate(shown):
            images[place] = image
    return images[:, :1] if is_grey(images) else images
