"""``python -m nas_mnist.bench recipes``: one network trained by several recipes, on a search's images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.cli import as_path, as_table, check_data_dir, whole
from ..core.errors import InputError
from ..core.fileio import check_writable, read_text, write_bytes
from ..core.process_pool import auto_workers, parse_workers, run_workers
from ..lookup import find_entry
from ..recipes.recipe import load_recipe

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from rich.console import Console

    from ..data.dataset import Images
    from ..search.jobs import Final
    from ..training.loop import EpochResult
    from ..training.teaching import Teacher

TABLE = "reports/recipes/mnist.csv"
_KEYS = ["key", "digest", "data", "seed"]  # what makes a row another one
_RESULTS = ["train_loss", "validation_loss", "validation_accuracy"]
COLUMNS = ["network", "recipe", *_RESULTS, *_KEYS]


def recipes(
    network: Annotated[str, typer.Argument(metavar="NETWORK|FILE.json", help="What is trained.")],
    names: Annotated[
        list[str], typer.Argument(metavar="RECIPE...", help="As --recipe of a search takes them.")
    ],
    seeds: Annotated[int, typer.Option(parser=whole(1, 1000), metavar="N", help="Trainings of each.")] = 3,
    seed: Annotated[int, typer.Option(parser=whole(0, 2**31 - 1), metavar="FIRST", help="The first.")] = 0,
    table: Annotated[str, typer.Option(metavar="FILE.csv", help="One that exists grows.")] = TABLE,
    dataset: Annotated[str, typer.Option(help="mnist, fashion-mnist, idx:FOLDER, npz:FILE...")] = "mnist",
    data_dir: Annotated[str | None, typer.Option(metavar="DIR", help="Holds MNIST/raw.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    workers: Annotated[str, typer.Option(metavar="N|auto", help="Processes that train at once.")] = "auto",
) -> None:
    """Train one network by several recipes on the images that train in a search, and compare them.

    Every training is a row of the table; those that it has are not repeated.
    """
    path = as_table("--table", table)
    check_data_dir(data_dir, dataset)
    processes = parse_workers(workers)
    entry = find_entry(network)[0]
    tried = {name: load_recipe(name) for name in names}
    if len({one.digest for one in tried.values()}) < len(names):
        raise InputError("recipes: one comes twice (use each once)")
    epochs, *others = sorted({one.epochs for one in tried.values()})
    if others:
        raise InputError(f"recipes: of {epochs} and {others[0]} epochs (use as many for all of them)")
    check_writable(path.parent, "--table")

    from ..data.dataset import load
    from ..report.live import EpochLog, screen
    from ..report.tables import recipes_table
    from ..search.jobs import Final, FinalsTask
    from ..training.device import pick_device
    from ..training.final import check_fits
    from ..training.loop import check_enough

    rows = _read(path)
    where = pick_device(device)
    data = load(dataset, as_path(data_dir))
    for one in tried.values():
        check_enough(data.split()[0], one)
        check_fits(entry.architecture, data, one)
    images = f"{data.name} {data.fingerprint}"
    known = {tuple(row[key] for key in _KEYS) for row in rows}
    console = screen()
    missing = [
        Final(f"{name}, seed {number}", name, entry.architecture, recipe, number)
        for number in range(seed, seed + seeds)
        for name, recipe in tried.items()
        if (entry.architecture.key, recipe.digest, images, number) not in known
    ]
    jobs = _with_teachers(missing, data.split()[0].to(where), console)
    newest: dict[str, EpochResult] = {}
    with EpochLog(console, epochs, len(jobs), lines=False) as log:

        def heard(name: str, result: EpochResult) -> None:
            newest[name] = result
            log(name, result)

        def scored(name: str, number: int, _: float) -> None:
            result = newest.get(f"{name}, seed {number}")
            if result is None or result.score is None:
                console.print(f"{name}, seed {number}: failed", style="red", markup=False)
                return
            results = result.train_loss, result.score.loss, result.score.accuracy
            keys = (entry.architecture.key, tried[name].digest, images, number)
            rows.append(dict(zip(COLUMNS, (entry.name, name, *results, *keys), strict=True)))
            write_bytes(path, _frame(rows).to_csv(index=False, lineterminator="\n").encode())
            console.print(f"{name}, seed {number}: {result.score.accuracy:.2%}", markup=False)

        if jobs:
            task = FinalsTask(jobs, dataset, as_path(data_dir), where.type)
            run_workers(
                task, processes or auto_workers(where.type), len(jobs), {"epoch": heard, "score": scored}
            )
    same = (row for row in rows if (row["key"], row["data"]) == (entry.architecture.key, images))
    console.print(recipes_table(entry.name, list(same)))
    console.print(f"Written: {path}" if jobs else f"Nothing to train: {path} has them all")


def _with_teachers(jobs: Sequence[Final], learn: Images, console: Console) -> list[Final]:
    """The jobs with the teachers that their recipes name, each trained once."""
    from ..report.live import EpochLog
    from ..training.teaching import train_teacher

    teachers: dict[str, Teacher | None] = {"": None}
    for job in jobs:
        if (name := job.recipe.distillation.teacher) not in teachers:
            with EpochLog(console, job.recipe.epochs, 1) as log:
                teachers[name] = train_teacher(job.recipe, learn, log)
    return [job._replace(teacher=teachers[job.recipe.distillation.teacher]) for job in jobs]


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows, columns=COLUMNS)


def _read(path: Path) -> list[dict[str, Any]]:
    """The rows of a table that may not exist yet; raises `InputError` where it is none."""
    import pandas as pd

    if not path.exists():
        return []
    text = read_text(path, "--table")
    try:
        frame = pd.read_csv(io.StringIO(text), dtype=dict.fromkeys(["key", "digest", "data"], str))
        types = {"seed": int} | dict.fromkeys(_RESULTS, float)
        return [dict(zip(COLUMNS, row, strict=True)) for row in frame[COLUMNS].astype(types).to_numpy()]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise InputError(f"--table: {path} is no table of recipes (use a new file)") from None
