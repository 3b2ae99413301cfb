"""What an export prints of its files: their accuracy by their own runtime, and their size."""

from __future__ import annotations

from math import nan
from typing import Any, NamedTuple

from torch import Tensor

from ..models.cost import cost_of
from ..training.classifier import Classifier
from ..training.evaluate import predict
from .export_data import ExportData
from .formats import Format

MUCH = 0.01  # loss of accuracy that is worth a warning


class Measured(NamedTuple):
    """The accuracy of a format's files by their own runtime."""

    runtime: str
    images: int  # test images; 0: not measured
    accuracy: float = nan  # of the files, 0 to 1
    of_floats: float = nan  # of the network in float32
    why: str = ""  # it was not measured

    def line(self, is_rounded: bool) -> str:
        """The accuracy in words; of rounded weights beside that in float32."""
        if not self.images:
            return f"Test accuracy: not measured ({self.why})"
        line = f"Test accuracy: {self.accuracy:.2%} of {self.images:,} images by {self.runtime}"
        return f"{line}; in float32 {self.of_floats:.2%}" if is_rounded else line

    def warning(self) -> str:
        """A warning where rounding costs more than a point of accuracy; empty elsewhere."""
        lost = self.of_floats - self.accuracy
        if not self.images or lost <= MUCH:
            return ""
        return f"Warning: rounding to int8 costs {100 * lost:.1f} points of accuracy"

    def record(self, to: str, file: str, weights: str) -> dict[str, Any]:
        """The record of ``exports.json``."""
        return {
            "format": to,
            "file": file,
            "weights": weights,
            "runtime": self.runtime,
            "test_images": self.images,
            "test_accuracy": self.accuracy,
            "float32_accuracy": self.of_floats,
        }


def measure(data: ExportData, made: Format) -> Measured:
    """Test a format's files on all test images, if there are some and a runtime."""
    if data.test is None:
        return Measured(made.runtime, 0, why=data.missing)
    if made.run is None:
        return Measured(made.runtime, 0, why=made.runtime)
    images, model = data.test.images, data.classifier.model
    accuracy = _accuracy(data, made.run(made.make([]), images))
    floats = _accuracy(data, predict(model, images, data.classifier.normalizer))
    return Measured(made.runtime, len(images), accuracy, floats)


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
