"""Ink on paper, found by its contrast to the paper around it, and brought into the form of MNIST's digits.

Paper may have any grey, and ink may be darker or lighter. All lengths are pixels of the picture as it is
searched, with `SIDE` pixels on the longer side.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

SIDE = 256
PAPER_SIDE, PAPER_WINDOW = 48, 35  # the longer side, and the median's window, where the paper is estimated
EDGE = 11  # within this width the paper's grey may change
MIN_CONTRAST = 8.0  # bytes; less is no ink
MIN_SIGNAL = 6.0  # standard deviations of the noise; less is no ink
INK_SHARE = 0.4  # of the strongest contrast, from which on a pixel is ink
LINE = SIDE // 4  # a straight run of this length that touches the border is a line
GAP = 8  # marks that are twice as far apart are different marks
MIN_MARK = 10  # the longer side; shorter marks are specks
MARK_SHARE = 0.15  # of the largest mark's pixels; smaller marks are specks
MIN_SLOPE = 0.2  # of the contrast, a pixel, outside a mark; shadows fade out more slowly
SOFT_SIDE = 100  # of larger marks the slope may be smaller in proportion: an enlarged digit is soft
CROSSED, MAX_CROSSINGS = 3, 2  # sides that the ink of a cropped digit crosses, at least; how often, at most
MAX_ALONG, MAX_INKED = 0.9, 0.5  # the most ink on one side, and on all
DIGIT_SHARE = 20 / 28  # of an image: the longer side of a digit in MNIST
STROKE_SHARE = 2.6 / 20  # of the digit's longer side; thinner strokes are thickened

LEFT_OUT = "a line, a shadow or an edge at the border was left out"
TOUCHES = "the ink touches the border"
NO_INK = "lines, shadows and specks were left out; ink needs some paper around it"


class Ink(NamedTuple):
    """What a picture shows."""

    image: Bytes | None  # (height, width), light on black; None: no ink
    warning: str = ""


class _Marks(NamedTuple):
    contrast: Floats  # bytes, without what was left out
    mask: Mask  # the pixels of ink
    sharpness: float  # see `_sharpness`
    warning: str

    @property
    def box(self) -> tuple[slice, slice]:
        """Rows and columns of the ink."""
        rows, columns = ndimage.find_objects(self.mask.astype(int))[0]
        return rows, columns

    @property
    def strength(self) -> float:
        """The contrast of full ink, in bytes."""
        return float(np.percentile(self.contrast[self.mask], 60))


def find_ink(grey: Bytes, height: int, width: int) -> Ink:
    """The digit on a picture (H, W) as in MNIST: on black, 20/28 long, its centre of mass in the middle."""
    small, paper = _paper(grey)
    found = _found(small, paper)
    if not found.marks:  # ink may fill the picture; then the paper is as at the border
        border = np.concatenate([paper[0], paper[-1], paper[:, 0], paper[:, -1]])
        found = _found(small, paper.clip(*np.percentile(border, (5, 95))))
    if all(one.warning for one in found.marks) and (whole := _with_paper(grey)) is not None:
        image, _ = find_ink(whole, height, width)
        if image is not None:
            return Ink(image, TOUCHES)
    if not found.marks:
        return Ink(None, NO_INK if found.contrast else "")
    marks = max(found.marks, key=lambda one: (one.warning != TOUCHES, one.strength * one.sharpness))
    near = ndimage.binary_dilation(marks.mask, iterations=2)
    ink = np.where(near, np.clip(marks.contrast / marks.strength, 0, 1), 0)
    return Ink(_centred(_thickened(ink[marks.box], marks.mask[marks.box]), height, width), marks.warning)


def _with_paper(grey: Bytes) -> Bytes | None:
    """A picture that was cropped to its ink, with paper around it; None for another picture.

    Ink crosses three or four sides, as a digit does: not often, nor along a whole side, as lines and edges.
    """
    small = _small(grey, SIDE)
    sides = [small[0], small[-1], small[:, 0], small[:, -1]]
    paper = np.median(np.concatenate(sides))
    contrast = float(np.percentile(np.abs(small - paper), 95))
    inked = [np.abs(side - paper) > max(INK_SHARE * contrast, MIN_CONTRAST) for side in sides]
    crossings = [ndimage.label(side)[1] for side in inked]
    along = max(side.mean() for side in inked)
    if np.count_nonzero(crossings) < CROSSED or max(crossings) > MAX_CROSSINGS or along > MAX_ALONG:
        return None
    if np.concatenate(inked).mean() > MAX_INKED:
        return None
    return np.pad(grey, max(grey.shape) // 4, constant_values=round(paper))


def _small(grey: Bytes, side: int) -> Floats:
    """A picture (H, W) with ``side`` pixels on the longer side."""
    picture = Image.fromarray(grey)
    width, height = (max(1, round(length * side / max(picture.size))) for length in picture.size)
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX), np.float64)


def _paper(grey: Bytes) -> tuple[Floats, Floats]:
    """The picture with `SIDE` pixels, and its paper: the median around a pixel, which has its shadows."""
    small, tiny = _small(grey, SIDE), _small(grey, PAPER_SIDE)
    median = ndimage.median_filter(tiny, PAPER_WINDOW, mode="nearest")
    paper = Image.fromarray(median).resize(small.shape[::-1], Image.Resampling.BICUBIC)
    return small, np.asarray(paper, np.float64)


class _Found(NamedTuple):
    marks: list[_Marks]  # dark marks and light marks, as far as there are any
    contrast: bool  # whether something stands out from the paper


def _found(small: Floats, paper: Floats) -> _Found:
    smooth = ndimage.gaussian_filter(small, 1)
    noise = 1.4826 * float(np.median(np.abs(smooth - ndimage.gaussian_filter(smooth, 4))))
    limit = max(MIN_CONTRAST, MIN_SIGNAL * noise)
    dark, light = ndimage.grey_erosion(paper, EDGE) - smooth, smooth - ndimage.grey_dilation(paper, EDGE)
    both = (_marks(contrast.clip(0), limit) for contrast in (dark, light))
    found = [marks for marks in both if marks is not None]
    return _Found(found, bool(max(dark.max(), light.max()) > limit))


def _marks(contrast: Floats, limit: float) -> _Marks | None:
    """The strongest marks inside the picture; without any, a mark that touches the border; or None."""
    slope = ndimage.gaussian_gradient_magnitude(contrast, 1.5) / np.maximum(contrast, 1)
    left, warning = contrast.copy(), ""
    touching: _Marks | None = None
    while (top := left.max()) > limit:
        strong = left > INK_SHARE * top
        bare = _without_lines(strong)
        left[strong & ~bare] = 0
        inner = _inside(bare)
        warning = warning or (LEFT_OUT if (strong & ~inner).any() else "")
        if (ink := _sharp(inner, slope)).any():
            return _Marks(left, ink, _sharpness(ink, slope), warning)
        if touching is None and (ink := _sharp(bare, slope)).any():
            touching = _Marks(left.copy(), ink, _sharpness(ink, slope), TOUCHES)
        left[ndimage.binary_propagation(strong, mask=left > limit) | strong] = 0
    return touching


def _inside(mask: Mask) -> Mask:
    """The marks that do not touch the border."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return np.asarray(mask & ~np.isin(labels, border))


