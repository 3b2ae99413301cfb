"""The table of trainings by recipe: a CSV file with a row a training. README.md documents its columns."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pandas as pd

from ..core.errors import InputError
from ..core.fileio import read_text, write_bytes

KEYS = ["key", "digest", "data", "seed"]  # two trainings with the same values are the same training
RESULTS = ["train_loss", "validation_loss", "validation_accuracy"]
COLUMNS = ["network", "recipe", *RESULTS, *KEYS]
Row = dict[str, Any]  # by column


class RecipeTable:
    """The rows of a table, which is written after every new one."""

    def __init__(self, path: Path) -> None:
        """Read the table at ``path``, which may not exist; raises `InputError` for another format."""
        self.path, self.rows = path, _read(path)

    def has(self, key: str, digest: str, data: str, seed: int) -> bool:
        """Whether the table has this training: an architecture's key, a recipe's digest, images and seed."""
        return any(tuple(row[name] for name in KEYS) == (key, digest, data, seed) for row in self.rows)

    def add(self, row: Row) -> None:
        """Add a row and write the table."""
        self.rows.append(row)
        frame = pd.DataFrame(self.rows, columns=COLUMNS)
        write_bytes(self.path, frame.to_csv(index=False, lineterminator="\n").encode())

    def of_network(self, key: str, data: str) -> list[Row]:
        """The trainings of one architecture on the same images."""
        return [row for row in self.rows if (row["key"], row["data"]) == (key, data)]


def _read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    text = read_text(path, "--table")
    try:
        frame = pd.read_csv(io.StringIO(text), dtype=dict.fromkeys(["key", "digest", "data"], str))
        types = {"seed": int} | dict.fromkeys(RESULTS, float)
        return [dict(zip(COLUMNS, row, strict=True)) for row in frame[COLUMNS].astype(types).to_numpy()]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise InputError(f"--table: {path} is no table of recipes (use a new file)") from None
