"""The layer table of an architecture, in the form of the package torchsummary. Loads no torch."""

from __future__ import annotations

from math import prod

from ..models.architecture import Architecture
from ..models.blocks import Repeat
from ..models.layers import ACTIVATIONS

_FUNCTIONS = frozenset({"Add", *ACTIVATIONS.values()})  # functions, not modules: no parameters and no row
_RULE = "=" * 64


def table_rows(architecture: Architecture) -> list[tuple[str, str, int]]:
    """Name, output shape and number of parameters of every layer that is a module, numbered from 1."""
    modules = [layer for layer in architecture.layers if layer.kind not in _FUNCTIONS]
    return [
        (f"{layer.kind}-{number}", str([-1, *layer.out_shape]), layer.params)
        for number, layer in enumerate(modules, 1)
    ]


def shared_weights(architecture: Architecture) -> str:
    """A remark about shared weights; empty if no layers share weights."""
    if any(isinstance(block, Repeat) for block in architecture.blocks):
        return "A convolution with 0 parameters shares the weights of an earlier one; they are counted once."
    return ""


def layer_table(architecture: Architecture) -> str:
    """The table and its totals as text.

    The sizes follow torchsummary, which printed the published table: "Forward/backward pass size" counts
    every row's output and its gradient, "Params size" every parameter; float32, in units of 2**20 bytes.
    """
    rows = table_rows(architecture)
    params = sum(row[2] for row in rows)
    values = sum(prod(layer.out_shape) for layer in architecture.layers if layer.kind not in _FUNCTIONS)
    counts = prod(architecture.input_shape), 2 * values, params
    image, maps, weights = (4 * count / 2**20 for count in counts)
    lines = "\n".join(f"{name:>20}{shape:>27}{count:>16,}" for name, shape, count in rows)
    return f"""\
{_RULE}

{"Layer (type)":>20}{"Output Shape":>27}{"Param #":>16}

{lines}

Total params: {params:,}
Trainable params: {params:,}
Non-trainable params: 0

{_RULE}

Input size (MB): {image:.2f}
Forward/backward pass size (MB): {maps:.2f}
Params size (MB): {weights:.2f}
Estimated Total Size (MB): {image + maps + weights:.2f}

{_RULE}"""
