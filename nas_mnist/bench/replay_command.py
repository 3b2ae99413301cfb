"""``python -m nas_mnist.bench search``: samplers and pruning rules on recorded learning curves."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.cli import as_path, as_table, whole
from ..core.errors import InputError, foreign_data
from ..core.fileio import check_new, write_bytes
from ..models.cost import COST_NAMES, Budget
from ..space.space import SearchSpace

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_TABLE = "reports/curves/tiny-1000-20-epochs.csv"  # of this repository
TARGET_QUANTILE = 0.95  # of the last accuracies: the target, unless one is given


def search(
    curves: Annotated[str, typer.Option(metavar="FILE.csv", help="Table of 'bench record'.")] = DEFAULT_TABLE,
    repeats: Annotated[
        int, typer.Option(parser=whole(2, 100_000), metavar="N", help="Replays of every kind of search.")
    ] = 100,
    target: Annotated[
        float | None,
        typer.Option(metavar="PERCENT", help="Validation accuracy; default: the best 5 % reach it."),
    ] = None,
    seed: Annotated[
        int, typer.Option(parser=whole(0, 2**31 - 1), metavar="N", help="Seed of the replays.")
    ] = 0,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="New file for the results.")
    ] = None,
) -> None:
    """Replay searches on recorded learning curves, to compare samplers and pruning rules."""
    path = as_table("--curves", curves)
    json_path = as_path(json_file)
    if json_path is not None:
        check_new(json_path, "--json")
    if target is not None and not 0 < target <= 100:
        raise InputError(f"--target: {target} (use a percentage above 0 and up to 100)")

    import optuna

    from ..report.progress import make_console
    from . import replay, tables
    from .curves import read_curves

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    metadata, known = read_curves(path)
    finals = [curve.accuracies[-1] for curve in known]
    goal = _target(finals, target)
    with foreign_data(f"--curves: {path}"):
        space = SearchSpace.make(metadata.space, str(path.with_suffix(".json")))
        correlations = replay.rank_correlations(known)
        fronts = {
            COST_NAMES[cost]: replay.pruned_front(known, [getattr(one, cost) for one in known], repeats, seed)
            for cost in ("n_params", "macs")  # the costs that a table has
        }
        efforts = replay.compare_searches(known, space, Budget(metadata.max_params), goal, repeats, seed)
    console = make_console()
    console.print(
        f"{len(known)} random candidates of at most {metadata.max_params:,} parameters, "
        f"{metadata.images:,} images an epoch, {metadata.recipe['epochs']} epochs; target {goal:.2%}, "
        f"which {sum(final >= goal for final in finals)} reach"
    )
    console.print(tables.correlations_table(correlations))
    console.print(tables.efforts_table(efforts))
    console.print(tables.fronts_table(fronts))
    if json_path is not None:
        results = {
            "candidates": len(known),
            "target": goal,
            "repeats": repeats,
            "ranks": correlations,
            "until_target": {
                sampler: {rule: effort._asdict() for rule, effort in by_rule.items()}
                for sampler, by_rule in efforts.items()
            },
            "fronts": {cost: front._asdict() for cost, front in fronts.items()},
        }
        write_bytes(json_path, (json.dumps(_finite(results), indent=2) + "\n").encode())


def _target(finals: Sequence[float], percent: float | None) -> float:
    """The target as an accuracy from 0 to 1; raises `InputError` where no candidate reaches it."""
    import numpy as np

    if percent is None:
        return float(np.quantile(finals, TARGET_QUANTILE, method="higher"))
    if max(finals) < percent / 100:
        raise InputError(
            f"--target: {percent / 100:.2%} is more than the best candidate has (use up to {max(finals):.2%})"
        )
    return percent / 100


def _finite(value: Any) -> Any:
    """The same with None for infinities and NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
