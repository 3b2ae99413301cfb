"""``python -m nas_mnist.search``: find the best all-convolutional network within a parameter budget."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli import as_path, check_name, run
from .cost import Budget
from .errors import InputError, NoResultError
from .files import check_writable
from .recipe import MAX_EPOCHS, Recipe, load_recipe
from .space import Draws, SearchSpace
from .zoo import load as load_from_zoo

if TYPE_CHECKING:
    import optuna
    import torch
    from rich.console import Console

    from .data import DataSet
    from .results import TrialRow

REPORTS = Path("reports")


def search(
    trials: Annotated[int, typer.Option(min=1, max=100_000, help="Candidates to train, early stops included.")] = 50,
    max_params: Annotated[int, typer.Option(min=1, max=10**9, help="The budget.")] = 20_000,
    epochs: Annotated[int, typer.Option(min=1, max=MAX_EPOCHS, help="For every candidate.")] = MAX_EPOCHS,
    study: Annotated[str, typer.Option(help="Name; the same name continues the same study.")] = "nas_mnist",
    storage: Annotated[str, typer.Option(help="Database URL.")] = "sqlite:///studies/nas_mnist.db",
    space: Annotated[str | None, typer.Option(metavar="FILE", help="Search space in TOML.")] = None,
    recipe: Annotated[str, typer.Option(metavar="NAME|FILE.toml", help="How candidates are trained.")] = "default",
    dataset: Annotated[str, typer.Option(help="mnist or mnist-5k.")] = "mnist",
    data_dir: Annotated[str | None, typer.Option(metavar="DIR", help="Folder that holds MNIST/raw.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of draws, weights and order.")] = 0,
    timeout: Annotated[float | None, typer.Option(metavar="MINUTES", help="Start no candidate after this.")] = None,
    retrain: Annotated[bool, typer.Option(help="Retrain the winner and read the test images.")] = True,
) -> None:
    """Search for the best all-convolutional network within a parameter budget.

    The same command again continues the same study up to the same total.
    """
    name = check_name("--study", study)
    if timeout is not None and not 0 < timeout <= 1e6:
        raise InputError(f"--timeout: {timeout} (use minutes above 0)")
    drawn_from = SearchSpace.load(as_path(space))
    trained_by = load_recipe(recipe).with_epochs(epochs)
    budget = Budget(max_params)
    if retrain:
        check_writable(REPORTS, "reports")

    from rich.console import Console

    from .data import load
    from .device import describe_device, pick_device
    from .objective import Objective
    from .report.live import SearchDisplay
    from .report.tables import counts_line
    from .results import best_rows, trial_rows
    from .study import Identity, check_space, count_verdicts, open_storage, open_study
    from .study import search as run_study

    console = Console(soft_wrap=True)
    where = pick_device(device)
    data = load(dataset, as_path(data_dir))
    _check_shape(drawn_from, data)
    survey = check_space(drawn_from, budget, seed)
    fingerprint = f"{data.name} {data.fingerprint}"
    identity = Identity(drawn_from.digest, trained_by.digest, fingerprint, max_params, epochs)
    facts = _facts(drawn_from, trained_by, data, describe_device(where))
    opened = open_study(open_storage(storage), name, identity, facts, seed)

    console.print(f"[bold]nas_mnist[/bold] search: study {name!r}, at most {max_params:,} parameters, ", end="")
    console.print(f"{epochs} epochs, {describe_device(where)}, recipe {recipe}")
    console.print(f"Data: {data.source}, a sixth of them held out to choose", highlight=False)
    if data.note:
        console.print(f"[bold yellow]{data.note}[/bold yellow]", highlight=False)
    console.print(f"Space: {survey.feasible / survey.tried:.0%} of {survey.tried:,} random draws fit the budget")
    first = _reference_draws(drawn_from)
    if first is None:
        console.print("The reference network is not in this space; the search starts without it.")
    learn, choose = (part.to(where) for part in data.split())
    best = best_rows(trial_rows(opened), 1)
    best_text = f"{best[0].validation_accuracy:.2%} with {best[0].n_params:,} parameters" if best else ""
    display = SearchDisplay(console, trials, epochs, count_verdicts(opened), best_text)
    if display.already:
        console.print(f"Continuing: {display.already} of {trials} candidates are done.")
    objective = Objective(drawn_from, budget, trained_by, learn, choose, seed, display.watcher)
    again = shlex.join(["python", "-m", "nas_mnist.search", *_arguments()])
    exhausted = ""
    try:
        with display:
            run_study(
                opened,
                objective,
                trials,
                seed=seed,
                first=first,
                timeout=None if timeout is None else timeout * 60,
                after_trial=display.after_trial,
            )
    except KeyboardInterrupt:
        console.print(f"Interrupted: {counts_line(count_verdicts(opened))}. Nothing finished is lost.")
        console.print(f"Continue with: {again}")
        raise
    except NoResultError as error:
        exhausted = str(error)
    console.print(f"Trials: {counts_line(count_verdicts(opened))}", highlight=False)
    if exhausted:
        console.print(f"Ended early: {exhausted}", highlight=False)
    rows = best_rows(trial_rows(opened), 5)
    try:
        if rows:
            _finish(console, opened, rows, trained_by, data, where, seed if retrain else None)
        else:
            raise NoResultError("no candidate was trained to the last epoch (raise --trials or --timeout)")
    except KeyboardInterrupt:
        console.print(f"Interrupted while the winner was retrained. Continue with: {again}")
        raise
    finally:
        console.print(f"Look into the study with:\noptuna-dashboard {shlex.quote(storage)}", highlight=False)


def _finish(
    console: Console,
    study: optuna.Study,
    rows: list[TrialRow],
    recipe: Recipe,
    data: DataSet,
    device: torch.device,
    seed: int | None,
) -> None:
    """Show the best candidates and the winner; with a seed, retrain it and read the test images once."""
    from .architecture import Architecture
    from .report.layers import layer_table
    from .report.tables import best_table, requirement_table
    from .retrain import requirements

    winner = rows[0]
    architecture = Architecture.make(winner.architecture)
    console.print(best_table(rows))
    console.print(f"The winner: trial {winner.trial}, key {architecture.key}", highlight=False)
    console.print(layer_table(architecture), highlight=False, markup=False)
    accuracy, judged_on = winner.validation_accuracy or 0.0, "validation images"
    if seed is not None:
        accuracy = _test_accuracy(console, study, winner, architecture, recipe, data, device, seed)
        judged_on = "test images, last epoch, one seed"
    met = requirements(architecture, winner.n_params or 0, recipe.epochs, accuracy)
    console.print(requirement_table(met, f"The requirements ({judged_on})"))
    if data.note:
        console.print(f"[bold yellow]{data.note}[/bold yellow]", highlight=False)
    console.print("Repeat it over seeds with: python -m nas_mnist.reproduce best --seeds 3", highlight=False)


def _test_accuracy(
    console: Console,
    study: optuna.Study,
    winner: TrialRow,
    architecture: Any,
    recipe: Recipe,
    data: DataSet,
    device: torch.device,
    seed: int,
) -> float:
    """The winner's test accuracy after retraining on all training images; read once and stored in the study."""
    from .device import describe_device
    from .report.files import write_runs
    from .report.live import EpochLog
    from .retrain import retrain

    stored = study.user_attrs.get("winner", {})
    if (stored.get("key"), stored.get("seed")) == (winner.key, seed):
        console.print(f"Retrained before; the files are in {stored['folder']}", highlight=False)
        return float(stored["test_accuracy"])
    console.print(f"Retraining the winner on all {len(data.train):,} training images", highlight=False)
    result = retrain(
        architecture,
        recipe,
        data,
        seed=seed,
        device=device,
        last_only=True,
        on_epoch=EpochLog(console, recipe.epochs),
    )
    folder = write_runs(
        REPORTS, study.study_name, [result], recipe, data, describe_device(device), trial=winner.trial
    )
    accuracy = result.result.accuracy
    study.set_user_attr(
        "winner", {"key": winner.key, "seed": seed, "test_accuracy": accuracy, "folder": str(folder)}
    )
    console.print(f"Written: {folder}", highlight=False)
    return accuracy


def _check_shape(space: SearchSpace, data: DataSet) -> None:
    if tuple(space.input_shape) != data.shape:
        raise InputError(f"space: input_shape {list(space.input_shape)} does not fit {data.name} (use {list(data.shape)})")
    if space.classes != data.classes:
        raise InputError(f"space: classes {space.classes} does not fit {data.name} (use {data.classes})")


def _reference_draws(space: SearchSpace) -> Draws | None:
    try:
        return space.encode(load_from_zoo("reference").architecture)
    except InputError:
        return None


def _facts(space: SearchSpace, recipe: Recipe, data: DataSet, device: str) -> dict[str, Any]:
    """What a study stores for people."""
    from .retrain import versions

    return {
        "space": space.model_dump(mode="json"),
        "recipe": recipe.model_dump(mode="json"),
        "data": data.source,
        "data_note": data.note,
        "device": device,
        "versions": versions(),
    }


def _arguments() -> list[str]:
    import sys

    return sys.argv[1:]


if __name__ == "__main__":
    run(search)
