"""``python -m nas_mnist.predict PICTURE``: the class of a picture of a digit, and the probabilities."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from .core.cli import OUTPUT, WHAT, Storage, Study, argument, check_lookup, option, run
from .core.defaults import DEFAULT_STORAGE, DEFAULT_STUDY
from .core.errors import InputError
from .core.fileio import check_regular

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from .training.classifier import Classifier

MAX_PIXELS = 50_000_000
DIGIT_SHARE = 20 / 28  # of the image: the longer side of a digit in MNIST
MIDDLE = 127.5  # between dark and light bytes
MIN_INK = 30  # bytes; a smaller difference to the paper is no ink


def predict(
    picture: Annotated[str, argument("PICTURE", "A PNG or JPEG of one digit.")],
    network: Annotated[
        str, option(WHAT, "NETWORK", "Ask this network, as reproduce takes it (mnist-19k).")
    ] = "mnist-19k",
    study: Study = DEFAULT_STUDY,
    storage: Storage = DEFAULT_STORAGE,
    as_json: Annotated[bool, option(OUTPUT, "", "Print JSON instead of a table.", "--json")] = False,
) -> None:
    """Print the class of a picture and the probability of every class."""
    check_lookup(network, study, storage)
    read_picture(Path(picture))  # a bad picture is refused before torch is loaded

    from .lookup import find_classifier

    _, classifier = find_classifier(network, study, storage)
    probabilities = classify(Path(picture), classifier)
    best = max(range(len(probabilities)), key=probabilities.__getitem__)
    names = classifier.class_names
    if as_json:
        print(json.dumps({"class": best, "name": names[best], "probabilities": probabilities}))
        return
    print(f"class {names[best]}")
    wide = max(3, *map(len, names))
    for name, probability in zip(names, probabilities, strict=True):
        bar = "#" * round(40 * probability)
        print(f"{name:>{wide}}  {probability:7.2%}  {bar}".rstrip())


def classify(picture: Path, classifier: Classifier) -> list[float]:
    """The probability of every class for a picture; raises `InputError`.

    Networks for colour, or trained on a folder of pictures, take it as that folder's pictures are taken;
    others as `prepare` brings it into the form of their data set.
    """
    import torch

    from .data import pictures

    channels, height, width = classifier.model.architecture.input_shape
    if channels == 3 or classifier.data == "folder":
        resized = torch.from_numpy(pictures.read_picture(picture, height, width, channels).copy())
        colour: list[float] = classifier(resized[None])[0].tolist()
        return colour
    if channels != 1:
        raise InputError(f"network: takes {channels} channels (use one for grey images, or three)")
    image = read_picture(picture)
    if len(image.getcolors(1 << 8) or []) == 1:
        raise InputError(f"picture: {picture} shows nothing: all of it is of one colour")
    dark = classifier.normalizer.mean < MIDDLE
    digit = classifier.data.startswith(("mnist", "qmnist", "emnist"))
    pixels = torch.tensor(prepare(image, height, width, dark=dark, digit=digit))
    found: list[float] = classifier(pixels[None, None])[0].tolist()
    return found


def read_picture(path: Path) -> Image.Image:
    """A picture in 8-bit grey; raises `InputError` for a file that is no picture."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        check_regular(path, "picture")
        with warnings.catch_warnings(action="ignore"), Image.open(path) as file:
            if file.width * file.height > MAX_PIXELS:
                raise InputError(f"picture: {path} has more than {MAX_PIXELS:,} pixels")
            if file.mode.startswith("I"):  # 16 bits a pixel
                return Image.fromarray((np.asarray(file) / 257).clip(0, 255).astype(np.uint8))
            drawn = file.convert("RGBA")
            with_paper = Image.new("RGBA", file.size, "white")
            with_paper.alpha_composite(drawn)
            grey = with_paper.convert("L")
            low, high = grey.getextrema()
            return drawn.getchannel("A") if low == high == 255 else grey  # white ink on nothing
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "not a picture"
        raise InputError(f"picture: {path} cannot be read ({reason})") from None


def prepare(
    image: Image.Image, height: int, width: int, *, dark: bool = True, digit: bool = True
) -> np.ndarray:
    """The picture as uint8 (height, width), on a ``dark`` background as MNIST's, or on a light one.

    A picture on the other background is inverted, a picture of another size resized. With ``digit`` it is
    brought into MNIST's form: the paper black, the digit 20 of 28 pixels high or wide, its centre of mass in
    the middle.
    """
    import numpy as np
    from PIL import Image as images

    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    paper = float(np.median(border))
    if (paper < MIDDLE) != dark:
        pixels, paper = 255 - pixels, 255 - paper
    if digit and dark:
        pixels = ((np.maximum(pixels, paper) - paper) * (255 / (255 - paper))).astype(np.uint8)
    if pixels.shape == (height, width):
        return pixels.copy()
    if digit and dark:
        return _centred(pixels, height, width)
    return np.asarray(images.fromarray(pixels).resize((width, height), images.Resampling.LANCZOS))


def _centred(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    import numpy as np
    from PIL import Image

    picture, canvas = Image.fromarray(pixels), Image.new("L", (width, height))
    box = Image.fromarray(pixels > MIN_INK).getbbox()  # None without ink
    if box is not None:
        digit = picture.crop(box)
        factor = DIGIT_SHARE * min(height, width) / max(digit.size)
        wide, high = (max(1, round(side * factor)) for side in digit.size)
        small = digit.resize((wide, high), Image.Resampling.LANCZOS)
        weights = np.maximum(np.asarray(small, dtype=float), 1e-9)
        centre_y = (weights.sum(1) @ np.arange(high)) / weights.sum()
        centre_x = (weights.sum(0) @ np.arange(wide)) / weights.sum()
        top = round(float(np.clip((height - 1) / 2 - centre_y, 0, height - high)))
        left = round(float(np.clip((width - 1) / 2 - centre_x, 0, width - wide)))
        canvas.paste(small, (left, top))
    return np.array(canvas)


if __name__ == "__main__":
    run(predict)
