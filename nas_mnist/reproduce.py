"""``python -m nas_mnist.reproduce NAME|best|FILE|FOLDER``: train on all images, then test and report."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .core.cli import (
    HOW_WELL,
    OUTPUT,
    WHAT,
    WHERE,
    DataDir,
    Device,
    EngineName,
    Network,
    Quiet,
    Storage,
    Study,
    as_new_file,
    as_path,
    check_data_dir,
    check_in_use,
    check_lookup,
    check_name,
    command_line,
    option,
    run,
    whole,
)
from .core.defaults import DEFAULT_STORAGE, DEFAULT_STUDY, MAX_EPOCHS, MAX_SEED, REPORTS
from .core.errors import InputError, NoResultError
from .core.fileio import check_writable, write_bytes
from .core.process_pool import auto_workers, parse_workers
from .lookup import resolve
from .models import zoo
from .recipes.recipe import load_recipe
from .training.jobs import RetrainJob, Source, retrain_seeds
from .training.run_store import RESULT, RunStore, metadata_of
from .training.stability import stability_warning

if TYPE_CHECKING:
    from rich.console import Console

    from .data.dataset import DataSet
    from .models.architecture import Architecture


def _show_zoo(wanted: bool) -> None:
    if wanted:
        from .report.items import comparison_rows, item_of_name
        from .report.progress import make_console
        from .report.tables import comparison_table

        rows = comparison_rows([item_of_name(name, None) for name in zoo.names()])
        make_console().print(comparison_table(rows, "The zoo on MNIST"))
        raise typer.Exit


def reproduce(
    network: Network,
    seeds: Annotated[int, option(HOW_WELL, "N", "Train with N seeds (1).", parser=whole(1, 1000))] = 1,
    seed: Annotated[
        int, option(HOW_WELL, "N", "Begin with seed N (0).", parser=whole(0, MAX_SEED - 1000))
    ] = 0,
    recipe: Annotated[
        str | None, option(HOW_WELL, "NAME|FILE", "Train by another recipe (the network's own).")
    ] = None,
    epochs: Annotated[
        int | None,
        option(HOW_WELL, "N", "Train for N epochs (the recipe's, 20).", parser=whole(1, MAX_EPOCHS)),
    ] = None,
    study: Study = DEFAULT_STUDY,
    storage: Storage = DEFAULT_STORAGE,
    trial: Annotated[
        int | None,
        option(WHAT, "N", "With 'best': trial N, not the winner.", parser=whole(0, 10**9)),
    ] = None,
    dataset: Annotated[str | None, option(WHAT, "NAME", "Train on this data set (the network's).")] = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    workers: Annotated[str, option(WHERE, "N|auto", "Train N seeds at once (auto: one a core).")] = "auto",
    engine: EngineName = None,
    json_file: Annotated[
        str | None, option(OUTPUT, "FILE", "Copy the result to a new file.", "--json")
    ] = None,
    quiet: Quiet = False,
    _: Annotated[
        bool,
        option(OUTPUT, "", "Show the zoo, train nothing.", "--list", callback=_show_zoo, is_eager=True),
    ] = False,
) -> None:
    """Train a network on all training images and report the last epoch's test accuracy.

    The same command continues: seeds that the folder of the same training has are not trained again.
    """
    check_lookup(network, study, storage)
    check_in_use("--trial", trial, None, network == "best", "with 'best'")
    count = parse_workers(workers)
    found = resolve(network, study, storage, trial)
    check_name("network", found.name)
    dataset = found.dataset if dataset is None else dataset
    found = found.on(dataset)
    check_data_dir(data_dir, dataset)
    own_recipe = (found.recipe if recipe is None else load_recipe(recipe)).with_epochs(epochs)
    check_writable(REPORTS, "reports")
    copy_to = as_new_file(json_file)

    from .report.epoch_log import EpochLog
    from .report.progress import loading, make_console
    from .study.storage import hide_password

    console = make_console(quiet)
    with loading("Loading torch", quiet):
        from .data.dataset import load
        from .engine.backend import resolve_engine
        from .training.device import describe_device, describe_machine, pick_device
        from .training.final import check_fits

        where = pick_device(device)
        chosen, note = resolve_engine(engine, where)
    data = load(dataset, as_path(data_dir), quiet)
    check_fits(found.architecture, data, own_recipe)
    recipe_name = recipe or found.recipe_name
    machine, limit = describe_machine(where, count or 1), found.budget
    metadata = metadata_of(found.name, found.architecture, own_recipe, data, machine, limit)
    shown = storage, hide_password(storage)
    metadata |= {"recipe_name": recipe_name, "plain": chosen == "torch", "first_seed": seed}
    metadata["command"] = command_line("reproduce", *shown)
    store = RunStore(REPORTS, found.name, metadata, found.folder)
    missing = sorted({*range(seed, seed + seeds)} - store.seeds)
    processes = min(count or auto_workers(where.type), max(len(missing), 1))
    store.metadata["device"] = describe_machine(where, processes)
    training = f"{found.name}, recipe {recipe_name}, {describe_device(where, processes)}"
    warning = stability_warning(found.architecture, own_recipe)
    lines = [note, found.about, training, _folder_line(store, seeds, missing), warning]
    _announce(console, found.architecture, data, lines)
    source = Source(data.name, as_path(data_dir), where.type, chosen)
    job = RetrainJob(found.architecture, own_recipe, tuple(missing), source, last_only=False)
    again = command_line("reproduce", *shown, again=True)
    with _continuation_hint(store, range(seed, seed + seeds), again, console):
        if missing:
            with EpochLog(console, own_recipe.epochs, len(missing)) as log:
                retrain_seeds(job, data, processes, log, store.add)
        _report(store, data, console, as_path(data_dir))
        if copy_to is not None:
            write_bytes(copy_to, (store.folder / RESULT).read_bytes())
    console.print(f"Written: {store.folder}" if missing else f"Nothing to train: see {store.folder}")


def _folder_line(store: RunStore, seeds: int, missing: Sequence[int]) -> str:
    """A line about an earlier folder of this name, if there is one."""
    if len(missing) < seeds:
        return f"{store.folder} has {seeds - len(missing)} of {seeds} seeds"
    folder = store.parent / store.name
    another = folder.exists() and not store.seeds
    return f"{folder} holds another training; this one gets a new folder" if another else ""


def _announce(console: Console, architecture: Architecture, data: DataSet, lines: Sequence[str]) -> None:
    """Print the network, the data and those of the lines that are not empty."""
    from .report.layer_table import layer_table
    from .report.progress import print_warning

    console.print(layer_table(architecture), markup=False)
    console.print(f"Data: {data.source}", markup=False)
    print_warning(console, data.note)
    console.print(*filter(None, lines), sep="\n", markup=False)


def _report(store: RunStore, data: DataSet, console: Console, data_dir: Path | None) -> None:
    """Print all runs of the folder as tables, and write its page."""
    from .report.items import item_of_result
    from .report.progress import print_warning
    from .report.sections import sections_of
    from .report.tables import print_result, published_table
    from .report.write import write_report

    result = store.result
    item = item_of_result(result, store.folder.name, data_dir, store.folder)
    if result["name"] == "reference" and data.name == "mnist":
        console.print(published_table(result["runs"][0], str(result.get("recipe_name") or "unknown")))
    print_result(console, item, result)
    print_warning(console, data.note)
    write_report(store.folder, sections_of([item]))


@contextlib.contextmanager
def _continuation_hint(store: RunStore, seeds: Sequence[int], again: str, console: Console) -> Iterator[None]:
    """Print what is kept, and how to continue, if the command ends early."""
    try:
        yield
    except (KeyboardInterrupt, NoResultError, InputError) as error:
        if done := store.seeds.intersection(seeds):
            kept = f"Kept in {store.folder}: {len(done)} of {len(seeds)} seeds. Continue with:\n{again}"
            console.print(kept, soft_wrap=True, markup=False)
        elif isinstance(error, KeyboardInterrupt):
            console.print("Interrupted; nothing was written.")
        raise


if __name__ == "__main__":
    run(reproduce)
