"""``python -m nas_mnist.reproduce NAME|best|FILE.json|FOLDER``: train on all images, then test and report."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .cli import (
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
from .entries import find_entry
from .files import check_new, check_writable, write_bytes
from .recipe import MAX_EPOCHS, load_recipe
from .workers import auto_workers, parse_workers
from .zoo import load as load_from_zoo
from .zoo import names as zoo_names

if TYPE_CHECKING:
    from rich.console import Console

    from .data import DataSet
    from .retrain import Run
    from .tasks import RetrainTask

REPORTS = Path("reports")


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
        int, typer.Option(parser=whole(1, 1000), metavar="N", help="Trainings, each with its own seed.")
    ] = 1,
    seed: Annotated[
        int, typer.Option(parser=whole(0, 2**31 - 1001), metavar="N", help="The first of them.")
    ] = 0,
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
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Train an architecture on all training images and report the last epoch's test accuracy."""
    check_lookup(architecture, study, storage)
    check_in_use("--trial", trial, None, architecture == "best", "with 'best'")
    wanted_workers = parse_workers(workers)
    entry, its_recipe, its_data = find_entry(architecture, study, storage, trial)
    check_data_dir(data_dir, dataset or its_data)
    chosen = load_recipe(recipe) if recipe is not None else its_recipe
    chosen = chosen if epochs is None else chosen.with_epochs(epochs)
    check_writable(REPORTS, "reports")
    copy_to = as_path(json_file)
    if copy_to is not None:
        check_new(copy_to, "--json")

    from .data import load
    from .device import describe_device, describe_machine, pick_device
    from .report.files import write_runs
    from .report.layers import layer_table
    from .report.live import screen
    from .report.subjects import of_result, read_result
    from .report.tables import published_table, requirement_table, runs_table, summary_line
    from .report.write import write_report
    from .retrain import MAX_PARAMS, check_fits, requirements, summarise
    from .storages import shown
    from .tasks import RetrainTask

    console = screen(quiet)
    again = typed("reproduce", storage, shown(storage))
    where = pick_device(device)
    processes = min(wanted_workers or auto_workers(where.type), seeds)
    data = load(dataset or its_data, as_path(data_dir))
    check_fits(entry.architecture, data, chosen)
    console.print(layer_table(entry.architecture), markup=False)
    console.print(f"Data: {data.source}", markup=False)
    _warn(console, data)
    console.print(f"{entry.name}, recipe {recipe or entry.recipe}, {describe_device(where, processes)}")
    task = RetrainTask(
        architecture=entry.architecture,
        recipe=chosen,
        seeds=range(seed, seed + seeds),
        dataset=data.name,
        data_dir=as_path(data_dir),
        device=where.type,
        last_only=False,
        plain=plain,
    )
    runs = _train(task, data, processes, console)
    if entry.name == "reference" and data.name == "mnist":
        console.print(published_table(runs[0]))
    console.print(runs_table(runs))
    summary = summarise([one.result.accuracy for one in runs])
    met = requirements(entry.architecture, chosen.epochs, summary.mean, data.name, entry.budget or MAX_PARAMS)
    console.print(requirement_table(met, f"The requirements (test images, last epoch, {_of(seeds)})"))
    console.print(summary_line(summary))
    _warn(console, data)
    told = {
        "requirements": [asdict(one) for one in met],
        "recipe_name": recipe or entry.recipe,
        "plain": plain,
        "command": again,
    }
    folder = write_runs(REPORTS, entry.name, runs, chosen, data, describe_machine(where, processes), **told)
    if copy_to is not None:
        write_bytes(copy_to, (folder / "result.json").read_bytes())
    result = read_result(folder / "result.json")
    write_report(folder, [of_result(result, folder.name, as_path(data_dir))])
    console.print(f"Written: {folder}")


def _train(task: RetrainTask, data: DataSet, processes: int, console: Console) -> list[Run]:
    import torch

    from .report.live import EpochLog
    from .tasks import retrain_seeds
    from .teaching import train_teacher

    try:
        if not task.recipe.distillation.off:
            with EpochLog(console, task.recipe.epochs, 1) as log:
                teacher = train_teacher(task.recipe, data.train.to(torch.device(task.device)), log)
            task = replace(task, teacher=teacher)
        with EpochLog(console, task.recipe.epochs, len(task.seeds)) as log:
            return retrain_seeds(task, data, processes, log)
    except KeyboardInterrupt:
        console.print("Interrupted; nothing was written.")
        raise


def _of(seeds: int) -> str:
    return "one seed" if seeds == 1 else "mean of the seeds"


def _warn(console: Console, data: DataSet) -> None:
    if data.note:
        console.print(f"[bold yellow]{data.note}[/bold yellow]")


if __name__ == "__main__":
    run(reproduce)
