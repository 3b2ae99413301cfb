"""A network as plain PyTorch source of its own: what one reads, hands in, or trains further."""

from __future__ import annotations

import json
from collections.abc import Sequence

from safetensors.torch import save

from ..data.torchvision_sets import TORCHVISION, TorchvisionSet
from ..models.layers import Layer
from ..models.program import Call, fuse
from ..training.classifier import Classifier
from .templating import environment

_FUNCTIONS = {
    "ReLU": "F.relu",
    "LeakyReLU": "F.leaky_relu",
    "SiLU": "F.silu",
    "Hardswish": "F.hardswish",
    "GELU": "F.gelu",
}


def python_source(classifier: Classifier, stem: str, title: str, facts: Sequence[str]) -> dict[str, bytes]:
    """``stem.py`` with the class, and ``stem.safetensors`` with its weights, by the file's name."""
    model, normalizer = classifier.model, classifier.normalizer
    architecture = model.architecture
    names = _names(architecture.layers)
    text = (
        environment()
        .get_template("network.py.j2")
        .render(
            title=title,
            facts=facts,
            weights=f"{stem}.safetensors",
            mean=normalizer.mean,
            std=normalizer.std,
            class_names=json.dumps(classifier.class_names),
            classes=architecture.classes,
            shape=", ".join(map(str, architecture.input_shape)),
            modules=[
                f"self.{names[position]} = {_module(layer)}"
                for position, layer in enumerate(architecture.layers)
                if position in names and layer.weights_of is None
            ],
            forward=_forward(architecture.layers, names),
            **_test_set(classifier.data),
        )
    )
    tensors = {}
    for name, tensor in model.unique_tensors().items():
        _, position, part = name.split(".")
        tensors[f"{names[int(position)]}.{part}"] = tensor.contiguous()
    return {f"{stem}.py": text.encode(), f"{stem}.safetensors": save(tensors)}


def _names(layers: Sequence[Layer]) -> dict[int, str]:
    """The attribute of every layer with weights, by position; layers that share weights share a name."""
    names: dict[int, str] = {}
    counts = {"Conv2d": 0, "BatchNorm2d": 0}
    for position, layer in enumerate(layers):
        if layer.kind not in counts:
            continue
        if layer.weights_of is not None:
            names[position] = names[layer.weights_of]
            continue
        counts[layer.kind] += 1
        names[position] = f"{'conv' if layer.kind == 'Conv2d' else 'norm'}{counts[layer.kind]}"
    return names


def _module(layer: Layer) -> str:
    """The construction of a layer with weights."""
    channels = layer.in_shape[0]
    if layer.kind == "BatchNorm2d":
        return f"nn.BatchNorm2d({channels})"
    options = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}
    usual = {"stride": 1, "padding": 0, "groups": 1}
    given = [f"{name}={value}" for name, value in options.items() if value != usual[name]]
    arguments = [
        channels,
        layer.out_shape[0],
        layer.kernel[0],
        *given,
        *([] if layer.bias else ["bias=False"]),
    ]
    return f"nn.Conv2d({', '.join(map(str, arguments))})"


def _forward(layers: Sequence[Layer], names: dict[int, str]) -> list[str]:
    """The statements from the normalised image ``x`` to the scores."""
    calls = fuse(layers)
    ends = [call.position for call in calls[1:]] + [len(layers)]
    # Outputs that a call behind the next one reads: the inputs of residual blocks.
    kept = {
        read
        for number, call in enumerate(calls)
        for read in (call.source, call.other)
        if read is not None and read != number - 1
    }
    lines = ["shortcut = x"] if -1 in kept else []
    for number, (call, end) in enumerate(zip(calls, ends, strict=True)):
        value = _expression(call, number, layers[call.position : end], names)
        if call.averaged:
            return [*lines, f"return {value}"]
        shape = ", ".join(map(str, call.layer.out_shape))
        lines.append(f"x = {value}  # (N, {shape})")
        if number in kept:
            lines.append("shortcut = x")
    raise AssertionError("unreachable")


def _expression(call: Call, number: int, layers: Sequence[Layer], names: dict[int, str]) -> str:
    """One call as nested function calls."""
    value = "x" if call.source == number - 1 else "shortcut"
    for offset, layer in enumerate(layers):
        if offset + call.position in names:
            value = f"self.{names[offset + call.position]}({value})"
        elif layer.kind == "Add":
            value += " + x" if call.other == number - 1 else " + shortcut"
        elif layer.kind == "Dropout2d":
            value = f"F.dropout2d({value}, {layer.rate}, self.training)"
        elif layer.kind in _FUNCTIONS:
            value = f"{_FUNCTIONS[layer.kind]}({value})"
        else:
            function = "F.max_pool2d" if layer.kind == "MaxPool2d" else "F.avg_pool2d"
            value = f"{function}({value}, {layer.kernel}, {layer.stride})"
    return f"{value}.flatten(1)" if call.averaged else value


def _test_set(data: str) -> dict[str, str]:
    """The class of torchvision with the test images, and how it stores them; an empty name for other data."""
    known = TORCHVISION.get(data, TorchvisionSet("MNIST" if data == "mnist" else "", {}, 0))
    labels = "[:, 0]" if data == "qmnist" else f" - {known.lowest_label}" if known.lowest_label else ""
    return {
        "test_set": known.folder,
        "test_options": "".join(f", {name}={value!r}" for name, value in known.options.items()),
        "classes_of": labels,
        "turned": ".transpose(1, 2)" if data.startswith("emnist") else "",
    }
