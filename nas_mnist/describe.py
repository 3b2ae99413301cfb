"""``python -m nas_mnist.describe NAME|FILE.json``: the layer table and the cost, without torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from .cli import run
from .cost import cost_of
from .report.layers import layer_table
from .zoo import load


def describe(
    architecture: Annotated[str, typer.Argument(metavar="NAME|FILE.json", help="Of the zoo, or a file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Print an architecture's layers, shapes, parameters and cost."""
    found = load(architecture).architecture
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
    print("Activations and additions are functions: they have no parameters and no rows.")


if __name__ == "__main__":
    run(describe)
