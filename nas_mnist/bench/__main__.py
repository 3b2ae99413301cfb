"""``python -m nas_mnist.bench``: how fast this machine trains, beside a plain PyTorch loop, in one run."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

import typer

from ..core.cli import as_path, check_data_dir, run, whole
from ..core.fileio import check_new, write_bytes
from ..models.architecture import Architecture
from ..models.zoo import load as load_from_zoo
from . import recipes as bench_recipes
from . import search as bench_search


def _conv(channels: int) -> dict[str, Any]:
    return {"kind": "conv", "channels": channels}


def _separable(channels: int, **fields: Any) -> dict[str, Any]:
    return {"kind": "separable", "channels": channels, **fields}


_POOL = {"kind": "pool"}
# By the first word.
OTHERS: dict[str, Callable[..., None]] = {
    "record": bench_search.record,
    "search": bench_search.search,
    "recipes": bench_recipes.recipes,
}
BUSY = 0.5  # processes on average in the minute before, from which on the machine counts as busy
FEW = 1_280  # images of a turn without one of the engine's tricks
FOUND = ["reference", "mnist-1k"]  # networks of the zoo that are trained
NETWORKS = {  # and others
    "narrow": [_conv(4), _conv(8), _POOL, _conv(12), _conv(12), _POOL, _conv(12)],
    "separable": [
        *(_conv(16), _separable(32), _separable(32), _POOL),
        *(_separable(48), _separable(48), _separable(48), _POOL, _separable(64), _separable(64)),
    ],
    "strided": [
        *(_conv(8), _separable(24), _separable(40, stride=2), _separable(48, kernel=5)),
        *(_separable(64, kernel=5, stride=2), _separable(64)),
    ],
}


def bench(
    images: Annotated[
        int, typer.Option(parser=whole(640, 60_000), metavar="N", help="Trained on in a turn.")
    ] = 6_400,
    repeats: Annotated[int, typer.Option(parser=whole(1, 100), metavar="N", help="Turns that count.")] = 5,
    seeds: Annotated[
        int, typer.Option(parser=whole(0, 100), metavar="N", help="Full trainings, for the time to 99 %.")
    ] = 0,
    dataset: Annotated[str, typer.Option(help="mnist or mnist-5k.")] = "mnist",
    data_dir: Annotated[str | None, typer.Option(metavar="DIR", help="Holds MNIST/raw.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json_file: Annotated[str | None, typer.Option("--json", metavar="FILE", help="A new file.")] = None,
) -> None:
    """Measure training beside a plain loop, and counting, building, storing and starting.

    Three more: 'bench record' trains random candidates and keeps how they learn; 'bench search' replays
    searches on that; 'bench recipes' trains one network by several recipes.
    """
    check_data_dir(data_dir, dataset)
    keep = as_path(json_file)
    if keep is not None:
        check_new(keep, "--json")

    import torch

    from ..data.dataset import load
    from ..report.live import screen
    from ..report.tables import facts_table, networks_table, speed_table
    from ..training.device import describe_device, describe_processor, pick_device
    from ..training.final import versions
    from . import measure, overheads, parts

    console = screen()
    where = pick_device(device)
    everything = load(dataset, as_path(data_dir))
    learn, check = (part.to(where) for part in everything.split())
    data = learn.take(torch.arange(min(images, len(learn)), device=where))
    reference = load_from_zoo("reference").architecture
    machine = {"device": describe_device(where), "processor": describe_processor()}
    found: dict[str, Any] = {"machine": machine | versions(), "load_before": measure.load_average()}
    found |= {"images": len(data), "repeats": repeats}
    console.print(facts_table("Machine", found["machine"]))
    if found["load_before"] is not None and found["load_before"] > BUSY:
        console.print(
            f"Something else is running (load {found['load_before']}): the figures will be of no use",
            style="yellow",
        )
    found["training"], found["share_of_our_step"], found["times_faster_with"] = {}, {}, {}
    networks = {name: load_from_zoo(name).architecture for name in FOUND} | {
        name: Architecture.make({"blocks": blocks}) for name, blocks in NETWORKS.items()
    }
    for name, architecture in networks.items():
        found["training"][name] = measure.measure_training(architecture, data, check, repeats)
        console.print(speed_table(name, found["training"][name]))
        if where.type == "cpu":
            few = data.take(torch.arange(min(len(data), FEW)))
            found["share_of_our_step"][name] = parts.measure_parts(architecture, data, repeats)
            found["times_faster_with"][name] = measure.measure_tricks(architecture, few, repeats)
    if where.type == "cpu":
        console.print(networks_table("What a step's time goes to", found["share_of_our_step"], ".0%"))
        console.print(networks_table("Times faster with than without", found["times_faster_with"], ".2f"))
    found |= {"workers": measure.measure_workers(reference, data, repeats)} if where.type == "cpu" else {}
    found["seeds"] = measure.measure_together(reference, data, repeats)
    if seeds:
        found["time"] = measure.measure_time_to(reference, everything, where, seeds)
    found |= {
        "counting": overheads.measure_counting(),
        "building": overheads.measure_building(reference),
        "storage": overheads.measure_storage(),
        "starting_seconds": overheads.measure_commands(overheads.STARTING, 5),
    }
    if where.type == "cuda":
        found["whole_seconds"] = overheads.measure_commands(overheads.WHOLE, 1, as_path(data_dir))
    sections = ("workers", "seeds", "time", "counting", "building", "storage")
    for name in (*sections, "starting_seconds", "whole_seconds"):
        if name not in found:
            continue
        console.print(facts_table(name.replace("_", ", in ").capitalize(), found[name]))
    if keep is not None:
        write_bytes(keep, (json.dumps(found, indent=2) + "\n").encode())


if __name__ == "__main__":
    run(bench, **OTHERS)
