"""``python -m nas_mnist.export WHAT --to FORMAT``: a trained network as a file for other programs."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .core.cli import STORAGE, STUDY, as_path, check_lookup, run
from .core.errors import InputError
from .core.fileio import check_new, write_bytes
from .data.class_names import class_names

if TYPE_CHECKING:
    from .training.classifier import Classifier

FORMATS = {"safetensors": ".safetensors", "onnx": ".onnx", "torch": ".pt2"}


def export(
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help="'best', of the zoo, a .safetensors file or a folder.")
    ],
    to: Annotated[str, typer.Option(metavar="FORMAT", help="safetensors, onnx or torch.")],
    output: Annotated[str | None, typer.Option(metavar="FILE", help="Must be new; else NAME.FORMAT.")] = None,
    study: Annotated[str, typer.Option(help="Where 'best' is looked up.")] = STUDY,
    storage: Annotated[str, typer.Option(help="Database URL of that study.")] = STORAGE,
) -> None:
    """Write a trained network to a file, and say how large it is.

    onnx and torch files hold the preprocessing: they take pixels from 0 to 255 and give class scores.
    """
    check_lookup(what, study, storage)
    if to not in FORMATS:
        raise InputError(f"--to: {to!r} (use {', '.join(FORMATS)})")
    if to == "onnx":
        _need_onnx()
    target = as_path(output)

    from .trained import find_classifier

    name, classifier = find_classifier(what, study, storage)
    target = target or Path(name + FORMATS[to])
    check_new(target, "--output")
    content = {"safetensors": _safetensors, "onnx": to_onnx, "torch": to_torch}[to](classifier)
    write_bytes(target, content)
    params = sum(parameter.numel() for parameter in classifier.model.parameters())
    print(f"Written: {target}, {len(content):,} bytes")
    print(
        f"Parameters: {params:,}; {4 * params:,} bytes as float32, {int8_bytes(classifier):,} bytes as int8"
    )
    normalizer = classifier.normalizer
    if to == "safetensors":
        print(f"Preprocessing: (byte - {normalizer.mean:.6f}) / {normalizer.std:.6f}")
    else:
        print(f"Input: {facts(classifier)['input']}; the preprocessing is inside")


def int8_bytes(classifier: Classifier) -> int:
    """Bytes of the network for integer arithmetic, every normalisation folded into the convolution before it.

    A byte a convolution weight, and for every output channel a float32 scale and an int32 bias (the scheme of
    Jacob et al. 2018, arxiv.org/abs/1712.05877, with a scale a channel), again for every repeat. A
    normalisation that follows an activation stays on its own: a float32 factor and shift a channel.
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

    from .training.classifier import WithPreprocessing

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own making
        program = torch.onnx.export(
            WithPreprocessing(classifier).eval(),
            (_example(classifier),),
            input_names=["pixels"],
            output_names=["scores"],
            dynamic_shapes=({0: torch.export.Dim("images")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    from onnx.helper import set_model_props

    model = program.model_proto
    model.doc_string = f"A network for images of {classifier.data}, by nas_mnist"
    set_model_props(model, facts(classifier))
    content: bytes = model.SerializeToString()
    return content


def facts(classifier: Classifier) -> dict[str, str]:
    """What whoever has an exported file wants to know of it."""
    architecture = classifier.model.architecture
    shape = ", ".join(map(str, architecture.input_shape))
    return {
        "input": f"float32 (N, {shape}), pixels from 0 to 255, light on dark as in {classifier.data}",
        "output": f"float32 (N, {architecture.classes}), a score for every class; the largest one wins",
        "classes": json.dumps(class_names(classifier.data, architecture.classes)),
        "data": classifier.data,
        "architecture": architecture.to_json(),
    }


def to_torch(classifier: Classifier) -> bytes:
    """A program of `torch.export` with that input and output: ``torch.export.load(file).module()``."""
    import io

    import torch

    from .training.classifier import WithPreprocessing

    stream = io.BytesIO()
    images = torch.export.Dim("images")
    model = WithPreprocessing(classifier).eval()
    program = torch.export.export(model, (_example(classifier),), dynamic_shapes=({0: images},))
    torch.export.save(program, stream)
    return stream.getvalue()


def _safetensors(classifier: Classifier) -> bytes:
    return classifier.to_bytes()


def _example(classifier: Classifier):  # type: ignore[no-untyped-def]
    import torch

    return torch.zeros(2, *classifier.model.architecture.input_shape)


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise InputError("--to: onnx needs more packages (pip install 'nas-mnist[onnx]')") from None


if __name__ == "__main__":
    run(export)
