"""``python -m nas_mnist.bench record``: store how random candidates of a space learn."""

from __future__ import annotations

from typing import Annotated

import typer

from ..core.cli import as_path, as_table, check_data_dir, whole
from ..core.defaults import MAX_EPOCHS
from ..core.errors import InputError
from ..core.fileio import check_writable
from ..core.process_pool import auto_workers, parse_workers
from ..models.cost import Budget
from ..recipes.recipe import load_recipe
from ..space.space import SearchSpace

DEFAULT_TABLE = "reports/curves/mnist.csv"


def record(
    curves: Annotated[
        str, typer.Option(metavar="FILE.csv", help="Table to make or to extend.")
    ] = DEFAULT_TABLE,
    candidates: Annotated[
        int, typer.Option(parser=whole(1, 100_000), metavar="N", help="Rows of the table in the end.")
    ] = 200,
    max_params: Annotated[
        int, typer.Option(parser=whole(1, 10**9), metavar="N", help="Parameter budget.")
    ] = 20_000,
    space: Annotated[str, typer.Option(metavar="NAME|FILE.toml", help="Search space.")] = "default",
    recipe: Annotated[str, typer.Option(metavar="NAME|FILE.toml", help="Training recipe.")] = "default",
    epochs: Annotated[
        int | None, typer.Option(parser=whole(1, MAX_EPOCHS), metavar="N", help="Default: the recipe's.")
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(parser=whole(100, 10**7), metavar="N", help="Images an epoch; default: all."),
    ] = None,
    dataset: Annotated[str, typer.Option(metavar="NAME", help="Data set, as in a search.")] = "mnist",
    data_dir: Annotated[str | None, typer.Option(metavar="DIR", help="Folder of MNIST/raw.")] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or mps.")] = "auto",
    workers: Annotated[str, typer.Option(metavar="N|auto", help="Training processes.")] = "auto",
    seed: Annotated[
        int, typer.Option(parser=whole(0, 2**31 - 1), metavar="N", help="Seed of the draws.")
    ] = 0,
) -> None:
    """Train random candidates without pruning, and store their learning curves.

    The same command with more candidates extends the table.
    """
    path = as_table("--curves", curves)
    check_data_dir(data_dir, dataset)
    processes = parse_workers(workers)
    SearchSpace.load(space)  # an error in it is reported before any data are read
    used_recipe = load_recipe(recipe) if epochs is None else load_recipe(recipe).with_epochs(epochs)
    check_writable(path.parent, "--curves")

    import torch

    from ..data.dataset import load
    from ..report.progress import make_console
    from ..study.candidate import check_space
    from ..training.device import pick_device
    from ..training.jobs import Source
    from ..training.loop import check_enough
    from .curves import Curve, check_metadata
    from .record import RecordJob, record_curves

    device_type = pick_device(device).type
    data = load(dataset, as_path(data_dir))
    fitted_space = SearchSpace.load_for(space, data.shape, data.classes, data.name)
    budget = Budget(max_params)
    train_data, _ = data.split()
    if images is not None and images > len(train_data):
        raise InputError(f"--images: {images:,} (use at most {len(train_data):,})")
    check_enough(train_data.take(torch.arange(images or len(train_data))), used_recipe)
    check_space(fitted_space, budget, seed)
    job = RecordJob(
        candidates=(),
        space=fitted_space,
        budget=budget,
        recipe=used_recipe,
        images=images or len(train_data),
        seed=seed,
        source=Source(dataset, as_path(data_dir), device_type),
    )
    metadata = job.metadata(f"{data.name} {data.fingerprint}")
    check_metadata(path, metadata)
    console = make_console()

    def show(curve: Curve) -> None:
        console.print(
            f"candidate {curve.candidate}: {curve.n_params:,} parameters, {curve.accuracies[-1]:.2%}, "
            f"{curve.seconds:.0f} s"
        )

    record_curves(job, metadata, path, candidates, processes or auto_workers(device_type), show)
    console.print(f"Written: {path}")
