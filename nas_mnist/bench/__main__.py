"""``python -m nas_mnist.bench``: how fast this machine trains, beside a plain PyTorch loop, in one run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.cli import as_path, check_data_dir, run, whole
from ..core.fileio import check_new, write_bytes
from .networks import benchmark_networks
from .recipes_command import recipes
from .record_command import record
from .replay_command import search

if TYPE_CHECKING:
    import torch

    from ..data.dataset import DataSet, Images
    from ..models.architecture import Architecture

SUBCOMMANDS: dict[str, Callable[..., None]] = {"record": record, "search": search, "recipes": recipes}
BUSY_LOAD = 0.5  # load average of the minute before, from which on figures are not reliable
Measurement = Callable[[], Mapping[str, object]]


def bench(
    images: Annotated[
        int, typer.Option(parser=whole(640, 60_000), metavar="N", help="Images trained on in a turn.")
    ] = 6_400,
    repeats: Annotated[int, typer.Option(parser=whole(1, 100), metavar="N", help="Rounds that count.")] = 5,
    seeds: Annotated[
        int, typer.Option(parser=whole(0, 100), metavar="N", help="Seeds of the time to 99 %.")
    ] = 0,
    dataset: Annotated[str, typer.Option(metavar="NAME", help="mnist or mnist-5k.")] = "mnist",
    data_dir: Annotated[str | None, typer.Option(metavar="DIR", help="Folder of MNIST/raw.")] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or mps.")] = "auto",
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="New file for the results.")
    ] = None,
) -> None:
    """Measure training speed beside a plain PyTorch loop, and overheads.

    Sub-commands, each with its own --help:

    bench record: train random candidates, and store their learning curves.

    bench search: replay searches on stored learning curves.

    bench recipes: train one network by several recipes, and compare them.
    """
    check_data_dir(data_dir, dataset)
    json_path = as_path(json_file)
    if json_path is not None:
        check_new(json_path, "--json")

    import torch

    from ..data.dataset import load
    from ..report.progress import make_console
    from ..training.device import pick_device
    from .speed import measure_training
    from .tables import speed_table, values_table

    console = make_console()
    torch_device = pick_device(device)
    data = load(dataset, as_path(data_dir))
    train_data, val_data = (part.to(torch_device) for part in data.split())
    train_data = train_data.take(torch.arange(min(images, len(train_data)), device=torch_device))
    results = _describe_run(torch_device) | {"images": len(train_data), "repeats": repeats, "training": {}}
    console.print(values_table("Machine", results["machine"]))
    if (load_before := results["load_before"]) is not None and load_before > BUSY_LOAD:
        console.print(
            f"Other processes are running (load {load_before}): these figures are not reliable",
            style="yellow",
        )
    networks = benchmark_networks()
    for name, architecture in networks.items():
        results["training"][name] = measure_training(architecture, train_data, val_data, repeats)
        console.print(speed_table(name, results["training"][name]))
    measurements = _measurements(networks["reference"], data, train_data, repeats, seeds, as_path(data_dir))
    for name, measure in measurements.items():
        results[name] = measure()
        console.print(values_table(name.replace("_", ", in ").capitalize(), results[name]))
    if json_path is not None:
        write_bytes(json_path, (json.dumps(results, indent=2) + "\n").encode())


def _describe_run(device: torch.device) -> dict[str, Any]:
    """The machine, the versions of libraries, and the load before the first measurement."""
    from ..core.versions import versions
    from ..training.device import describe_device, describe_processor
    from .speed import load_average

    machine = {"device": describe_device(device), "processor": describe_processor()}
    return {"machine": machine | versions(), "load_before": load_average()}


def _measurements(
    reference: Architecture,
    data: DataSet,
    train_data: Images,
    repeats: int,
    seeds: int,
    data_dir: Path | None,
) -> dict[str, Measurement]:
    """The measurements after the comparison of loops, by their names in the JSON file."""
    from . import overheads, speed

    device = train_data.images.device
    found: dict[str, Measurement] = {}
    if device.type == "cpu":
        found["workers"] = lambda: speed.measure_workers(reference, train_data, repeats)
    found["seeds"] = lambda: speed.measure_seeds(reference, train_data, repeats)
    if seeds:
        found["time"] = lambda: speed.measure_time_to_accuracy(reference, data, device, seeds)
    found["counting"] = overheads.measure_counting
    found["building"] = lambda: overheads.measure_building(reference)
    found["starting_seconds"] = lambda: overheads.measure_commands(overheads.STARTING, 5)
    if device.type == "cuda":
        found["whole_seconds"] = lambda: overheads.measure_commands(overheads.WHOLE, 1, data_dir)
    return found


if __name__ == "__main__":
    run(bench, **SUBCOMMANDS)
