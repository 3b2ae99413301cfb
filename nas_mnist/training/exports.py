"""What was exported from a folder of results: ``exports.json``, a record a format and seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..core.errors import InputError, foreign_data
from ..core.fileio import read_text, write_bytes

EXPORTS = "exports.json"
FIELDS = ("format", "file", "weights", "runtime", "test_images", "test_accuracy", "float32_accuracy")


def add_export(folder: Path, record: dict[str, Any]) -> None:
    """Add a record with `FIELDS`; it takes the place of an earlier one of the same format and weights.

    Raises `InputError` where the file is of another form.
    """
    own = record["format"], record["weights"]
    others = [one for one in read_exports(folder) if (one["format"], one["weights"]) != own]
    write_bytes(folder / EXPORTS, f"{json.dumps([*others, record], indent=2)}\n".encode())


def read_exports(folder: Path) -> list[dict[str, Any]]:
    """The records of a folder, none without the file; raises `InputError` for another form."""
    path = folder / EXPORTS
    if not path.exists():
        return []
    try:
        records = json.loads(read_text(path, "exports"))
    except ValueError as error:
        raise InputError(f"exports: {path} is not JSON ({error})") from None
    with foreign_data(f"exports: {path}"):
        return [{name: record[name] for name in FIELDS} for record in records]
