"""``python -m nas_mnist.export NETWORK --to FORMAT``: a trained network as a file for other programs."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from .core.cli import OUTPUT, WHAT, Network, Storage, Study, as_path, check_lookup, option, run
from .core.defaults import DEFAULT_STORAGE, DEFAULT_STUDY
from .core.errors import InputError, choices
from .core.fileio import check_new, write_bytes

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from .training.classifier import Classifier

FORMATS = {"safetensors": ".safetensors", "onnx": ".onnx", "torch": ".pt2"}


def export(
    network: Network,
    to: Annotated[str, option(WHAT, "FORMAT", "Write safetensors, onnx or torch.")],
    output: Annotated[
        str | None, option(OUTPUT, "FILE", "Write this new file (NAME.FORMAT).", "--output")
    ] = None,
    study: Study = DEFAULT_STUDY,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Write a trained network to a new file and print its size.

    onnx and torch files contain the preprocessing: pixels from 0 to 255 in, class scores out.
    """
    check_lookup(network, study, storage)
    if to not in FORMATS:
        raise InputError(f"--to: {to!r} {choices(to, FORMATS)}")
    if to == "onnx":
        _need_onnx()
    target = as_path(output)

    from .lookup import find_classifier
    from .training.classifier import Classifier

    name, classifier = find_classifier(network, study, storage)
    target = target or Path(name + FORMATS[to])
    check_new(target, "--output")
    writers = {"safetensors": Classifier.to_bytes, "onnx": to_onnx, "torch": to_torch}
    content = writers[to](classifier)
    write_bytes(target, content)
    params = sum(parameter.numel() for parameter in classifier.model.parameters())
    print(f"Written: {target}, {len(content):,} bytes")
    sizes = f"{4 * params:,} bytes as float32, {int8_bytes(classifier):,} bytes as int8"
    print(f"Parameters: {params:,}; {sizes} (weights, scales, biases)")
    normalizer = classifier.normalizer
    if to == "safetensors":
        print(f"Preprocessing: (byte - {normalizer.mean:.6f}) / {normalizer.std:.6f}")
    else:
        print(f"Input: {metadata(classifier)['input']}; the preprocessing is inside")


def int8_bytes(classifier: Classifier) -> int:
    """Bytes of the network after int8 quantisation, normalisations folded into the convolutions before them.

    Each weight takes one byte, each output channel a float32 scale and an int32 bias (Jacob et al. 2018,
    arxiv.org/abs/1712.05877, with one scale a channel). Repeats have scales and biases of their own. A
    normalisation after an activation cannot be folded: it takes a float32 factor and shift a channel.
    """
    from torch import nn

    layers, counted = list(classifier.model.layers), set()
    total = 0
    for position, layer in enumerate(layers):
        if isinstance(layer, nn.Conv2d):
            total += 8 * layer.out_channels + (0 if layer in counted else layer.weight.numel())
            counted.add(layer)
        elif isinstance(layer, nn.BatchNorm2d) and not isinstance(layers[position - 1], nn.Conv2d):
            total += 8 * layer.num_features
    return total


def to_onnx(classifier: Classifier) -> bytes:
    """An ONNX model: input ``pixels`` (N, C, H, W) float32 from 0 to 255, output ``scores`` (N, classes)."""
    import torch
    from onnx.helper import set_model_props

    with warnings.catch_warnings(action="ignore"):  # the exporter warns of its own code
        names: dict[str, Any] = {"input_names": ["pixels"], "output_names": ["scores"]}
        exported = torch.onnx.export(_program(classifier), dynamo=True, verbose=False, **names)
    assert exported is not None
    model = exported.model_proto
    model.doc_string = f"A network for images of {classifier.data}, by nas_mnist"
    set_model_props(model, metadata(classifier))
    return bytes(model.SerializeToString())


def to_torch(classifier: Classifier) -> bytes:
    """A `torch.export` program with the same input and output: ``torch.export.load(file).module()``."""
    import torch

    stream = io.BytesIO()
    torch.export.save(_program(classifier), stream)
    return stream.getvalue()


def _program(classifier: Classifier) -> ExportedProgram:
    """The classifier with its preprocessing, for any number of images."""
    import torch

    from .training.classifier import WithPreprocessing

    example = torch.zeros(2, *classifier.model.architecture.input_shape)
    images = torch.export.Dim("images")
    return torch.export.export(
        WithPreprocessing(classifier).eval(), (example,), dynamic_shapes=({0: images},)
    )


def metadata(classifier: Classifier) -> dict[str, str]:
    """A description of input, output and classes, which an exported file contains."""
    architecture = classifier.model.architecture
    shape = ", ".join(map(str, architecture.input_shape))
    return {
        "input": f"float32 (N, {shape}), pixels from 0 to 255, as in {classifier.data}",
        "output": f"float32 (N, {architecture.classes}), a score for every class; the largest one wins",
        "classes": json.dumps(classifier.class_names),
        "data": classifier.data,
        "architecture": architecture.to_json(),
    }


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise InputError("--to: onnx needs more packages (pip install 'nas-mnist[onnx]')") from None


if __name__ == "__main__":
    run(export)
