"""Arrays that took long to read from text or pictures, kept in the user's cache as files of numpy.

Every process of a search loads the data set. Entries hold numbers and words only, no objects of Python.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from .arrays import Array


def cache_folder() -> Path:
    """The folder of downloads and of read data sets, ``~/.cache/nas_mnist``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nas_mnist"


def cached(
    source: Path, files: Iterable[Path], names: tuple[str, ...], make: Callable[[], Mapping[str, Array]]
) -> Mapping[str, Array]:
    """The arrays that ``make`` gives, from the cache where the files are as they were.

    ``source``: whose entry it is; its earlier entries are deleted. ``files``: with other names, sizes or
    times they are read again. Without a cache that can be written the arrays come from ``make``.
    """
    folder = cache_folder() / "read"
    owner = hashlib.sha256(os.fsencode(source.resolve())).hexdigest()[:16]
    state = hashlib.sha256()
    for file in files:
        found = file.stat()
        state.update(os.fsencode(file.absolute()) + f"\0{found.st_size} {found.st_mtime_ns}\0".encode())
    paths = {name: folder / f"{owner}-{state.hexdigest()[:16]}-{name}.npy" for name in names}
    with contextlib.suppress(OSError, ValueError):
        return {name: np.load(path, mmap_mode="r", allow_pickle=False) for name, path in paths.items()}
    arrays = make()
    with contextlib.suppress(OSError):
        for earlier in folder.glob(f"{owner}-*.npy"):
            earlier.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in paths.items():
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".") as unfinished:
                np.save(unfinished, arrays[name], allow_pickle=False)
                unfinished.flush()
                os.link(unfinished.name, path)
    return arrays
