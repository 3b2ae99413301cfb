"""``python -m nas_mnist.reproduce NAME|best|FILE.json|FOLDER``: train on all images, then test and report."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .core.cli import (
    STORAGE,
    STUDY,
    as_path,
    check_data_dir,
    check_in_use,
    check_lookup,
    run,
    typed,
    whole,
)
from .core.errors import InputError, NoResultError, stored_by_others
from .core.fileio import check_new, check_writable, write_bytes
from .core.process_pool import auto_workers, parse_workers
from .lookup import find_entry
from .models.zoo import load as load_from_zoo
from .models.zoo import names as zoo_names
from .recipes.recipe import MAX_EPOCHS, load_recipe

if TYPE_CHECKING:
    from rich.console import Console

    from .data.dataset import DataSet
    from .search.jobs import RetrainTask
    from .training.run_store import Results

REPORTS = Path("reports")
MAX_SEED = 2**31 - 1
_MODULE = ("python", "-m", "nas_mnist.reproduce")
_REPORT = ("python", "-m", "nas_mnist.report")


def _show_zoo(wanted: bool) -> None:
    if wanted:
        from .report.live import screen
        from .report.tables import zoo_table

        screen().print(zoo_table([load_from_zoo(name) for name in zoo_names()]))
        raise typer.Exit


def reproduce(
    architecture: Annotated[str, typer.Argument(metavar="NAME|best|FILE.json|FOLDER", help="What to train.")],
    _: Annotated[
        bool,
        typer.Option("--list", callback=_show_zoo, is_eager=True, help="Show the zoo, and train nothing."),
    ] = False,
    study: Annotated[str, typer.Option(help="Where 'best' is looked up.")] = STUDY,
    storage: Annotated[str, typer.Option(help="Database URL of that study.")] = STORAGE,
    trial: Annotated[
        int | None,
        typer.Option(parser=whole(0, 10**9), metavar="N", help="With 'best': another trial."),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(parser=whole(1, 1000), metavar="N", help="Trainings, each with its own seed; else 1."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(parser=whole(0, MAX_SEED - 1000), metavar="N", help="The first of them; else 0."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE.toml", help="default, small, tiny, seed or a file; else its own."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(parser=whole(1, MAX_EPOCHS), metavar="N", help="Else the recipe's.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="mnist, fashion-mnist, idx:FOLDER...; else the study's, or mnist.")
    ] = None,
    data_dir: Annotated[str | None, typer.Option(metavar="DIR", help="Folder that holds MNIST/raw.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    workers: Annotated[
        str, typer.Option(metavar="N|auto", help="Processes, each training one seed at a time.")
    ] = "auto",
    plain: Annotated[
        bool, typer.Option("--plain", help="Torch's own modules in float32: to check the fast passes.")
    ] = False,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Also write the result here; must be new.")
    ] = None,
    more: Annotated[
        int | None,
        typer.Option(parser=whole(1, 1000), metavar="N", help="So many further seeds, into FOLDER."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Train an architecture on all training images and report the last epoch's test accuracy."""
    check_lookup(architecture, study, storage)
    check_in_use("--trial", trial, None, architecture == "best", "with 'best'")
    wanted_workers = parse_workers(workers)
    if more is not None:  # the folder says how
        for option, given, default in (
            *(("--seeds", seeds, None), ("--seed", seed, None), ("--recipe", recipe, None)),
            *(("--epochs", epochs, None), ("--dataset", dataset, None), ("--plain", plain, False)),
        ):
            check_in_use(option, given, default, False, "without --more")
    entry, its_recipe, its_data = find_entry(architecture, study, storage, trial)
    held = None if more is None else _folder(architecture)
    check_data_dir(data_dir, dataset or its_data)
    chosen = load_recipe(recipe) if recipe is not None else its_recipe
    chosen = chosen if epochs is None else chosen.with_epochs(epochs)
    check_writable(held or REPORTS, "reports")
    copy_to = as_path(json_file)
    if copy_to is not None:
        check_new(copy_to, "--json")

    from .data.dataset import load
    from .report.layers import layer_table
    from .report.live import screen
    from .search.jobs import RetrainTask
    from .study.storage import shown
    from .training.device import describe_device, describe_machine, pick_device
    from .training.final import MAX_PARAMS, check_fits
    from .training.run_store import Results, facts_of

    console = screen(quiet)
    again = typed("reproduce", storage, shown(storage))
    where = pick_device(device)
    data = load(dataset or its_data, as_path(data_dir))
    check_fits(entry.architecture, data, chosen)
    first = seed or 0
    numbers: Sequence[int] = range(first, first + (seeds or 1))
    if held is not None:
        numbers, plain = _continued(held, more or 0, data, as_path(data_dir))
    processes = min(wanted_workers or auto_workers(where.type), len(numbers))
    console.print(layer_table(entry.architecture), markup=False)
    console.print(f"Data: {data.source}", markup=False)
    _warn(console, data)
    console.print(f"{entry.name}, recipe {recipe or entry.recipe}, {describe_device(where, processes)}")
    task = RetrainTask(
        architecture=entry.architecture,
        recipe=chosen,
        seeds=numbers,
        dataset=data.name,
        data_dir=as_path(data_dir),
        device=where.type,
        last_only=False,
        plain=plain,
    )
    machine = describe_machine(where, processes)
    facts = facts_of(entry.name, entry.architecture, chosen, data, machine, entry.budget or MAX_PARAMS)
    told = {"recipe_name": recipe or entry.recipe, "plain": plain, "command": again, "first_seed": numbers[0]}
    kept = Results(REPORTS, entry.name, facts | told, held)
    where_and_how = {"--data-dir": data_dir, "--device": device, "--workers": workers, "--json": json_file}
    options = [
        word for name, one in where_and_how.items() if one not in (None, "auto") for word in (name, one)
    ]
    with _saying_what_is_kept(kept, numbers, options, console):
        _train(task, data, processes, console, kept)
        _tell(kept, data, console, as_path(data_dir))
        if copy_to is not None:
            write_bytes(copy_to, (kept.folder / "result.json").read_bytes())
    console.print(f"Written: {kept.folder}")


