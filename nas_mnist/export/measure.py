"""What an export prints of its files: their accuracy by their own runtime, and their size."""

from __future__ import annotations

from torch import Tensor

from ..models.cost import cost_of
from ..training.classifier import Classifier
from ..training.evaluate import predict
from .export_data import ExportData
from .formats import Format


def accuracy_line(data: ExportData, made: Format, is_rounded: bool) -> str:
    """The accuracy of a format's files by their own runtime, or why it was not measured."""
    if data.test is None:
        return f"Test accuracy: not measured ({data.missing})"
    if made.run is None:
        return f"Test accuracy: not measured ({made.runtime})"
    images, model = data.test.images, data.classifier.model
    share = _accuracy(data, made.run(made.make([]), images))
    line = f"Test accuracy: {share:.2%} of {len(images):,} images by {made.runtime}"
    if not is_rounded:
        return line
    floats = _accuracy(data, predict(model, images, data.classifier.normalizer))
    return f"{line}; in float32 {floats:.2%}"


def _accuracy(data: ExportData, scores: Tensor) -> float:
    """The share of test images that class scores (N, classes) name correctly."""
    assert data.test is not None
    return float((scores.argmax(1) == data.test.labels).double().mean())


def size_lines(classifier: Classifier) -> list[str]:
    """The bytes of flash and RAM that the network takes."""
    cost = cost_of(classifier.model.architecture)
    return [
        f"Float32: {4 * cost.params:,} bytes of weights, {cost.peak_memory:,} bytes of activations",
        f"Int8 in C: flash {cost.flash:,} bytes (weights, scales, biases, table of layers; no code)",
        f"Int8 in C: RAM {cost.ram:,} bytes (one static buffer with the image; no stack)",
    ]
