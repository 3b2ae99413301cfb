"""``python -m nas_mnist.bench record`` and ``search``: learning curves, and searches replayed on them."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.cli import as_path, as_table, check_data_dir, whole
from ..core.errors import InputError, stored_by_others
from ..core.fileio import check_new, check_writable, write_bytes
from ..core.process_pool import auto_workers, parse_workers
from ..models.cost import COST_NAMES, Budget
from ..recipes.recipe import MAX_EPOCHS, check_untaught, load_recipe
from ..search.__main__ import space_for
from ..space.space import SearchSpace

if TYPE_CHECKING:
    from .curves import Curve

CURVES = "reports/curves/mnist.csv"  # that are recorded
KEPT = "reports/curves/tiny-1000-20-epochs.csv"  # that are replayed: of this repository
BEST = 0.95  # of the candidates are behind the target, unless one is given


def record(
    curves: Annotated[
        str, typer.Option(metavar="FILE.csv", help="The table; one that exists grows.")
    ] = CURVES,
    candidates: Annotated[
        int, typer.Option(parser=whole(1, 100_000), metavar="N", help="That the table is to have.")
    ] = 200,
    max_params: Annotated[
        int, typer.Option(parser=whole(1, 10**9), metavar="N", help="The budget.")
    ] = 20_000,
    space: Annotated[str, typer.Option(metavar="NAME|FILE.toml", help="Search space.")] = "default",
    recipe: Annotated[str, typer.Option(metavar="NAME|FILE.toml", help="How to train.")] = "default",
    epochs: Annotated[
        int | None, typer.Option(parser=whole(1, MAX_EPOCHS), metavar="N", help="Else the recipe's.")
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(parser=whole(100, 10**7), metavar="N", help="Trained on an epoch; else all."),
    ] = None,
    dataset: Annotated[str, typer.Option(help="mnist, fashion-mnist, idx:FOLDER, npz:FILE...")] = "mnist",
    data_dir: Annotated[str | None, typer.Option(metavar="DIR", help="Holds MNIST/raw.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    workers: Annotated[str, typer.Option(metavar="N|auto", help="Processes that train at once.")] = "auto",
    seed: Annotated[int, typer.Option(parser=whole(0, 2**31 - 1), metavar="N", help="Of draws.")] = 0,
) -> None:
    """Train random candidates to the end and keep how they learn, to replay searches on it."""
    path = as_table("--curves", curves)
    check_data_dir(data_dir, dataset)
    processes = parse_workers(workers)
    SearchSpace.load(space)  # what is wrong with it is said before any data is read
    trained_by = load_recipe(recipe)
    check_untaught(trained_by)
    trained_by = trained_by if epochs is None else trained_by.with_epochs(epochs)
    check_writable(path.parent, "--curves")

    import torch

    from ..data.dataset import load
    from ..report.live import screen
    from ..study.study import check_space
    from ..training.device import pick_device
    from ..training.loop import check_enough
    from . import curves as tables

    where = pick_device(device)
    data = load(dataset, as_path(data_dir))
    drawn_from = space_for(space, data)
    learn, _ = data.split()
    if images is not None and images > len(learn):
        raise InputError(f"--images: {images:,} (use at most {len(learn):,})")
    check_enough(learn.take(torch.arange(images or len(learn))), trained_by)
    budget = Budget(max_params)
    check_space(drawn_from, budget, seed)
    task = tables.RecordTask(
        numbers=(),
        space=drawn_from,
        budget=budget,
        recipe=trained_by,
        images=images or len(learn),
        seed=seed,
        dataset=dataset,
        data_dir=as_path(data_dir),
        device=where.type,
    )
    setting = tables.describe(task, f"{data.name} {data.fingerprint}")
    tables.check_setting(path, setting)
    console = screen()

    def heard(curve: Curve) -> None:
        console.print(
            f"candidate {curve.candidate}: {curve.n_params:,} parameters, {curve.accuracies[-1]:.2%}, "
            f"{curve.seconds:.0f} s"
        )

    tables.record(task, setting, path, candidates, processes or auto_workers(where.type), heard)
    console.print(f"Written: {path}")


def search(
    curves: Annotated[str, typer.Option(metavar="FILE.csv", help="A table that 'bench record' made.")] = KEPT,
    repeats: Annotated[
        int, typer.Option(parser=whole(2, 100_000), metavar="N", help="Replays of every way to search.")
    ] = 100,
    target: Annotated[
        float | None,
        typer.Option(metavar="PERCENT", help="Validation accuracy; else what one in twenty reaches."),
    ] = None,
    seed: Annotated[int, typer.Option(parser=whole(0, 2**31 - 1), metavar="N", help="Of the replays.")] = 0,
    json_file: Annotated[str | None, typer.Option("--json", metavar="FILE", help="A new file.")] = None,
) -> None:
    """Compare samplers and rules of stopping on recorded learning curves."""
    path = as_table("--curves", curves)
    keep = as_path(json_file)
    if keep is not None:
        check_new(keep, "--json")
    if target is not None and not 0 < target <= 100:
        raise InputError(f"--target: {target} (use a percentage above 0 and up to 100)")

    import numpy as np
    import optuna

    from ..report.live import screen
    from ..report.tables import fronts_table, ranks_table, worth_table
    from . import curves as tables
    from . import replay

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    setting, known = tables.read_curves(path)
    finals = [curve.accuracies[-1] for curve in known]
    goal = float(np.quantile(finals, BEST, method="higher")) if target is None else target / 100
    if max(finals) < goal:
        raise InputError(
            f"--target: {goal:.2%} is more than the best candidate has (use up to {max(finals):.2%})"
        )
    with stored_by_others(f"--curves: {path}"):
        space = SearchSpace.make(setting.space, str(path.with_suffix(".json")))
        ranks = replay.ranks(known)
        fronts = {}
        for cost in ("n_params", "macs"):  # that a table has
            costs = [getattr(curve, cost) for curve in known]
            fronts[COST_NAMES[cost]] = replay.front_worth(known, costs, repeats, seed)
        found = replay.compare(known, space, Budget(setting.max_params), goal, repeats, seed)
    console = screen()
    console.print(
        f"{len(known)} random candidates of at most {setting.max_params:,} parameters, {setting.images:,} "
        f"images an epoch, {setting.recipe['epochs']} epochs; target {goal:.2%}, which "
        f"{sum(final >= goal for final in finals)} reach"
    )
    console.print(ranks_table(ranks))
    console.print(worth_table(found))
    console.print(fronts_table(fronts))
    if keep is not None:
        told = {"candidates": len(known), "target": goal, "repeats": repeats, "ranks": ranks}
        until = {
            sampler: {rule: one._asdict() for rule, one in rules.items()} for sampler, rules in found.items()
        }
        told |= {"until_target": until, "fronts": {name: one._asdict() for name, one in fronts.items()}}
        write_bytes(keep, (json.dumps(_without_infinities(told), indent=2) + "\n").encode())


def _without_infinities(told: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    if isinstance(told, dict):
        return {name: _without_infinities(value) for name, value in told.items()}
    return None if isinstance(told, float) and not math.isfinite(told) else told
