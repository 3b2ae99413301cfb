"""The data set that an export is calibrated and tested on, if it is at hand."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ..core.errors import InputError
from ..data.dataset import Images, load
from ..models.cost import cost_of
from ..training.classifier import Classifier
from ..training.evaluate import predict
from .formats import Format


class ExportData:
    """Training and test images, or the reason why there are none."""

    def __init__(self, classifier: Classifier, name: str | None, data_dir: Path | None) -> None:
        """``name`` as `load` takes it; None: the network's. Raises `InputError` for data that was named."""
        self.classifier = classifier
        self.train: Images | None = None
        self.test: Images | None = None
        self.missing = ""
        wanted = classifier.data if name is None else name
        try:
            data = load(wanted, data_dir)
        except InputError as error:
            if name is not None or data_dir:
                raise
            self.missing = f"{error}; --dataset and --data-dir name the data"
            return
        architecture = classifier.model.architecture
        found = tuple(data.train.images.shape[1:]), data.classes
        if found != (architecture.input_shape, architecture.classes):
            raise InputError(f"--dataset: {wanted!r} has other images or classes than the network")
        self.train = data.train
        if data.name == wanted:
            self.test = data.read_test()
        else:
            self.missing = f"{wanted} is not at hand: --data-dir names its folder"

    def training_images(self) -> Images:
        """The training images; raises `InputError` without any."""
        if self.train is None:
            raise InputError(f"--to: int8 needs training images to calibrate ({self.missing})")
        return self.train

    def accuracy_line(self, made: Format, is_rounded: bool) -> str:
        """The accuracy of a format's files by their own runtime, or why it was not measured."""
        if self.test is None:
            return f"Test accuracy: not measured ({self.missing})"
        if made.run is None:
            return f"Test accuracy: not measured ({made.runtime})"
        images = self.test.images
        share = self._accuracy(made.run(made.make([]), images))
        line = f"Test accuracy: {share:.2%} of {len(images):,} images by {made.runtime}"
        if not is_rounded:
            return line
        floats = self._accuracy(predict(self.classifier.model, images, self.classifier.normalizer))
        return f"{line}; in float32 {floats:.2%}"

    def _accuracy(self, scores: Tensor) -> float:
        """The share of test images that class scores (N, classes) name correctly."""
        assert self.test is not None
        return float((scores.argmax(1) == self.test.labels).double().mean())


def size_lines(classifier: Classifier) -> list[str]:
    """The bytes of flash and RAM that the network takes."""
    cost = cost_of(classifier.model.architecture)
    return [
        f"Float32: {4 * cost.params:,} bytes of weights, {cost.peak_memory:,} bytes of activations",
        f"Int8 in C: flash {cost.flash:,} bytes (weights, scales, biases, table of layers; no code)",
        f"Int8 in C: RAM {cost.ram:,} bytes (one static buffer with the image; no stack)",
    ]
