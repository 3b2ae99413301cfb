"""``python -m nas_mnist.describe NAME|best|FILE.json|FOLDER``: layer table and cost, without torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from .core.cli import STORAGE, STUDY, check_lookup, run
from .lookup import find_entry
from .models.cost import cost_of
from .report.layers import layer_table, shared_weights


def describe(
    architecture: Annotated[
        str, typer.Argument(metavar="NAME|best|FILE.json|FOLDER", help="Of the zoo, of a study, or a file.")
    ],
    study: Annotated[str, typer.Option(help="Where 'best' is looked up.")] = STUDY,
    storage: Annotated[str, typer.Option(help="Database URL of that study.")] = STORAGE,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Print an architecture's layers, shapes, parameters and cost."""
    check_lookup(architecture, study, storage)
    found = find_entry(architecture, study, storage)[0].architecture
    cost = cost_of(found)
    if as_json:
        layers = [layer._asdict() for layer in found.layers]
        everything = {
            "key": found.key,
            "cost": asdict(cost),
            "architecture": found.model_dump(mode="json"),
            "layers": layers,
        }
        print(json.dumps(everything, indent=2))
        return
    print(layer_table(found))
    print()
    print(f"Multiply-adds an image: {cost.macs:,}")
    print(f"Peak activation memory (bytes, float32): {cost.peak_memory:,}")
    print(f"Receptive field (pixels): {cost.receptive_field}")
    if shared := shared_weights(found):
        print(shared)
    print("Activations and additions are functions: they have no parameters and no rows.")


if __name__ == "__main__":
    run(describe)
