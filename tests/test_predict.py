"""Predictions: pictures as people have them, in the form of the data set; folders and tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Runner
from PIL import Image
from scipy import ndimage

from nas_mnist.data.dataset import DataSet
from nas_mnist.data.ink import LEFT_OUT, TOUCHES, find_ink
from nas_mnist.lookup import find_classifier
from nas_mnist.predict import take
from nas_mnist.training.classifier import Classifier

HEIGHT, WIDTH = 300, 400
Page = Callable[[np.ndarray], np.ndarray]  # a page in grey, 0 to 255


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return find_classifier("mnist-4k", "none", "none")[1]


@pytest.fixture(scope="module")
def digits(five_thousand: DataSet) -> list[np.ndarray]:
    """A handwritten digit of each class: 28 x 28, light on black."""
    test = five_thousand.read_test()
    return [test.images[test.labels == label][2, 0].numpy() for label in range(10)]


def drawn(
    digit: np.ndarray, paper: np.ndarray | float, ink: float, side: int = 150, thin: bool = False
) -> np.ndarray:
    """A page of paper with a digit in ink, as a camera sees it."""
    large = np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)) / 255
    if thin:
        depth = ndimage.distance_transform_edt(large > 0.5)
        large = (depth > 0.6 * ndimage.maximum_filter(depth, 9)) & (depth > 1)
    opacity = np.zeros((HEIGHT, WIDTH))
    opacity[60 : 60 + side, 180 : 180 + side] = large
    page = ndimage.gaussian_filter(paper * (1 - opacity) + ink * opacity, 0.8)
    noise = np.random.default_rng(0).normal(0, 2, page.shape)
    return (page + noise).clip(0, 255).astype(np.uint8)


ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
RULED = np.where(ROWS % 40 < 3, 60.0, 235.0)
SQUARED = np.where((ROWS % 30 < 2) | (COLUMNS % 30 < 2), 150.0, 235.0)
SHADOW = 220 * (1 - 0.5 / (1 + np.exp((COLUMNS + 0.3 * ROWS - 280) / 20)))
TABLE = np.where(COLUMNS < 60 + 0.1 * ROWS, 50.0, 230.0)
DESK = np.where((ROWS > 20) & (COLUMNS > 30) & (COLUMNS < 385), 230.0, 90.0)
PAGES = {
    "grey paper": lambda digit: drawn(digit, 115, 20),
    "chalk": lambda digit: drawn(digit, 25, 220),
    "white pen on grey": lambda digit: drawn(digit, 120, 240),
    "pencil": lambda digit: drawn(digit, 205, 155),
    "thin pen": lambda digit: drawn(digit, 235, 30, thin=True),
    "small": lambda digit: drawn(digit, 235, 30, side=50),
    "ruled": lambda digit: drawn(digit, RULED, 30),
    "squared": lambda digit: drawn(digit, SQUARED, 30),
    "a shadow's edge in the digit": lambda digit: drawn(digit, SHADOW, 25),
    "table": lambda digit: drawn(digit, TABLE, 30),
    "a sheet on a desk": lambda digit: drawn(digit, DESK, 40),
}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_a_digit_is_read_from_any_paper(page: Page, digits: list[np.ndarray], classifier: Classifier) -> None:
    labels = (0, 2, 3, 5, 8)
    found = [find_ink(page(digits[label]), 28, 28).image for label in labels]
    assert all(image is not None for image in found)
    assert classifier(ndarray_batch(found)).argmax(1).tolist() == [*labels]


def ndarray_batch(images: list[np.ndarray | None]) -> torch.Tensor:
    return torch.from_numpy(np.stack([image for image in images if image is not None])[:, None])


def test_a_digit_that_is_cropped_to_its_ink_is_read(digits: list[np.ndarray], classifier: Classifier) -> None:
    found = []
    for label in (0, 2, 3, 4, 6, 8):
        page = drawn(digits[label], 235, 30)
        rows, columns = np.nonzero(page < 150)
        found.append(find_ink(page[rows.min() : rows.max(), columns.min() : columns.max()], 28, 28))
    assert {one.warning for one in found} == {TOUCHES}
    assert classifier(ndarray_batch([one.image for one in found])).argmax(1).tolist() == [0, 2, 3, 4, 6, 8]


def test_a_crop_of_a_page_without_ink_is_empty(digits: list[np.ndarray]) -> None:
    for paper in (235.0, RULED, SQUARED, SHADOW, TABLE, DESK):
        page = drawn(0 * digits[0], paper, 30)
        for top, left in ((30, 40), (120, 190), (100, 0)):
            assert find_ink(page[top : top + 130, left : left + 170], 28, 28).image is None


def test_ink_has_the_form_of_mnist() -> None:
    page = np.full((300, 200), 180, np.uint8)
    page[20:90, 30:60] = 40  # far from the middle
    image, warning = find_ink(page, 28, 28)
    assert image is not None and not warning
    rows, columns = np.nonzero(image > 127)
    assert rows.max() - rows.min() + 1 == 20
    assert abs(rows.mean() - 13.5) <= 0.5
    assert abs(columns.mean() - 13.5) <= 0.5
    assert image.max() == 255
    assert not image[0].any()


@pytest.mark.parametrize("paper", [235.0, 60.0, RULED, SHADOW, TABLE], ids=lambda _: "paper")
def test_a_page_without_ink_is_empty(paper: np.ndarray | float, digits: list[np.ndarray]) -> None:
    assert find_ink(drawn(0 * digits[0], paper, 30), 28, 28).image is None


@pytest.mark.parametrize("resampling", [Image.Resampling.BILINEAR, Image.Resampling.LANCZOS])
def test_an_enlarged_soft_digit_is_ink(
    resampling: Image.Resampling, digits: list[np.ndarray], classifier: Classifier
) -> None:
    large = [np.asarray(Image.fromarray(255 - digit).resize((280, 280), resampling)) for digit in digits]
    found = ndarray_batch([find_ink(picture, 28, 28).image for picture in large])
    assert classifier(found).argmax(1).tolist() == [*range(10)]


@pytest.mark.parametrize("width", [30, 60, 90])
def test_a_soft_shadow_inside_the_picture_is_no_ink(width: int, digits: list[np.ndarray]) -> None:
    distance = np.hypot(ROWS - 150, COLUMNS - 200)
    for shade in (np.exp(-((distance / width) ** 2) / 2), 1 / (1 + np.exp((distance - width) / 10))):
        assert find_ink(drawn(0 * digits[0], 210 * (1 - 0.5 * shade), 30), 28, 28).image is None


def test_marks_at_the_border_are_left_out_or_told(digits: list[np.ndarray], classifier: Classifier) -> None:
    page = drawn(digits[3], 235, 30)
    alone = find_ink(page, 28, 28)
    page[:, :40] = 20  # narrower than a digit's surroundings, and darker than its ink
    page[-60:, :120] = 20
    beside = find_ink(page, 28, 28)
    assert alone.image is not None and beside.image is not None
    together = np.stack([alone.image, beside.image])[:, None]
    assert classifier(torch.from_numpy(together)).argmax(1).tolist() == [3, 3]
    assert beside.warning == LEFT_OUT
    assert find_ink(drawn(digits[3], RULED, 30), 28, 28).warning == LEFT_OUT
    assert find_ink(drawn(digits[3], 235, 30)[:, 230:], 28, 28).warning == TOUCHES


def test_pictures_in_the_form_of_the_data_set_stay_as_they_are(
    digits: list[np.ndarray], classifier: Classifier, work: Path
) -> None:
    digit = Image.fromarray(digits[5])
    transparent = {colour: Image.new("RGBA", digit.size, colour) for colour in ("white", "black")}
    for picture in transparent.values():
        picture.putalpha(digit)
    inverted = Image.fromarray(255 - digits[5])
    for picture in (digit, inverted, *transparent.values()):
        picture.save(work / "digit.png")
        taken = take(work / "digit.png", classifier)
        assert taken.image is not None
        assert (taken.image[0] == digits[5]).all()


def test_a_turned_photograph_gets_the_same_answer(
    digits: list[np.ndarray], work: Path, invoke: Runner
) -> None:
    page = Image.fromarray(drawn(digits[6], 235, 30))
    page.save(work / "upright.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    page.transpose(Image.Transpose.ROTATE_90).save(work / "turned.jpg", exif=exif)
    ended = invoke("predict", "upright.jpg", "turned.jpg", "--network", "mnist-4k", "--json")
    assert [one["name"] for one in json.loads(ended.out)] == ["6", "6"]


def test_a_picture_unlike_the_own_data_of_a_network_is_warned_of(
    digits: list[np.ndarray], classifier: Classifier, work: Path
) -> None:
    own = replace(classifier, data="csv")
    Image.fromarray(drawn(digits[2], 235, 30)).save(work / "paper.png")
    Image.fromarray(digits[2]).save(work / "digit.png")
    assert take(work / "paper.png", own).warning.startswith("unlike the training images: its mean is 2")
    assert take(work / "digit.png", own).warning == ""


def test_a_folder_becomes_a_table(digits: list[np.ndarray], work: Path, invoke: Runner) -> None:
    (work / "photos" / "more").mkdir(parents=True)
    Image.fromarray(drawn(digits[2], 115, 20)).save(work / "photos" / "b.png")
    Image.fromarray(drawn(digits[4], RULED, 30)).save(work / "photos" / "more" / "c.png")
    Image.new("L", (90, 90), 200).save(work / "photos" / "a.png")
    (work / "photos" / "more" / "d.png").write_bytes(b"damaged")
    (work / "photos" / "notes.txt").write_text("no picture")
    (work / "photos" / "._b.png").write_text("of another system")
    ended = invoke("predict", "photos", "--network", "mnist-4k", "--csv", "out.csv")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == "Written: out.csv, 4 predictions\nNetwork: mnist-4k\n"
    rows = list(csv.DictReader((work / "out.csv").open()))
    assert [row["file"] for row in rows] == [f"photos/{name}.png" for name in ("a", "b", "more/c", "more/d")]
    assert [row["class"] for row in rows] == ["empty", "2", "4", "empty"]
    assert rows[0]["probability"] == ""
    assert float(rows[1]["probability"]) > 0.5
    assert [row["warning"] for row in rows[:3]] == ["", "", LEFT_OUT]
    assert rows[3]["warning"].startswith("cannot be read")
    (work / "bad").mkdir()
    (work / "bad" / "e.png").write_bytes(b"damaged")
    for nothing in ("bad", "bad/e.png"):
        ended = invoke("predict", nothing, "--network", "mnist-4k")
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert "bad/e.png cannot be read" in ended.err
    named = invoke("predict", "photos/b.png", "photos/more/d.png", "--network", "mnist-4k")
    assert (named.code, named.err.count("\n")) == (2, 1)
    again = invoke("predict", "photos", "--network", "mnist-4k", "--csv", "out.csv")
    assert again.code == 2
    assert "out.csv exists" in again.err
    alone = invoke("predict", "photos/a.png", "--network", "mnist-4k", "--csv", "new.csv")
    assert (alone.code, alone.err) == (2, "error: picture: photos/a.png shows nothing\n")
    assert not (work / "new.csv").exists()


def test_a_csv_of_pixels_is_taken_as_it_is(
    digits: list[np.ndarray], classifier: Classifier, work: Path, invoke: Runner
) -> None:
    names = [f"pixel{place}" for place in range(784)]
    pixels = np.stack([*digits, 0 * digits[0]]).reshape(11, 784)
    table = [",".join(names), *(",".join(map(str, row)) for row in pixels)]
    (work / "test.csv").write_text("\n".join(table) + "\n")
    ended = invoke("predict", "test.csv", "--network", "mnist-4k", "--csv", "out.csv")
    assert (ended.code, ended.err) == (0, "")
    rows = list(csv.DictReader((work / "out.csv").open()))
    assert [row["row"] for row in rows] == [str(number) for number in range(1, 12)]
    expected = classifier(ndarray_batch(list(digits)))
    assert [row["class"] for row in rows] == [*map(str, expected.argmax(1).tolist()), "empty"]
    probabilities = [float(row["probability"]) for row in rows[:10]]
    assert probabilities == pytest.approx(expected.amax(1).tolist(), abs=1e-5)
    labelled = [f"{label},{row}" for label, row in zip(["label", *range(10), 0], table, strict=True)]
    (work / "labelled.csv").write_text("\n".join(labelled) + "\n")
    right = sum(int(row["class"]) == label for label, row in enumerate(rows[:10]))
    ended = invoke("predict", "labelled.csv", "--network", "mnist-4k")
    assert ended.out.endswith(f"Right: {right} of 11 ({right / 11:.2%})\nNetwork: mnist-4k\n")
    assert ended.out.splitlines()[10] == "11  empty"
    (work / "one.csv").write_text(table[1])  # without names
    assert "\nclass 0\n" in f"\n{invoke('predict', 'one.csv', '--network', 'mnist-4k').out}"
    (work / "small.csv").write_text("\n".join(",".join("0" * 64) for _ in range(3)))
    ended = invoke("predict", "small.csv", "--network", "mnist-4k")
    assert (ended.code, "small.csv has images of 8x8x1 values" in ended.err) == (2, True)
