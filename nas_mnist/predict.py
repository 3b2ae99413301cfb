"""``python -m nas_mnist.predict PICTURE...``: the classes of pictures, or of the rows of a CSV file."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from .core.cli import OUTPUT, WHAT, Storage, Study, argument, as_path, as_table, check_lookup, option, run
from .core.defaults import DEFAULT_STORAGE, DEFAULT_STUDY, OWN_KINDS
from .core.errors import InputError
from .core.fileio import check_new, write_bytes

if TYPE_CHECKING:
    from .data.arrays import Array
    from .training.classifier import Classifier

DIGITS = ("mnist", "qmnist", "emnist")  # data sets of ink on paper begin with these words
UNLIKE = 1.5  # standard deviations of the training pixels, between a picture's mean and theirs
PLAIN_BORDER = 0.75  # of a border's pixels that are black, or white: the picture is in the data set's form
MIDDLE = 127.5  # between dark and light bytes
BATCH = 512  # images at once


class Taken(NamedTuple):
    """A picture in the form of a data set."""

    name: str | int  # the file, or the number of the row from 1
    image: Array | None  # (C, H, W) uint8; None: the picture shows nothing
    warning: str = ""


class Prediction(NamedTuple):
    """The answer to one picture."""

    name: str | int  # the file, or the number of the row from 1
    probabilities: list[float]  # by class; empty for a picture that shows nothing
    warning: str = ""

    @property
    def best(self) -> int | None:
        """The most probable class."""
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__, default=None)


def predict(
    pictures: Annotated[list[str], argument("PICTURE...", "Pictures, folders of pictures, or a CSV file.")],
    network: Annotated[
        str, option(WHAT, "NETWORK", "Ask this network, as reproduce takes it (mnist-19k).")
    ] = "mnist-19k",
    study: Study = DEFAULT_STUDY,
    storage: Storage = DEFAULT_STORAGE,
    csv_file: Annotated[
        str | None, option(OUTPUT, "FILE.csv", "Write the predictions to a new file.", "--csv")
    ] = None,
    as_json: Annotated[bool, option(OUTPUT, "", "Print JSON instead of a table.", "--json")] = False,
) -> None:
    """Print the class of each picture; of a single one, the probability of every class.

    A CSV file has an image a row: its pixels from 0 to 255, and perhaps a column label.
    """
    check_lookup(network, study, storage)
    target = None if csv_file is None else as_table("--csv", csv_file)
    if target is not None:
        check_new(target, "--csv")
    files = _files(pictures)
    table = files[0] if files[0].suffix.lower() == ".csv" else None
    images, labels = _read_table(table) if table else (None, None)
    named = {as_path(text, "picture") for text in pictures}
    if images is None and files[0] in named:
        _check_readable(files[0])  # before torch is loaded

    from .lookup import find_classifier

    name, classifier = find_classifier(network, study, storage)
    taken = _taken(files, named, classifier) if images is None else _rows(str(table), images, classifier)
    if len(pictures) == len(taken) == 1 and images is None and taken[0].image is None:
        raise InputError(_empty(taken[0]))
    found = ask(taken, classifier)
    names = classifier.class_names
    if target is not None:
        write_bytes(target, _to_csv(found, names, "file" if images is None else "row"))
    _print(found, names, "file" if images is None else "row", as_json, written=target)
    if as_json:
        return
    if labels is not None:
        right = sum(_is(one.best, label, names) for one, label in zip(found, labels, strict=True))
        print(f"Right: {right:,} of {len(found):,} ({right / len(found):.2%})")
    print(f"Network: {name}")


def classify(picture: Path | str, classifier: Classifier) -> list[float]:
    """The probability of every class for a picture (see `take`).

    Raises `InputError` for a file that is no picture, or that shows nothing.
    """
    taken = take(Path(picture), classifier)
    if taken.image is None:
        raise InputError(_empty(taken))
    return ask([taken], classifier)[0].probabilities


def take(picture: Path, classifier: Classifier) -> Taken:
    """A picture in the form of the classifier's data set; raises `InputError`.

    * Digits and letters: the ink on the paper, as `find_ink` finds it. A picture in the form of the data set
      (its size, its border black or white) stays as it is.
    * Fashion-MNIST and other packaged sets: resized, and inverted if its border is light and theirs is dark.
    * Own data, and all colour: resized, with a warning where it is much lighter or darker than they are.
    """
    from .data.pictures import read_grey, read_picture

    channels, height, width = classifier.model.architecture.input_shape
    warning = ""
    _check_channels(classifier)
    if channels == 3 or classifier.data.startswith(OWN_KINDS):
        resized = read_picture(picture, height, width, channels)
        image: Array | None = resized
        warning = _unlike(resized, classifier)
    else:
        grey = read_grey(picture)
        if not classifier.data.startswith(DIGITS):
            image = _resized(grey, height, width, dark=classifier.normalizer.mean < MIDDLE)
        elif grey.shape == (height, width) and (form := _in_form(grey)) is not None:
            image = form
        else:
            from .data.ink import find_ink

            image, warning = find_ink(grey, height, width)
    if image is None or image.min() == image.max():
        return Taken(str(picture), None, warning)
    return Taken(str(picture), image.reshape(channels, height, width), warning)


def _taken(files: Sequence[Path], named: Collection[Path | None], classifier: Classifier) -> list[Taken]:
    """The pictures; of a picture in a folder that cannot be read, the reason.

    Raises `InputError` for another one, and where no picture can be read.
    """
    _check_channels(classifier)
    taken: list[Taken] = []
    failed: list[InputError] = []
    for file in files:
        try:
            taken.append(take(file, classifier))
        except InputError as error:
            failed.append(error)
            if file in named or len(failed) == len(files):
                raise
            taken.append(Taken(str(file), None, str(error).removeprefix(f"picture: {file} ")))
    return taken


def _check_channels(classifier: Classifier) -> None:
    channels = classifier.model.architecture.input_shape[0]
    if channels not in (1, 3):
        raise InputError(f"network: takes {channels} channels (use one for grey images, or three)")


def _empty(taken: Taken) -> str:
    return f"picture: {taken.name} shows nothing" + (f" ({taken.warning})" if taken.warning else "")


def _unlike(image: Array, classifier: Classifier) -> str:
    """A warning for an image that is much lighter or darker than the training images; else nothing."""
    mean, usual = float(image.mean()), classifier.normalizer
    if abs(mean - usual.mean) <= UNLIKE * usual.std:
        return ""
    return f"unlike the training images: its mean is {mean:.0f}, theirs {usual.mean:.0f} (0 is black)"


def ask(taken: Sequence[Taken], classifier: Classifier) -> list[Prediction]:
    """The predictions for pictures."""
    import numpy as np
    import torch

    shown = [one for one in taken if one.image is not None]
    answers: list[list[float]] = []
    for start in range(0, len(shown), BATCH):
        batch = np.stack([one.image for one in shown[start : start + BATCH] if one.image is not None])
        answers += classifier(torch.from_numpy(batch)).tolist()
    rest = iter(answers)
    return [Prediction(one.name, [] if one.image is None else next(rest), one.warning) for one in taken]


def _files(pictures: Sequence[str]) -> list[Path]:
    """The files that are meant: those of folders in the order of their names; raises `InputError`."""
    from .data.pictures import SUFFIXES

    files: list[Path] = []
    for text in pictures:
        path = as_path(text, "picture") or Path()
        if not _is_folder(path):
            files.append(path)
            continue
        found = (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        below = sorted(file for file in found if file.name[0] != ".")
        if not below:
            raise InputError(f"picture: {path} holds no pictures (use a folder of PNG or JPEG files)")
        files += below
    if len(files) > 1 and (tables := [file for file in files if file.suffix.lower() == ".csv"]):
        raise InputError(f"picture: {tables[0]} (use a CSV file alone)")
    return files


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long
        return False


def _check_readable(file: Path) -> None:
    from .data.pictures import read_grey

    read_grey(file)


def _read_table(table: Path) -> tuple[Array, Array | None]:
    from .data.table import read_table

    return read_table(table, "picture")


def _rows(table: str, images: Array, classifier: Classifier) -> list[Taken]:
    """The rows of a CSV file, which must be in the form of the classifier's data set."""
    wanted = classifier.model.architecture.input_shape
    if images.shape[1:] != wanted:
        has, wants = (
            f"{height}x{width}x{channels}" for channels, height, width in (images.shape[1:], wanted)
        )
        raise InputError(f"picture: {table} has images of {has} values (the network takes {wants})")
    return [
        Taken(number, None if image.min() == image.max() else image) for number, image in enumerate(images, 1)
    ]


