"""``python -m nas_mnist.bench search``: samplers and pruning rules on recorded learning curves."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from ..core.cli import HOW_WELL, WHAT, JsonFile, as_new_file, as_table, integer, option, real
from ..core.defaults import MAX_SEED
from ..core.errors import InputError, foreign_data
from ..core.fileio import write_bytes
from ..models.cost import COST_NAMES, Budget
from ..space.space import SearchSpace

if TYPE_CHECKING:
    from rich.table import Table

    from .replay import EffortToTarget, PrunedFront

DEFAULT_TABLE = "reports/curves/mixed-1000-20-epochs.csv"  # of this repository
TARGET_QUANTILE = 0.95  # of the last accuracies: the target, unless one is given


def search(
    curves: Annotated[
        str, option(WHAT, "FILE.csv", f"Replay on this table of 'bench record' ({DEFAULT_TABLE}).")
    ] = DEFAULT_TABLE,
    repeats: Annotated[int, integer(HOW_WELL, 2, 100_000, "Replay N times (100).")] = 100,
    target: Annotated[
        float | None,
        option(WHAT, "PERCENT", "Search for this accuracy (of the best 5 %).", parser=real),
    ] = None,
    seed: Annotated[int, integer(HOW_WELL, 0, MAX_SEED, "Seed of the replays (0).")] = 0,
    sampler: Annotated[
        list[str] | None, option(WHAT, "SAMPLER", "Replay MODULE:CLASS, too: a sampler of yours; repeatable.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Replay searches on recorded learning curves, to compare samplers and pruning rules."""
    path = as_table("--curves", curves)
    json_path = as_new_file(json_file)
    if target is not None and not 0 < target <= 100:
        raise InputError(f"--target: {target} (use a percentage above 0 and up to 100)")

    import optuna

    from ..study.samplers import sampler_factory

    own = {name: sampler_factory(name) for name in sampler or ()}

    from ..report.progress import make_console
    from .curves import read_curves
    from .replay import compare_searches, pruned_front, rank_correlations

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    metadata, known = read_curves(path)
    finals = [curve.accuracies[-1] for curve in known]
    goal = _target(finals, target)
    with foreign_data(f"--curves: {path}"):
        space = SearchSpace.make(metadata.space, str(path.with_suffix(".json")))
        correlations = rank_correlations(known)
        fronts = {
            COST_NAMES[cost]: pruned_front(known, [getattr(one, cost) for one in known], repeats, seed)
            for cost in ("n_params", "macs")  # the costs that a table has
        }
        efforts = compare_searches(known, space, Budget(metadata.max_params), goal, repeats, seed, own)
    console = make_console()
    console.print(
        f"{len(known)} random candidates of at most {metadata.max_params:,} parameters, "
        f"{metadata.images:,} images an epoch, {metadata.recipe['epochs']} epochs; target {goal:.2%}, "
        f"which {sum(final >= goal for final in finals)} reach"
    )
    for table in (_correlations_table(correlations), _efforts_table(efforts), _fronts_table(fronts)):
        console.print(table)
    if json_path is not None:
        until_target = {
            sampler: {rule: effort._asdict() for rule, effort in by_rule.items()}
            for sampler, by_rule in efforts.items()
        }
        results = {"candidates": len(known), "target": goal, "repeats": repeats, "ranks": correlations}
        results |= {"until_target": until_target}
        results |= {"fronts": {cost: front._asdict() for cost, front in fronts.items()}}
        write_bytes(json_path, (json.dumps(_finite(results), indent=2) + "\n").encode())


def _target(finals: Sequence[float], percent: float | None) -> float:
    """The target as an accuracy from 0 to 1; raises `InputError` where no candidate reaches it."""
    if percent is None:
        import numpy as np

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


def _correlations_table(found: Mapping[str, Mapping[str, float]]) -> Table:
    """The result of `rank_correlations`."""
    from ..report.tables import new_table

    title = "Rank correlation with the accuracy after the last epoch"
    table = new_table(title, ["After"], ["Accuracy", "Loss"])
    for after, signals in found.items():
        table.add_row(after, f"{signals['accuracy']:.2f}", f"{signals['loss']:.2f}")
    return table


def _efforts_table(found: Mapping[str, Mapping[str, EffortToTarget]]) -> Table:
    """The result of `compare_searches`; shares are of the first row."""
    from ..report.tables import new_table

    title = "Epochs trained until a candidate reaches the target (mean, its standard error)"
    table = new_table(title, ["Sampler", "Pruning"], ["Epochs", "Error", "Share", "Reached"])
    table.caption = "share: of the first row; reached: replays that reach the target without a new start"
    first = next(iter(next(iter(found.values())).values())).epochs
    for sampler, by_rule in found.items():
        for rule, one in by_rule.items():
            known = one.reached > 0
            effort = (f"{one.epochs:.0f}", f"{one.error:.0f}") if known else ("never", "")
            share = f"{one.epochs / first:.0%}" if known and math.isfinite(first) else ""
            table.add_row(sampler, rule, *effort, share, f"{one.reached:.0%}")
    return table


def _fronts_table(found: Mapping[str, PrunedFront]) -> Table:
    """The results of `pruned_front`, by cost."""
    from ..report.tables import new_table

    title = "The front of accuracy against a cost: pruning beside training to the last epoch"
    table = new_table(title, ["Against"], ["Epochs", "The front has", "Of it trained", "Accuracy lost"])
    for cost, one in found.items():
        shares = f"{one.epochs:.0%}", f"{one.members}", f"{one.kept:.0%}"
        table.add_row(cost, *shares, f"{100 * one.lost:.2f} points")
    return table
