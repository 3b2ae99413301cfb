"""Tables that grow: a CSV file, a row a result. README.md in this folder documents the columns."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import InputError
from ..core.fileio import read_text, write_bytes

if TYPE_CHECKING:
    from pandas import DataFrame

Row = dict[Any, Any]  # by column


@dataclass(frozen=True)
class TableFormat:
    """The columns of a table and their types: int (no empty cells), "Int64" (whole or empty), float, str."""

    what: str  # its rows, for messages
    columns: Sequence[str]
    types: Mapping[str, Any]

    def frame(self, rows: Sequence[Row]) -> DataFrame:
        """Rows as a data frame."""
        import pandas as pd

        return pd.DataFrame(rows, columns=list(self.columns)).astype(dict(self.types))

    def read(self, path: Path) -> list[Row]:
        """The rows of a table, none where it does not exist; raises `InputError` for another format."""
        import pandas as pd

        if not path.exists():
            return []
        text = read_text(path, "--table")
        words = {name: kind for name, kind in self.types.items() if kind is str}
        try:
            frame = pd.read_csv(io.StringIO(text), dtype=words)
            return frame[list(self.columns)].astype(dict(self.types)).to_dict("records")
        except (KeyError, TypeError, ValueError, OverflowError):
            raise InputError(f"--table: {path} is no table of {self.what} (use a new file)") from None

    def write(self, path: Path, rows: Sequence[Row]) -> None:
        """Write the rows in place of the file."""
        write_bytes(path, self.frame(rows).to_csv(index=False, lineterminator="\n").encode())