def _tell(kept: Results, data: DataSet, console: Console, data_dir: Path | None) -> None:
    """All runs as tables, and as a page in their folder."""
    from .report.items import of_result
    from .report.tables import published_table, requirement_table, runs_table, summary_line
    from .report.write import write_report
    from .training.final import Requirement, Summary

    folder, result = kept.folder, kept.result
    if result["name"] == "reference" and data.name == "mnist":
        console.print(published_table(result["runs"][0]))
    console.print(runs_table(result["runs"]))
    summary = Summary(**result["test_accuracy"])
    of = "one seed" if summary.runs == 1 else "mean of the seeds"
    met = [Requirement(**one) for one in result["requirements"]]
    console.print(requirement_table(met, f"The requirements (test images, last epoch, {of})"))
    console.print(summary_line(summary))
    _warn(console, data)
    write_report(folder, [of_result(result, folder.name, data_dir)])


def _folder(name: str) -> Path:
    """A folder of results that seeds are added to."""
    if name in zoo_names() or not (Path(name) / "result.json").is_file():
        raise InputError(f"--more: {name!r} is no folder of results (use one that reproduce has written)")
    return Path(name)


def _continued(folder: Path, more: int, data: DataSet, data_dir: Path | None) -> tuple[Sequence[int], bool]:
    """The next seeds of a folder of results, and whether torch's own modules trained those before.

    What is wrong with the folder is said here, before anything is trained.
    """
    from .report.items import of_result, read_result
    from .report.page import page
    from .report.tables import runs_table
    from .report.write import chapters_of
    from .training.run_store import epochs_csv, judged

    result = read_result(folder / "result.json")
    if "trial" in result:
        raise InputError(f"--more: {folder} belongs to a search (use 'best' with --seeds)")
    with stored_by_others(f"result: {folder}"):
        there = [int(run["seed"]) for run in result["runs"]]
        first = int(result.get("first_seed", min(there)))
        if len(set(there)) < len(there) or not 0 <= first <= min(there) <= max(there) < MAX_SEED:
            raise ValueError("seeds that come twice or cannot be")
        if any(run["test_accuracy"] != run["test_correct"] / run["test_images"] for run in result["runs"]):
            raise ValueError("accuracies that are not those of the images")
        judged(result, result["runs"])
        epochs_csv(result["runs"])
        runs_table(result["runs"])
        page(chapters_of([of_result(result, folder.name, data_dir)]))
        if result["data"]["fingerprint"] != data.fingerprint:
            raise InputError(f"{folder} is of other images than {data.source}")
        numbers = islice((one for one in count(first) if one not in there), more)
        return tuple(numbers), bool(result.get("plain", False))


@contextlib.contextmanager
def _saying_what_is_kept(
    kept: Results, seeds: Sequence[int], options: Sequence[str], console: Console
) -> Iterator[None]:
    """Where it ends before all is done, say what there is and how to go on."""
    try:
        yield
    except (KeyboardInterrupt, NoResultError) as error:
        done = kept.seeds
        if kept.added or done.intersection(seeds):
            left = len(set(seeds) - done)
            line = shlex.join(
                [*_MODULE, str(kept.folder), "--more", str(left), *options]
                if left
                else [*_REPORT, str(kept.folder)]
            )
            said = f"Kept in {kept.folder}: {len(seeds) - left} of {len(seeds)} seeds."
            console.print(f"{said} Continue with:\n{line}", soft_wrap=True, markup=False)
        elif isinstance(error, KeyboardInterrupt):
            console.print("Interrupted; nothing was written.")
        raise


def _train(task: RetrainTask, data: DataSet, processes: int, console: Console, kept: Results) -> None:
    """Train and keep every seed."""
    import torch

    from .report.live import EpochLog
    from .search.jobs import retrain_seeds
    from .training.teaching import train_teacher

    if not task.recipe.distillation.off:
        with EpochLog(console, task.recipe.epochs, 1) as log:
            teacher = train_teacher(task.recipe, data.train.to(torch.device(task.device)), log)
        task = replace(task, teacher=teacher)
    with EpochLog(console, task.recipe.epochs, len(task.seeds)) as log:
        retrain_seeds(task, data, processes, log, kept.add)


def _warn(console: Console, data: DataSet) -> None:
    if data.note:
        console.print(f"[bold yellow]{data.note}[/bold yellow]")


if __name__ == "__main__":
    run(reproduce)
