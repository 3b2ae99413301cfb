"""``python -m nas_mnist.bench recipes``: one network trained by several recipes, on a search's images.

README.md in this folder documents the columns of its table.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..core.cli import (
    HOW_WELL,
    OUTPUT,
    DataDir,
    Dataset,
    Device,
    Network,
    Workers,
    argument,
    as_path,
    as_table,
    check_data_dir,
    integer,
    option,
)
from ..core.defaults import MAX_SEED
from ..core.errors import InputError
from ..core.fileio import check_writable, read_text, write_bytes
from ..core.process_pool import auto_workers, parse_workers, run_workers
from ..lookup import resolve
from ..recipes.recipe import Recipe, load_recipe
from ..training.jobs import Source, ValidateJob, Validation
from ..training.requirements import summarise

if TYPE_CHECKING:
    from rich.table import Table

DEFAULT_TABLE = "reports/recipes/mnist.csv"
KEYS = ["key", "digest", "data", "seed"]  # two trainings with the same values are the same training
RESULTS = ["train_loss", "validation_loss", "validation_accuracy"]
COLUMNS = ["network", "recipe", *RESULTS, *KEYS]
Row = dict[Any, Any]  # by column


def recipes(
    network: Network,
    names: Annotated[list[str], argument("RECIPE...", "Recipes, as --recipe of a search.")],
    seeds: Annotated[int, integer(HOW_WELL, 1, 1000, "Train with N seeds (3).")] = 3,
    seed: Annotated[int, integer(HOW_WELL, 0, MAX_SEED, "Begin with seed N (0).")] = 0,
    table: Annotated[
        str, option(OUTPUT, "FILE.csv", f"Make or extend this table ({DEFAULT_TABLE}).")
    ] = DEFAULT_TABLE,
    dataset: Dataset = "mnist",
    data_dir: DataDir = None,
    device: Device = "auto",
    workers: Workers = "auto",
) -> None:
    """Train one network by several recipes, and compare them on the validation images.

    Trainings that the table has are not repeated.
    """
    path = as_table("--table", table)
    check_data_dir(data_dir, dataset)
    processes = parse_workers(workers)
    found = resolve(network)
    by_name = _load_recipes(names)
    check_writable(path.parent, "--table")

    import pandas as pd

    from ..data.dataset import load
    from ..report.epoch_log import EpochLog
    from ..report.progress import make_console
    from ..training.device import pick_device
    from ..training.final import check_fits
    from ..training.loop import check_enough

    device_type = pick_device(device).type
    rows, data = read_rows(path), load(dataset, as_path(data_dir))
    check_fits(found.architecture, data)
    for recipe in by_name.values():
        check_enough(data.split()[0], recipe)
    images, key = f"{data.name} {data.fingerprint}", found.architecture.key
    known = {tuple(row[name] for name in KEYS) for row in rows}
    trainings = [
        Validation(_training_name(name, number), name, found.architecture, recipe, number)
        for number in range(seed, seed + seeds)
        for name, recipe in by_name.items()
        if (key, recipe.digest, images, number) not in known
    ]
    console = make_console()

    def on_score(recipe: str, seed: int, _: float) -> None:
        training = _training_name(recipe, seed)
        result = log.newest.get(training)
        if result is None or result.score is None:
            console.print(f"{training}: failed", style="red", markup=False)
            return
        values = result.train_loss, result.score.loss, result.score.accuracy
        keys = key, by_name[recipe].digest, images, seed
        rows.append(dict(zip(COLUMNS, (found.name, recipe, *values, *keys), strict=True)))
        text = pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False, lineterminator="\n")
        write_bytes(path, text.encode())
        console.print(f"{training}: {result.score.accuracy:.2%}", markup=False)

    if trainings:
        job = ValidateJob(trainings, Source(dataset, as_path(data_dir), device_type))
        with EpochLog(console, trainings[0].recipe.epochs, len(trainings), lines=False) as log:
            count = processes or auto_workers(device_type)
            run_workers(job, count, len(trainings), {"epoch": log, "score": on_score})
    ours = [row for row in rows if (row["key"], row["data"]) == (key, images)]
    console.print(_recipes_table(found.name, ours))
    console.print(f"Written: {path}" if trainings else f"Nothing to train: {path} has them all")


def _training_name(recipe: str, seed: int) -> str:
    return f"{recipe}, seed {seed}"


def _load_recipes(names: Sequence[str]) -> dict[str, Recipe]:
    """Recipes by name; raises `InputError` unless they differ and have equally many epochs."""
    by_name = {name: load_recipe(name) for name in names}
    if len({recipe.digest for recipe in by_name.values()}) < len(names):
        raise InputError("recipes: one comes twice (use each once)")
    epochs, *others = sorted({recipe.epochs for recipe in by_name.values()})
    if others:
        raise InputError(f"recipes: of {epochs} and {others[0]} epochs (use as many for all of them)")
    return by_name


def read_rows(path: Path) -> list[Row]:
    """The rows of a table, which may not exist; raises `InputError` for another format."""
    import pandas as pd

    if not path.exists():
        return []
    text = read_text(path, "--table")
    try:
        frame = pd.read_csv(io.StringIO(text), dtype=dict.fromkeys(["key", "digest", "data"], str))
        types = {"seed": int} | dict.fromkeys(RESULTS, float)
        return frame[COLUMNS].astype(types).to_dict("records")
    except (KeyError, TypeError, ValueError, OverflowError):
        raise InputError(f"--table: {path} is no table of recipes (use a new file)") from None


def _recipes_table(network: str, rows: Sequence[Row]) -> Table:
    """The trainings of a network, a row a recipe, the best mean accuracy first."""
    import pandas as pd

    from ..report.tables import SUMMARY, new_table, summary_cells

    title = f"{network}: validation images after the last epoch"
    table = new_table(title, ["Recipe"], [*SUMMARY, "Loss", "Training loss"], compact=True)
    groups = [group for _, group in pd.DataFrame(rows, columns=COLUMNS).groupby("digest")]
    for group in sorted(groups, key=lambda group: -group["validation_accuracy"].mean()):
        summary = summarise(list(group["validation_accuracy"]))
        losses = (f"{group[column].mean():.4f}" for column in ("validation_loss", "train_loss"))
        table.add_row(group["recipe"].iloc[0], *summary_cells(summary), *losses)
    return table