def _without_lines(mask: Mask) -> Mask:
    """The mask without level and upright lines that touch the border; strokes across them stay whole."""
    for slack, run, heal in (((7, 1), (1, LINE), (15, 1)), ((1, 7), (LINE, 1), (1, 15))):
        runs = ndimage.binary_opening(ndimage.binary_dilation(mask, np.ones(slack)), np.ones(run))
        lines = mask & runs & ~_inside(runs)
        mask = mask & ~lines
        mask = mask | (lines & ndimage.binary_closing(mask, np.ones(heal)))
    return mask


def _sharp(mask: Mask, slope: Floats) -> Mask:
    """The mask without specks, and without marks that fade out as shadows do; close marks count as one."""
    labels, count = ndimage.label(ndimage.binary_dilation(mask, iterations=GAP), np.ones((3, 3)))
    sizes = ndimage.sum_labels(mask, labels, np.arange(count + 1))
    kept = []
    for label, box in enumerate(ndimage.find_objects(labels), 1):
        side = max(part.stop - part.start for part in box) - 2 * GAP
        if side >= MIN_MARK and sizes[label] >= MARK_SHARE * sizes[1:].max():
            least = MIN_SLOPE * min(1, SOFT_SIDE / side)
            if _sharpness(mask & (labels == label), slope) > least:
                kept.append(label)
    return np.asarray(mask & np.isin(labels, kept))


def _sharpness(mask: Mask, slope: Floats) -> float:
    """The relative slope of the contrast, a pixel, which three quarters of the edge of a mark exceed."""
    return float(np.percentile(slope[ndimage.binary_dilation(mask) & ~mask], 25))


def _thickened(ink: Floats, mask: Mask) -> Floats:
    """The ink with strokes of at least `STROKE_SHARE`; a stroke is four times as wide as its mean depth."""
    width = 4 * float(ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1][mask].mean())
    more = round(STROKE_SHARE * max(mask.shape) - width)
    if more < 1:
        return ink
    y, x = np.mgrid[-more : more + 1, -more : more + 1]
    disk = x**2 + y**2 <= ((more + 1) / 2) ** 2
    return np.asarray(ndimage.grey_dilation(np.pad(ink, more), footprint=disk))


def _centred(ink: Floats, height: int, width: int) -> Bytes:
    """Ink from 0 to 1 as a digit of MNIST."""
    factor = DIGIT_SHARE * min(height, width) / max(ink.shape)
    high, wide = (max(1, round(side * factor)) for side in ink.shape)
    picture = Image.fromarray((255 * ink).astype(np.uint8))
    small = np.asarray(picture.resize((wide, high), Image.Resampling.LANCZOS))
    y, x = ndimage.center_of_mass(small)
    top = round(float(np.clip((height - 1) / 2 - y, 0, height - high)))
    left = round(float(np.clip((width - 1) / 2 - x, 0, width - wide)))
    canvas = np.zeros((height, width), np.uint8)
    canvas[top : top + high, left : left + wide] = small
    return canvas
