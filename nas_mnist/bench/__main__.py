"""``python -m nas_mnist.bench``: how fast this machine trains, beside a plain PyTorch loop, in one run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from ..core.cli import (
    HOW_WELL,
    DataDir,
    Dataset,
    Device,
    JsonFile,
    as_new_file,
    as_path,
    check_data_dir,
    integer,
    run,
)
from ..core.fileio import write_bytes
from ..core.versions import versions
from .record import record
from .search import search
from .searches import searches
from .trainings import train

if TYPE_CHECKING:
    from rich.table import Table

SUBCOMMANDS: dict[str, Callable[..., None]] = {
    "record": record,
    "search": search,
    "searches": searches,
    "train": train,
}
BUSY_LOAD = 0.5  # load average of the minute before, from which on figures are not reliable


def bench(
    images: Annotated[int, integer(HOW_WELL, 640, 60_000, "Train on N images a turn (6,400).")] = 6_400,
    repeats: Annotated[int, integer(HOW_WELL, 1, 100, "Count N rounds (5).")] = 5,
    seeds: Annotated[int, integer(HOW_WELL, 0, 100, "Seeds of the time to 99 % (0).")] = 0,
    dataset: Dataset = "mnist",
    data_dir: DataDir = None,
    device: Device = "auto",
    json_file: JsonFile = None,
) -> None:
    """Measure training speed beside a plain PyTorch loop.

    Sub-commands, each with its own --help:

    bench record: train random candidates, and store their learning curves.

    bench search: replay searches on stored learning curves.

    bench searches: run whole searches, and test what they find.

    bench train: train given networks by recipes, and compare them.
    """
    check_data_dir(data_dir, dataset)
    json_path = as_new_file(json_file)

    import torch

    from ..data.dataset import load
    from ..report.progress import make_console
    from ..training.device import describe_device, describe_processor, pick_device
    from ..training.final import check_fits
    from . import speed
    from .networks import benchmark_networks

    console, torch_device = make_console(), pick_device(device)
    data, networks = load(dataset, as_path(data_dir)), benchmark_networks()
    for architecture in networks.values():
        check_fits(architecture, data)
    train_data, val_data = (part.to(torch_device) for part in data.split())
    train_data = train_data.take(torch.arange(min(images, len(train_data)), device=torch_device))
    machine = {"device": describe_device(torch_device), "processor": describe_processor()} | versions()
    load_before = speed.load_average()
    console.print(_values_table("Machine", machine))
    if load_before is not None and load_before > BUSY_LOAD:
        warning = f"Other processes are running (load {load_before}): these figures are not reliable"
        console.print(warning, style="yellow")
    results: dict[str, Any] = {"machine": machine, "load_before": load_before}
    results |= {"images": len(train_data), "repeats": repeats, "training": {}}
    for name, architecture in networks.items():
        results["training"][name] = speed.measure_training(architecture, train_data, val_data, repeats)
        console.print(_speed_table(name, results["training"][name]))
    results["seeds"] = speed.measure_seeds(networks["reference"], train_data, repeats)
    console.print(_values_table("Seeds, images a second", results["seeds"]))
    if seeds:
        results["time"] = speed.measure_time_to_accuracy(networks["reference"], data, torch_device, seeds)
        console.print(_values_table("Time to an accuracy", results["time"]))
    if torch_device.type == "cuda":
        results["whole_seconds"] = speed.measure_commands(speed.WHOLE, as_path(data_dir))
        console.print(_values_table("Whole commands, seconds", results["whole_seconds"]))
    if json_path is not None:
        write_bytes(json_path, (json.dumps(results, indent=2) + "\n").encode())


def _values_table(title: str, values: Mapping[str, object]) -> Table:
    """Names and values."""
    from ..report.tables import new_table

    table = new_table(title, [""], [""], show_header=False)
    for name, value in values.items():
        table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int | float) else str(value))
    return table


def _speed_table(network: str, found: Mapping[str, Any]) -> Table:
    """The result of `speed.measure_training` for one network."""
    from ..report.tables import new_table

    title = f"Training {network}, {found['params']:,} parameters, images a second"
    table = new_table(title, [""], ["Median", "Slowest", "Fastest", "To plain"])
    for contender, turns in found["images_per_second"].items():
        ratio = f"{found['to_plain'][contender]:.2f}"
        table.add_row(contender, *(f"{turns[key]:,}" for key in ("median", "min", "max")), ratio)
    table.caption = (
        f"ours : in memory {found['ours_to_in_memory']:.1f}, "
        f"20 epochs in {found['seconds_for_20_epochs']:,} s; plain is a PyTorch tutorial's loop"
    )
    return table


if __name__ == "__main__":
    run(bench, **SUBCOMMANDS)
