"""Tables of learning curves: a CSV file with a row a candidate, and a JSON file of how it was made.

README.md in this folder documents both formats.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ..core.errors import InputError
from ..core.fileio import read_text, write_bytes
from ..recipes.recipe import make_recipe
from ..space.sampling import Params

MAX_TABLE_BYTES = 1 << 26


@dataclass(frozen=True)
class Curve:
    """The learning curve of one candidate that was trained to the last epoch."""

    candidate: int  # its number among the random candidates of the space, from 0
    params: Params  # its point of the search space
    n_params: int  # parameters of the network
    macs: int  # multiply-adds for one image
    seconds: float  # of training
    accuracies: tuple[float, ...]  # 0 to 1, on the validation images, by epoch; 0 where training failed
    losses: tuple[float, ...]  # nats an image, on the same images; NaN where training failed


@dataclass(frozen=True)
class CurvesMetadata:
    """The conditions that all curves of a table share; the fields of its JSON file."""

    space: dict[str, Any]  # as in its TOML
    max_params: int
    recipe: dict[str, Any]  # as in its TOML
    data: str  # name and fingerprint of the training images
    images: int  # trained on, an epoch
    seed: int  # of the random candidates


def read_curves(path: Path) -> tuple[CurvesMetadata, list[Curve]]:
    """A table and its metadata; raises `InputError` where a file is missing or has another format."""
    file = path.with_suffix(".json")
    text, conditions = (read_text(one, "--curves", MAX_TABLE_BYTES) for one in (path, file))
    try:
        metadata = CurvesMetadata(**json.loads(conditions))
        epochs = make_recipe(metadata.recipe, "recipe").epochs
        curves = [_curve_of(row, epochs) for row in pd.read_csv(io.StringIO(text)).to_dict("records")]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"--curves: {path} with {file} is no table of curves ({error})") from None
    if not curves or len({curve.candidate for curve in curves}) < len(curves):
        raise InputError(f"--curves: {path} is no table of curves (empty, or a candidate comes twice)")
    return metadata, curves


def write_curves(path: Path, metadata: CurvesMetadata, curves: Sequence[Curve]) -> None:
    """Write a table, sorted by candidate, and its metadata."""
    rows = [
        {name: getattr(curve, name) for name in ("candidate", "n_params", "macs", "seconds")}
        | {f"accuracy_{epoch}": value for epoch, value in enumerate(curve.accuracies, 1)}
        | {f"loss_{epoch}": value for epoch, value in enumerate(curve.losses, 1)}
        | {"draws": json.dumps(curve.params)}
        for curve in sorted(curves, key=lambda curve: curve.candidate)
    ]
    write_bytes(path.with_suffix(".json"), (json.dumps(asdict(metadata), indent=2) + "\n").encode())
    write_bytes(path, pd.DataFrame(rows).to_csv(index=False, lineterminator="\n").encode())


def _curve_of(row: dict[Any, Any], epochs: int) -> Curve:
    return Curve(
        candidate=int(row["candidate"]),
        params=json.loads(row["draws"]),
        n_params=int(row["n_params"]),
        macs=int(row["macs"]),
        seconds=float(row["seconds"]),
        accuracies=tuple(float(row[f"accuracy_{epoch}"]) for epoch in range(1, epochs + 1)),
        losses=tuple(float(row[f"loss_{epoch}"]) for epoch in range(1, epochs + 1)),
    )
