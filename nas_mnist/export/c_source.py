"""An int8 network as one C99 file and its header."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.dataset import Images
from ..training.classifier import Classifier
from .int8 import ChannelTable, Int8Call, Int8Network, gate_table
from .templating import environment

_ACTIVATIONS = {
    "": "NO_ACTIVATION",
    "ReLU": "RELU",
    "LeakyReLU": "LEAKY_RELU",
    "Hardswish": "HARDSWISH",
    "SiLU": "SILU",
    "GELU": "GELU",
}


def identifier(name: str) -> str:
    """A file's name as a C identifier in lower case."""
    plain = re.sub(r"\W", "_", name, flags=re.ASCII).lower()
    return plain if plain[:1].isalpha() else f"network_{plain}"


def c_source(
    network: Int8Network, stem: str, classifier: Classifier, images: Tensor, facts: Sequence[str]
) -> dict[str, bytes]:
    """The contents of ``stem.c`` and ``stem.h``, by the file's name.

    ``images`` (N, C, H, W) uint8 become test vectors; ``facts`` are lines of the header's first comment.
    """
    name = identifier(stem)
    tables = _Tables(network)
    channels, height, width = network.calls[0].call.layer.in_shape
    scores = network.scores(images)
    head = network.calls[-1]
    values: dict[str, Any] = {
        "name": name,
        "macro": name.upper(),
        "header": f"{stem}.h",
        "data": classifier.data_title,
        "polarity": ", light on dark" if classifier.data.startswith(("mnist", "qmnist", "emnist")) else "",
        "channels": channels,
        "height": height,
        "width": width,
        "pixels": channels * height * width,
        "classes": head.call.layer.out_shape[0],
        "class_names": " ".join(classifier.class_names),
        "score_unit": 1 << head.exponent,
        "facts": facts,
        "flash": network.flash,
        "ram": network.memory.size,
        "image": network.memory.image,
        "weights": tables.weights,
        "multipliers": tables.multipliers,
        "biases": tables.biases,
        "shifts": tables.shifts,
        "gates": [(gate.lower(), gate_table(gate)) for gate in network.gates],
        "calls": [tables.row(number) for number in range(len(network.calls))],
        "kinds": {_kind(one) for one in network.calls},
        "activations": {
            _ACTIVATIONS[used]
            for one in network.calls
            for used in (one.call.activation, one.call.last_activation)
        },
        "tests": [
            (image.flatten().tolist(), score.tolist()) for image, score in zip(images, scores, strict=True)
        ],
    }
    templates = environment()
    templates.filters["rows"] = _rows
    return {
        f"{stem}.{kind}": templates.get_template(f"network.{kind}.j2").render(values).encode()
        for kind in ("c", "h")
    }


class _Tables:
    """The tables of all calls, one behind the other."""

    def __init__(self, network: Int8Network) -> None:
        self.network = network
        self.weights: list[int] = []
        self.multipliers: list[int] = []
        self.biases: list[int] = []
        self.shifts: list[int] = []
        self._weights_at: dict[int, int] = {}  # by the array's identity: repeats share an array
        self._channels_at: dict[int, int] = {}  # by call
        for number, one in enumerate(network.calls):
            if one.weights is None or one.table is None:
                continue
            if id(one.weights) not in self._weights_at:
                self._weights_at[id(one.weights)] = len(self.weights)
                self.weights += one.weights.flatten().tolist()
            self._channels_at[number] = len(self.shifts)
            self._add(one.table)
            if one.after is not None:
                self._add(one.after)

    def _add(self, table: ChannelTable) -> None:
        self.multipliers += table.multipliers
        self.biases += table.biases
        self.shifts += table.shifts

    def row(self, number: int) -> str:
        """One row of the table of calls as a C initialiser."""
        one, place = self.network.calls[number], self.network.memory.places[number]
        layer = one.call.layer
        flags = {
            "ADDS": one.call.other is not None,
            "AFTER": one.after is not None,
            "IN_PLACE": bool(one.call.scratch) and place.target == place.source and not one.call.averaged,
        }
        fields = [
            *place._asdict().values(),
            0 if one.weights is None else self._weights_at[id(one.weights)],
            self._channels_at.get(number, 0),
            *layer.in_shape,
            *layer.out_shape,
            *layer.kernel,
            one.out.multiplier,
            one.added.multiplier,
            _kind(one),
            " | ".join(name for name, given in flags.items() if given) or 0,
            layer.stride,
            layer.padding,
            _ACTIVATIONS[one.call.activation],
            _ACTIVATIONS[one.call.last_activation],
            one.exponent,
            one.out.shift,
            one.added.shift,
            one.zero,
            one.output.zero,
            one.added_zero,
        ]
        return "{" + ", ".join(map(str, fields)) + "}"


def _kind(one: Int8Call) -> str:
    """The function that runs a call."""
    if one.call.layer.kind != "Conv2d":
        return "MAX_POOL" if one.call.layer.kind == "MaxPool2d" else "AVERAGE_POOL"
    if one.call.averaged:
        return "HEAD"
    return "DEPTHWISE" if one.call.is_depthwise else "POINTWISE" if one.call.is_pointwise else "CONV"


def _rows(values: Iterable[int]) -> str:
    """Numbers in indented lines of at most 100 characters."""
    return textwrap.fill(", ".join(map(str, values)), 100, initial_indent="    ", subsequent_indent="    ")


def three_classes(data: Images) -> Tensor:
    """An image of each of the first three classes (of two, if there are no more)."""
    found = [int(torch.nonzero(data.labels == label)[0]) for label in data.labels.unique()[:3]]
    return data.images[found]
