"""``python -m nas_mnist.search``: find the best all-convolutional network within a parameter budget."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.cli import STORAGE, STUDY, as_path, check_data_dir, check_in_use, check_name, run, typed, whole
from ..core.errors import InputError
from ..core.fileio import check_new, check_writable
from ..core.process_pool import auto_workers, parse_workers
from ..models.cost import AIMS, Budget
from ..recipes.recipe import MAX_EPOCHS, check_untaught, load_recipe
from ..space.space import SPACES, SearchSpace
from .pipeline import REPORTS, Plan

if TYPE_CHECKING:
    from ..data.dataset import DataSet, Images
    from ..recipes.recipe import Recipe

FINALISTS = 2  # candidates
PART = 4_000  # images that candidates are trained on, an epoch, where there are at least twice as many
# Shares of the budget that the spaces 'filled' and 'tiny' draw where networks of all sizes are looked for.
FRONT_FILL = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes <= 1e6:
        raise typer.BadParameter(f"{text[:40]!r} (use minutes above 0)")
    return minutes


def _part(text: str) -> int:
    """A number of images; 0 stands for all."""
    if str(text) == "all":
        return 0
    try:
        return whole(1, 10**9)(text)
    except typer.BadParameter as error:
        raise typer.BadParameter(str(error).replace("(use ", "(use all or ")) from None


def search(
    trials: Annotated[
        int, typer.Option(parser=whole(1, 100_000), metavar="N", help="Candidates to train.")
    ] = 50,
    max_params: Annotated[
        int, typer.Option(parser=whole(1, 10**9), metavar="N", help="The budget.")
    ] = 20_000,
    objective: Annotated[
        str, typer.Option(metavar="|".join(AIMS), help="The best, or the best for every cost.")
    ] = "accuracy",
    max_macs: Annotated[
        int | None, typer.Option(parser=whole(1, 10**12), metavar="N", help="Multiply-adds an image.")
    ] = None,
    max_memory: Annotated[
        int | None,
        typer.Option(parser=whole(1, 10**12), metavar="BYTES", help="Of activations, at their peak."),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            parser=whole(1, MAX_EPOCHS), metavar="N", help="For every candidate; else the recipe's."
        ),
    ] = None,
    search_epochs: Annotated[
        int | None,
        typer.Option(
            parser=whole(1, MAX_EPOCHS - 1),
            metavar="N",
            help="Fewer for candidates than for finalists and winner.",
        ),
    ] = None,
    search_images: Annotated[
        int | None,
        typer.Option(
            parser=_part,
            metavar="N|all",
            help="For candidates, an epoch; finalists have five times as many, the winner all. Else "
            f"{PART:,}, but all where there are few, with --search-epochs, with --no-retrain and for fronts.",
        ),
    ] = None,
    study: Annotated[str, typer.Option(help="The same name continues the same study.")] = STUDY,
    storage: Annotated[str, typer.Option(help="Database URL.")] = STORAGE,
    space: Annotated[
        str, typer.Option(metavar="NAME|FILE.toml", help="Search space: default, filled, tiny or a file.")
    ] = "default",
    recipe: Annotated[str, typer.Option(metavar="NAME|FILE.toml", help="How to train.")] = "default",
    search_recipe: Annotated[
        bool, typer.Option("--search-recipe", help="Draw a few training choices for every candidate, too.")
    ] = False,
    dataset: Annotated[str, typer.Option(help="mnist, fashion-mnist, idx:FOLDER, npz:FILE...")] = "mnist",
    data_dir: Annotated[str | None, typer.Option(metavar="DIR", help="Holds MNIST/raw.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    workers: Annotated[str, typer.Option(metavar="N|auto", help="Processes that train at once.")] = "auto",
    seed: Annotated[
        int, typer.Option(parser=whole(0, 2**31 - 1), metavar="N", help="Of draws, weights and order.")
    ] = 0,
    timeout: Annotated[
        float | None, typer.Option(parser=_minutes, metavar="MINUTES", help="Start nothing later.")
    ] = None,
    finalists: Annotated[
        int | None,
        typer.Option(
            parser=whole(1, 100),
            metavar="N",
            help=f"The best that are trained again (1: none); else {FINALISTS}.",
        ),
    ] = None,
    finalist_seeds: Annotated[
        int, typer.Option(parser=whole(1, 100), metavar="N", help="Further seeds for each of them.")
    ] = 1,
    retrain: Annotated[bool, typer.Option(help="Retrain the winner and read the test images.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Also write the summary here; must be new.")
    ] = None,
) -> None:
    """Search for the best all-convolutional network within a parameter budget.

    The same command again continues the same study up to the same total.
    """
    check_name("--study", study)
    if objective not in AIMS:
        raise InputError(f"--objective: {objective[:40]!r} (use {', '.join(AIMS)})")
    check_in_use("--finalists", finalists or 1, 1, retrain, "without --no-retrain")
    finalists = finalists or (FINALISTS if retrain else 1)
    check_in_use(
        *("--finalist-seeds", finalist_seeds, 1, finalists > 1),
        "with --finalists of 2 and more" if retrain else "without --no-retrain",
    )
    check_data_dir(data_dir, dataset)
    processes = parse_workers(workers)
    as_path(space)
    SearchSpace.load(space)  # what is wrong with it is said before any data is read
    trained_by = load_recipe(recipe)
    check_untaught(trained_by)
    trained_by = trained_by if epochs is None else trained_by.with_epochs(epochs)
    check_in_use("--search-epochs", search_epochs, None, retrain, "without --no-retrain")
    check_in_use("--search-images", search_images or None, None, retrain, "without --no-retrain")
    if search_epochs is not None and search_epochs >= trained_by.epochs:
        most = trained_by.epochs - 1
        raise InputError(f"--search-epochs: {search_epochs} (use up to {most}: the others have {most + 1})")
    check_writable(REPORTS, "reports")
    copy_to = as_path(json_file)
    if copy_to is not None:
        check_new(copy_to, "--json")

    with _saying_how_to_go_on(storage, quiet):
        from ..data.dataset import load
        from ..study.storage import losing
        from ..study.study import Identity, check_space, open_study, stored_part
        from ..training.device import pick_device
        from ..training.loop import check_enough
        from .jobs import SearchTask

        where = pick_device(device)
        data = load(dataset, as_path(data_dir))
        drawn_from = space_for(space, data)
        if AIMS[objective] and space in ("filled", "tiny"):
            drawn_from = drawn_from.model_copy(update={"fill": FRONT_FILL})
        budget = Budget(max_params, max_macs, max_memory)
        survey = check_space(drawn_from, budget, seed)
        part = search_images or None
        check_enough(_learned(data, part), trained_by)
        if search_images is None:
            whole_only = not retrain or search_epochs is not None or bool(AIMS[objective])
            part = stored_part(storage, study, None if whole_only else _usual_part(data, trained_by))
        identity = Identity(
            space=drawn_from.digest,
            recipe=trained_by.digest,
            data=f"{data.name.partition(':')[0]} {data.fingerprint}",
            split=data.split_fingerprint,
            epochs=trained_by.epochs,
            search_epochs=search_epochs,
            search_images=part,
            search_recipe=search_recipe or None,
            objective=objective if AIMS[objective] else None,
            **asdict(budget),
        )
        task = SearchTask(
            storage=storage,
            study=study,
            total=trials,
            space=drawn_from,
            budget=budget,
            recipe=trained_by if search_epochs is None else trained_by.with_epochs(search_epochs),
            dataset=data.name,
            data_dir=as_path(data_dir),
            device=where.type,
            seed=seed,
            timeout=None if timeout is None else timeout * 60,
            vary_recipe=search_recipe,
            against=AIMS[objective],
            images=part,
        )
        count = processes or auto_workers(where.type)
        finals = (finalists, finalist_seeds) if retrain else (1, 0)
        plan = Plan(task, trained_by, data, where, trials, count, finals, retrain, quiet, copy_to)
        with losing(storage):
            opened = open_study(storage, study, identity, plan.facts(), plan.reference())
        plan.run(opened, survey, _command(storage))


@contextlib.contextmanager
def _saying_how_to_go_on(storage: str, quiet: bool) -> Iterator[None]:
    """Whenever the search is interrupted, say how it continues."""
    try:
        yield
    except KeyboardInterrupt:
        if not quiet:  # libraries may be half loaded
            print(f"Interrupted. Continue with:\n{_command(storage, again=True)}")
        raise


def _command(storage: str, again: bool = False) -> str:
    """What was typed to start this search, without the storage's password; ``again`` as `typed` has it."""
    if "@" not in storage and "?" not in storage:
        return typed("search", again=again)
    from ..study.storage import shown

    return typed("search", storage, shown(storage), again)


