"""``python -m nas_mnist.bench train``: networks trained by recipes on parts of a search's images.

One command for two questions: which recipe suits a network, and how well do short trainings rank full ones.
README.md in this folder documents the columns of its table.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..core.cli import (
    HOW_WELL,
    OUTPUT,
    WHAT,
    DataDir,
    Dataset,
    Device,
    Workers,
    argument,
    as_path,
    as_table,
    check_data_dir,
    integer,
    option,
    whole,
)
from ..core.defaults import MAX_SEED
from ..core.errors import InputError
from ..core.fileio import check_writable
from ..core.process_pool import auto_workers, parse_workers, run_workers
from ..lookup import resolve
from ..models.architecture import Architecture
from ..models.cost import Budget, cost_of
from ..models.width import fit_width_multiplier
from ..recipes.recipe import Recipe, load_recipe
from ..training.jobs import Source, ValidateJob, Validation
from ..training.requirements import summarise
from ..training.stability import stability_warning
from .rows import Row, TableFormat

if TYPE_CHECKING:
    import numpy as np
    from pandas import DataFrame
    from rich.table import Table

DEFAULT_TABLE = "reports/trainings/mnist.csv"
KEYS = ["key", "digest", "data", "images", "seed"]  # two trainings with the same values are the same training
RESULTS = ["seconds", "train_loss", "validation_loss", "validation_accuracy"]
COLUMNS = ["network", "n_params", "macs", "recipe", *KEYS, *RESULTS]
TABLE = TableFormat(
    "trainings",
    COLUMNS,
    dict.fromkeys(["key", "digest", "data"], str)
    | {"seed": int, "images": int}
    | dict.fromkeys(RESULTS, float),
)
MIN_RANKED = 5  # networks, for a rank correlation


def train(
    networks: Annotated[list[str], argument("NETWORK...", "Names of the zoo, .json files or folders.")],
    recipe: Annotated[
        list[str] | None, option(HOW_WELL, "NAME|FILE", "Train by this recipe (the network's); repeatable.")
    ] = None,
    images: Annotated[
        list[int] | None,
        option(HOW_WELL, "N", "Train on N images an epoch (all); repeatable.", parser=whole(100, 10**7)),
    ] = None,
    max_params: Annotated[
        int | None, integer(WHAT, 1, 10**9, "Widen or narrow the networks to N parameters.")
    ] = None,
    seeds: Annotated[int, integer(HOW_WELL, 1, 1000, "Train with N seeds (2).")] = 2,
    seed: Annotated[int, integer(HOW_WELL, 0, MAX_SEED, "Begin with seed N (0).")] = 0,
    table: Annotated[
        str, option(OUTPUT, "FILE.csv", f"Make or extend this table ({DEFAULT_TABLE}).")
    ] = DEFAULT_TABLE,
    dataset: Dataset = "mnist",
    data_dir: DataDir = None,
    device: Device = "auto",
    workers: Workers = "auto",
) -> None:
    """Train networks on a search's images, and compare them on the validation images.

    Trainings that the table has are not repeated.
    """
    path = as_table("--table", table)
    check_data_dir(data_dir, dataset)
    processes = parse_workers(workers)
    by_name = {name: _network(name, recipe or [], max_params) for name in networks}
    check_writable(path.parent, "--table")

    from ..data.dataset import load
    from ..report.progress import make_console, print_warning
    from ..training.device import pick_device
    from ..training.final import check_fits
    from ..training.loop import check_batches

    device_type = pick_device(device).type
    rows, data = TABLE.read(path), load(dataset, as_path(data_dir))
    train_data, fingerprint = data.split()[0], f"{data.name} {data.fingerprint}"
    counts = sorted(set(images or [len(train_data)]))
    if counts[-1] > len(train_data):
        raise InputError(f"--images: {counts[-1]:,} (use at most {len(train_data):,})")
    wanted: list[Row] = []
    jobs: dict[int, list[Validation]] = {count: [] for count in counts}
    done = {tuple(row[name] for name in KEYS) for row in rows}
    for count, (name, (architecture, recipes)), number in product(
        counts, by_name.items(), range(seed, seed + seeds)
    ):
        check_fits(architecture, data)
        for recipe_name, used in recipes.items():
            used_data = train_data.sample(count) if count < len(train_data) else train_data
            check_batches(used_data, used, architecture.normalises)
            row = _row(name, architecture, recipe_name, used, fingerprint, count, number)
            wanted.append(row)
            if (key := tuple(row[column] for column in KEYS)) not in done:
                done.add(key)
                title = f"{name}, {recipe_name}, {count:,} images, seed {number}"
                jobs[count].append(Validation(title, str(len(wanted) - 1), architecture, used, number))
    console = make_console()
    for name, (architecture, recipes) in by_name.items():
        for recipe_name, used in recipes.items():
            if warning := stability_warning(architecture, used):
                print_warning(console, f"{name}, {recipe_name}: {warning}")
    source = Source(dataset, as_path(data_dir), device_type)
    begun, missing = len(rows), sum(map(len, jobs.values()))
    try:
        for count, trainings in jobs.items():
            part = None if count == len(train_data) else count
            _train(trainings, wanted, rows, path, ValidateJob(trainings, source, part), processes)
    except KeyboardInterrupt:
        console.print(
            f"Kept in {path}: {len(rows) - begun} of {missing} trainings; the same command continues"
        )
        raise
    frame = TABLE.frame([one for one in rows if one["key"] in {row["key"] for row in wanted}])
    console.print(_means_table(frame[frame["data"] == fingerprint]))
    if ranks := rank_correlations(frame[frame["data"] == fingerprint]):
        console.print(_ranks_table(ranks))
    console.print(f"Written: {path}" if any(jobs.values()) else f"Nothing to train: {path} has them all")


def _network(
    name: str, recipes: Sequence[str], max_params: int | None
) -> tuple[Architecture, dict[str, Recipe]]:
    """A network and its recipes by name."""
    found = resolve(name)
    used = {one: load_recipe(one) for one in recipes} or {found.recipe_name: found.recipe}
    if max_params is None:
        return found.architecture, used
    architecture = fit_width_multiplier(found.architecture, Budget(max_params))
    if (least := cost_of(architecture).params) > max_params:
        raise InputError(f"--max-params: {max_params:,} ({name} has at least {least:,})")
    return architecture, used


def _row(
    name: str, architecture: Architecture, recipe: str, used: Recipe, data: str, images: int, seed: int
) -> Row:
    """The columns of a training that are known before it."""
    cost = cost_of(architecture)
    values = name, cost.params, cost.macs, recipe, architecture.key, used.digest, data, images, seed
    return dict(zip(COLUMNS, values, strict=False))


def _train(
    trainings: Sequence[Validation],
    wanted: Sequence[Row],
    rows: list[Row],
    path: Path,
    job: ValidateJob,
    processes: int | None,
) -> None:
    """Train, and write the table after every training."""
    from ..report.epoch_log import EpochLog
    from ..report.progress import make_console

    if not trainings:
        return
    console, by_key = make_console(), {one.key: one for one in trainings}
    seconds: dict[str, float] = dict.fromkeys((one.name for one in trainings), 0.0)

    def on_epoch(name: str, result: Any) -> None:
        seconds[name] += result.seconds
        log(name, result)

    def on_score(key: str, seed: int, accuracy: float, losses: np.ndarray | None) -> None:  # noqa: ARG001
        training = by_key[key]
        if losses is None:
            console.print(f"{training.name}: failed", style="red", markup=False)
            return
        score = log.newest[training.name].score
        values = round(seconds[training.name], 1), log.newest[training.name].train_loss
        loss = score.loss if score else float(losses.mean())
        rows.append(wanted[int(key)] | dict(zip(RESULTS, (*values, loss, accuracy), strict=True)))
        TABLE.write(path, rows)
        console.print(f"{training.name}: {accuracy:.2%}, loss {loss:.4f}", markup=False)

    with EpochLog(console, trainings[0].recipe.epochs, len(trainings), lines=False) as log:
        count = processes or auto_workers(job.source.device)
        run_workers(job, count, len(trainings), {"epoch": on_epoch, "score": on_score})


def rank_correlations(frame: DataFrame) -> list[tuple[int, str, int, float, float]]:
    """How trainings on fewer images rank those on the most, for each way of scoring.

    Rows of (images, score, networks, Spearman's correlation with the loss of the most images, with their
    accuracy); means over seeds, 1 is best. Empty below `MIN_RANKED` networks.
    """
    from scipy.stats import spearmanr

    columns = ["validation_loss", "validation_accuracy"]
    means = frame.groupby(["key", "digest", "images"])[columns].mean().reset_index()
    full = means[means["images"] == means["images"].max()]
    found = []
    for images, part in means.groupby("images"):
        both = part.merge(full, on=["key", "digest"], suffixes=("", "_full"))
        if images == means["images"].max() or len(both) < MIN_RANKED:
            continue
        for column, sign in (("validation_loss", 1), ("validation_accuracy", -1)):
            ranks = (
                sign * float(spearmanr(both[column], wanted_sign * both[f"{wanted}_full"]).statistic)
                for wanted, wanted_sign in (("validation_loss", 1), ("validation_accuracy", -1))
            )
            found.append((int(str(images)), column.removeprefix("validation_"), len(both), *ranks))
    return found  # type: ignore[return-value]


def _means_table(frame: DataFrame) -> Table:
    """A row a network, recipe and number of images, the lowest mean loss first."""
    from ..report.tables import SUMMARY, new_table, summary_cells

    title = "Validation images after the last epoch"
    headings = ["Params", "Images", *SUMMARY[:3], "Loss", "Seconds"]  # without the interval: 80 columns
    table = new_table(title, ["Network", "Recipe"], headings, compact=True)
    groups = [group for _, group in frame.groupby(["key", "digest", "images"])]
    for group in sorted(groups, key=lambda one: (-one["images"].iloc[0], one["validation_loss"].mean())):
        first = group.iloc[0]
        summary = summarise(list(group["validation_accuracy"]))
        more = f"{group['validation_loss'].mean():.4f}", f"{group['seconds'].mean():.0f}"
        sizes = f"{first['n_params']:,}", f"{first['images']:,}"
        name = Path(first["network"]).name.removesuffix(".json")
        table.add_row(name, first["recipe"], *sizes, *summary_cells(summary)[:3], *more)
    return table


def _ranks_table(ranks: Sequence[tuple[int, str, int, float, float]]) -> Table:
    """The result of `rank_correlations`."""
    from ..report.tables import new_table

    title = "Rank correlation with the trainings on the most images"
    table = new_table(title, ["Score"], ["Images", "Networks", "With their loss", "With their accuracy"])
    for images, score, count, with_loss, with_accuracy in ranks:
        table.add_row(score, f"{images:,}", str(count), f"{with_loss:.2f}", f"{with_accuracy:.2f}")
    return table