def _border(grey: Array) -> Array:
    import numpy as np

    return np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])


def _in_form(grey: Array) -> Array | None:
    """A picture of the data set's size as light ink on black, if its paper is all black or all white."""
    border = _border(grey)
    for paper, picture in ((0, grey), (255, 255 - grey)):
        if (border == paper).mean() >= PLAIN_BORDER:
            return picture
    return None


def _resized(grey: Array, height: int, width: int, dark: bool) -> Array:
    """A picture (height, width), inverted unless its border is dark as the data set's."""
    import numpy as np
    from PIL import Image

    grey = grey if (np.median(_border(grey)) < MIDDLE) == dark else 255 - grey
    if grey.shape == (height, width):
        return grey
    return np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.LANCZOS))


def _is(best: int | None, label: Any, names: Sequence[str]) -> bool:
    """Whether a class has this label: its name, or its number."""
    return best is not None and str(label) in (names[best], str(best) if str(label) not in names else "")


def _to_csv(found: Sequence[Prediction], names: Sequence[str], head: str) -> bytes:
    """The table of predictions; its columns are documented in reports/README.md."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([head, "class", "probability", "warning"])
    for one in found:
        named = ("empty", "") if one.best is None else (names[one.best], f"{max(one.probabilities):.6f}")
        writer.writerow([one.name, *named, one.warning])
    return stream.getvalue().encode()


def _print(
    found: Sequence[Prediction], names: Sequence[str], head: str, as_json: bool, written: Path | None
) -> None:
    """Print one prediction with all classes, several as a line each, or both as JSON."""
    if as_json:
        several = [
            {head: one.name, "class": one.best, "name": None if one.best is None else names[one.best]}
            | {"probabilities": one.probabilities, "warning": one.warning}
            for one in found
        ]
        print(json.dumps(several[0] if len(several) == 1 else several))
    elif written is not None:
        print(f"Written: {written}, {len(found):,} predictions")
    elif len(found) == 1 and found[0].best is not None:
        print(f"class {names[found[0].best]}")
        wide = max(3, *map(len, names))
        for name, probability in zip(names, found[0].probabilities, strict=True):
            bar = "#" * round(40 * probability)
            print(f"{name:>{wide}}  {probability:7.2%}  {bar}".rstrip())
        if found[0].warning:
            print(f"warning: {found[0].name}: {found[0].warning}", file=sys.stderr)
    else:
        wide = max(len(str(one.name)) for one in found)
        for one in found:
            answer = "empty" if one.best is None else f"{names[one.best]}  {max(one.probabilities):7.2%}"
            warning = f"  ({one.warning})" if one.warning else ""
            print(f"{one.name:<{wide}}  {answer}{warning}")


if __name__ == "__main__":
    run(predict)