def _usual_part(data: DataSet, recipe: Recipe) -> int | None:
    """A part where there are plenty of images, a batch fits into it, and it has all classes; else all."""
    learn, _ = data.split()
    enough = len(learn) >= 2 * PART and recipe.fitted(PART).batch_size <= PART
    return PART if enough and not _lacks_classes(learn, PART) else None


def _lacks_classes(learn: Images, part: int) -> bool:
    return len(learn.sample(part).labels.unique()) < len(learn.labels.unique())


def _learned(data: DataSet, part: int | None) -> Images:
    """What candidates are trained on; raises `InputError` for a part that is none, or lacks classes."""
    learn, _ = data.split()
    if part is not None and not data.classes <= part < len(learn):
        most = len(learn) - 1
        raise InputError(
            f"--search-images: {part:,} (use all, or {data.classes:,} to {most:,}: {most + 1:,} train)"
        )
    if part is not None and _lacks_classes(learn, part):
        raise InputError(f"--search-images: {part:,} (use more: a class is not among so few)")
    return learn if part is None else learn.sample(part)


def space_for(name: str, data: DataSet) -> SearchSpace:
    """The space in a file, which must fit the data, or one of the package, fitted to them."""
    space = SearchSpace.load(name)
    if name in SPACES:
        return space.model_copy(update={"input_shape": data.shape, "classes": data.classes})
    got, wanted = list(space.input_shape), list(data.shape)
    if got != wanted:
        raise InputError(f"space: input_shape {got} does not fit {data.name} (use {wanted})")
    if space.classes != data.classes:
        raise InputError(f"space: classes {space.classes} does not fit {data.name} (use {data.classes})")
    return space


if __name__ == "__main__":
    run(search)
