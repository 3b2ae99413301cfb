"""The data set that an export is calibrated and tested on, if it is at hand."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import InputError
from ..data.dataset import Images, load
from ..training.classifier import Classifier


class ExportData:
    """Training and test images, or the reason why there are none."""

    def __init__(
        self,
        classifier: Classifier,
        usual: str,
        name: str | None,
        data_dir: Path | None,
        fingerprint: str | None = None,
    ) -> None:
        """``usual``: the network's data set, ``name``: another one, both as `load` takes them.

        ``fingerprint``: of the network's training images, if it is known. With others, images of the test
        part may have been trained on, and nothing is measured. Raises `InputError` for data that was named
        and cannot be read.
        """
        self.classifier = classifier
        self.train: Images | None = None
        self.test: Images | None = None
        self.missing = ""
        wanted = usual if name is None else name
        try:
            data = load(wanted, data_dir)
        except InputError as error:
            if name is not None or data_dir:
                raise
            self.missing = f"{error}; --dataset and --data-dir name the data"
            return
        architecture = classifier.model.architecture
        found = tuple(data.train.images.shape[1:]), data.classes
        fits = found == (architecture.input_shape, architecture.classes)
        if name is not None and not fits:
            raise InputError(f"--dataset: {wanted!r} has other images or classes than the network")
        self.train = data.train if fits else None
        if data.name != wanted:
            self.missing = f"{wanted} is not at hand: --data-dir names its folder"
        elif wanted == usual and (not fits or fingerprint not in (None, data.fingerprint)):
            self.missing = f"{wanted} has changed since the training"
        else:
            self.test = data.read_test()

    def training_images(self) -> Images:
        """The training images; raises `InputError` without any."""
        if self.train is None:
            raise InputError(f"--to: int8 needs training images to calibrate ({self.missing})")
        return self.train
