"""``python -m nas_mnist.bench recipes``: one network trained by several recipes, on a search's images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.cli import as_path, as_table, check_data_dir, whole
from ..core.errors import InputError
from ..core.fileio import check_writable
from ..core.process_pool import auto_workers, parse_workers, run_workers
from ..lookup import resolve
from ..recipes.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from rich.console import Console

    from ..lookup import NamedNetwork
    from ..training.jobs import ValidateJob
    from ..training.loop import EpochResult
    from .recipe_table import RecipeTable

DEFAULT_TABLE = "reports/recipes/mnist.csv"


def recipes(
    network: Annotated[str, typer.Argument(metavar="NETWORK|FILE.json", help="Network to train.")],
    names: Annotated[
        list[str], typer.Argument(metavar="RECIPE...", help="Recipes, as --recipe of a search.")
    ],
    seeds: Annotated[
        int, typer.Option(parser=whole(1, 1000), metavar="N", help="Trainings by each recipe.")
    ] = 3,
    seed: Annotated[int, typer.Option(parser=whole(0, 2**31 - 1), metavar="FIRST", help="First seed.")] = 0,
    table: Annotated[
        str, typer.Option(metavar="FILE.csv", help="Table to make or to extend.")
    ] = DEFAULT_TABLE,
    dataset: Annotated[str, typer.Option(metavar="NAME", help="Data set, as in a search.")] = "mnist",
    data_dir: Annotated[str | None, typer.Option(metavar="DIR", help="Folder of MNIST/raw.")] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or mps.")] = "auto",
    workers: Annotated[str, typer.Option(metavar="N|auto", help="Training processes.")] = "auto",
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

    from ..data.dataset import load
    from ..report.progress import make_console
    from ..training.device import pick_device
    from ..training.final import check_fits
    from ..training.jobs import Source, ValidateJob, Validation
    from ..training.loop import check_enough
    from .recipe_table import RecipeTable
    from .tables import recipes_table

    results = RecipeTable(path)
    device_type = pick_device(device).type
    data = load(dataset, as_path(data_dir))
    check_fits(found.architecture, data)
    for recipe in by_name.values():
        check_enough(data.split()[0], recipe)
    images, key = f"{data.name} {data.fingerprint}", found.architecture.key
    trainings = [
        Validation(_training_name(name, number), name, found.architecture, recipe, number)
        for number in range(seed, seed + seeds)
        for name, recipe in by_name.items()
        if not results.has(key, recipe.digest, images, number)
    ]
    console = make_console()
    if trainings:
        job = ValidateJob(trainings, Source(dataset, as_path(data_dir), device_type))
        _train(job, processes or auto_workers(device_type), by_name, found, images, results, console)
    console.print(recipes_table(found.name, results.of_network(key, images)))
    console.print(f"Written: {path}" if trainings else f"Nothing to train: {path} has them all")


def _load_recipes(names: Sequence[str]) -> dict[str, Recipe]:
    """Recipes by name; raises `InputError` unless they differ and have equally many epochs."""
    by_name = {name: load_recipe(name) for name in names}
    if len({recipe.digest for recipe in by_name.values()}) < len(names):
        raise InputError("recipes: one comes twice (use each once)")
    epochs, *others = sorted({recipe.epochs for recipe in by_name.values()})
    if others:
        raise InputError(f"recipes: of {epochs} and {others[0]} epochs (use as many for all of them)")
    return by_name


def _training_name(recipe: str, seed: int) -> str:
    return f"{recipe}, seed {seed}"


def _train(
    job: ValidateJob,
    workers: int,
    by_name: Mapping[str, Recipe],
    network: NamedNetwork,
    images: str,
    results: RecipeTable,
    console: Console,
) -> None:
    """Run the trainings of ``job``; adds a row after each, except after a training that failed."""
    from ..report.epoch_log import EpochLog
    from .recipe_table import COLUMNS

    newest: dict[str, EpochResult] = {}  # by training
    epochs = next(iter(by_name.values())).epochs
    with EpochLog(console, epochs, len(job.trainings), lines=False) as log:

        def on_epoch(training: str, result: EpochResult) -> None:
            newest[training] = result
            log(training, result)

        def on_score(recipe: str, seed: int, _: float) -> None:
            training = _training_name(recipe, seed)
            result = newest.get(training)
            if result is None or result.score is None:
                console.print(f"{training}: failed", style="red", markup=False)
                return
            values = result.train_loss, result.score.loss, result.score.accuracy
            keys = network.architecture.key, by_name[recipe].digest, images, seed
            results.add(dict(zip(COLUMNS, (network.name, recipe, *values, *keys), strict=True)))
            console.print(f"{training}: {result.score.accuracy:.2%}", markup=False)

        run_workers(job, workers, len(job.trainings), {"epoch": on_epoch, "score": on_score})
