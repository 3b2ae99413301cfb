"""``python -m nas_mnist.describe NAME|best|FILE|FOLDER``: the layer table and the cost, without torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

from .core.cli import OUTPUT, Network, Storage, Study, check_lookup, option, run
from .core.defaults import ANSWERS, DEFAULT_STORAGE, DEFAULT_STUDY
from .lookup import resolve
from .models.cost import cost_of
from .report.layer_table import layer_table, shared_weights


def describe(
    network: Network,
    study: Study = DEFAULT_STUDY,
    storage: Storage = DEFAULT_STORAGE,
    as_json: Annotated[bool, option(OUTPUT, "", "Print JSON instead of the table.", "--json")] = False,
) -> None:
    """Print a network's layers, shapes, parameters and cost."""
    check_lookup(network, study, storage)
    found = resolve(network, study, storage)
    architecture = found.architecture
    cost = cost_of(architecture)
    if as_json:
        content = {
            "key": architecture.key,
            "cost": asdict(cost),
            "architecture": architecture.model_dump(mode="json"),
            "layers": [layer._asdict() for layer in architecture.layers],
        }
        print(json.dumps(content, indent=2))
        return
    print(layer_table(architecture))
    print()
    print(f"Multiply-adds an image: {cost.macs:,}")
    print(f"Flash (bytes of int8 weights, scales and biases in C, no code): {cost.flash:,}")
    print(f"RAM (bytes of the int8 buffer in C, with the image): {cost.ram:,}")
    print(f"Peak activation memory (bytes, float32): {cost.peak_memory:,}")
    print(f"Receptive field (pixels): {cost.receptive_field}")
    if note := shared_weights(architecture):
        print(note)
    if network in ANSWERS:
        print(f"This is {found.about}")
    print("Activations and additions are functions: they have no parameters and no rows.")


if __name__ == "__main__":
    run(describe)
