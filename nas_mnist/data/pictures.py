"""Pictures from files, by Pillow: any size and colour, turned upright, on white paper."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..core.errors import InputError
from ..core.fileio import check_regular
from .arrays import Array

# Pillow's other formats are rare, and some of them start other programs.
FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm"),
}
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
MAX_PIXELS = 50_000_000
_ORIENTATION = 0x0112  # the EXIF tag; from 5 on, width and height are exchanged


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width of an upright picture, from its header; raises `InputError`."""
    with _opened(path) as file:
        turned = file.getexif().get(_ORIENTATION, 1) >= 5
        return file.size if turned else file.size[::-1]


def read_picture(path: Path, height: int, width: int, channels: int = 3) -> Array:
    """A picture as uint8 (channels, height, width), in colour or with one channel in grey.

    It is turned upright, and resized without regard to its proportions. Transparent parts become white. Of
    several frames the first is taken. Raises `InputError`.
    """
    with _opened(path) as file:
        file.draft("RGB", (2 * max(height, width),) * 2)  # JPEG: decoded to about this size
        image = _in_colour(ImageOps.exif_transpose(file))
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image).transpose(2, 0, 1) if channels == 3 else np.asarray(image.convert("L"))[None]


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A picture with its header read; raises `InputError`, also for errors while it is read."""
    try:
        check_regular(path, "picture")
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=tuple(FORMATS)) as file:
            if file.width * file.height > MAX_PIXELS:
                raise InputError(f"picture: {path} has more than {MAX_PIXELS:,} pixels")
            yield file
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "damaged, or not a picture"
        raise InputError(f"picture: {path} cannot be read ({reason})") from None


def _in_colour(image: Image.Image) -> Image.Image:
    """The image in RGB, transparent parts white."""
    if image.mode.startswith("I"):  # 16 bits a pixel; bytes, if no value is above 255
        values = np.asarray(image).clip(0, 65_535)
        values = values if values.max() <= 255 else (values / 257).round()
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(image.convert("RGBA"))
    return paper.convert("RGB")


def read_grey(path: Path) -> Array:
    """An upright picture as uint8 (H, W), transparent parts white; raises `InputError`.

    White ink on transparent paper gives its opacity: light on black.
    """
    with _opened(path) as file:
        file.draft("L", (1_024, 1_024))  # JPEG: decoded to about this size
        image = ImageOps.exif_transpose(file)
        grey = _in_colour(image).convert("L")
        if image.has_transparency_data and grey.getextrema() == (255, 255):
            grey = image.convert("RGBA").getchannel("A")
    return np.asarray(grey)
