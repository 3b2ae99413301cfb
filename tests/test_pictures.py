"""Pictures in folders and rows of CSV files, as people have them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_RECIPE, Runner
from PIL import Image

from nas_mnist.core.errors import InputError
from nas_mnist.data import cache, folder, table
from nas_mnist.data.dataset import load
from nas_mnist.data.pictures import SUFFIXES, read_picture
from nas_mnist.data.table import read_table
from nas_mnist.training.classifier import Classifier

RED, GREEN, GREY = (200, 30, 30), (20, 160, 40), (90, 90, 90)


def save(path: Path, colour: tuple[int, ...] = RED, size: tuple[int, int] = (10, 12), **how: object) -> Path:
    """A light picture with a spot of a colour in its upper left corner; ``size``: width, height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (230, 230, 230))
    image.paste(colour, (0, 0, size[0] // 2, size[1] // 2))
    image.save(path, **how)
    return path


def save_classes(parent: Path, count: int = 12, **how: object) -> Path:
    for name, colour in {"rose": RED, "leaf": GREEN}.items():
        for number in range(count):
            tone = tuple(max(0, value - number) for value in colour)
            save(parent / name / f"{number}.png", tone, **how)
    return parent


def test_a_folder_of_classes_holds_one_in_six_out(work: Path) -> None:
    save_classes(work / "own")
    (work / "own" / "rose" / "notes.txt").write_text("no picture")
    (work / "own" / "__MACOSX").mkdir()
    data = load("folder:own")
    assert (data.shape, data.class_names) == ((3, 12, 10), ("leaf", "rose"))
    assert (len(data.train), len(data.read_test())) == (20, 4)
    assert "20 colour images of 12x10 pixels to train, 2 classes; 4 more are held out" in data.source
    for part in (data.train, data.read_test()):
        redder = part.images[:, 0, 0, 0] > part.images[:, 1, 0, 0]
        assert (redder == (part.labels == 1)).all()
    assert load("folder:own").fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("parts", "counts", "note"),
    [
        (("train", "test"), (24, 8), ""),
        (("Training", "valid"), (24, 8), "its validation part is the test part"),
        (("train", "val", "test"), (32, 8), "its validation part is used for training"),
        (("train",), (20, 4), "4 more are held out"),
    ],
)
def test_folders_of_parts(work: Path, parts: tuple[str, ...], counts: tuple[int, int], note: str) -> None:
    for part in parts:
        save_classes(work / part, 12 if part.lower().startswith("train") else 4)
    data = load("folder:.")
    assert (len(data.train), len(data.read_test())) == counts
    assert note in data.source


def test_a_class_without_test_images_is_told(work: Path) -> None:
    for part in ("train", "test"):
        save_classes(work / part)
    assert "no test image" not in load("folder:.").source
    shutil.rmtree(work / "test" / "rose")
    assert load("folder:.").source.endswith("; no test image of rose")


def test_other_sizes_are_resized_and_pictures_without_colour_are_grey(work: Path) -> None:
    for number in range(9):
        save(work / "a" / f"{number}.bmp", GREY, (20 + number, 100))
        save(work / "b" / f"{number}.gif", (0, 0, 0), (70, 80))
    data = load("folder:.")
    assert data.shape == (1, folder.RESIZED, folder.RESIZED)
    assert "pictures resized to 32x32 pixels" in data.source
    assert "colour" not in data.source
    assert data.train.images[data.train.labels == 1, 0, 2, 2].max() < 5


def test_colour_pictures_in_the_test_part_of_grey_ones_become_grey(work: Path) -> None:
    for part in ("train", "test"):
        for name in ("a", "_other"):
            for number in range(6):
                tone = 20 * number + 10 * len(name)
                save(work / "own" / part / name / f"{number}.png", (tone, tone, tone))
    (work / "own" / "test" / "__MACOSX").mkdir()
    loud = save(work / "own" / "test" / "a" / "loud.png", RED)
    data = load("folder:own")
    assert (data.shape, data.class_names) == ((1, 12, 10), ("_other", "a"))
    test = data.read_test()
    assert test.images.shape == (13, 1, 12, 10)
    by_pillow = np.asarray(Image.open(loud).convert("L"))
    assert (test.images[-1, 0].numpy() == by_pillow).all()
    assert not (load("folder:own/train").read_test().images[0] == test.images[-1]).all()


def test_the_size_of_test_pictures_follows_that_of_the_training_pictures(work: Path) -> None:
    for part in ("train", "test"):
        save_classes(work / "own" / part)
    assert load("folder:own").read_test().images.shape[2:] == (12, 10)
    save(work / "own" / "train" / "rose" / "large.png", size=(40, 40))
    data = load("folder:own")
    assert data.shape[1:] == data.read_test().images.shape[2:] == (32, 32)


@pytest.mark.parametrize("suffix", sorted(SUFFIXES - {".pgm", ".pbm"}))
def test_every_format_of_picture(work: Path, suffix: str) -> None:
    made = read_picture(save(work / f"one{suffix}", RED), 12, 10)
    assert made[:, 2, 2].tolist() == pytest.approx(RED, abs=20)


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned to the left
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def transparent(path: Path) -> None:
    pixels = np.asarray(Image.open(path))
    alpha = np.where(pixels[..., :1] == 230, 0, 255).astype(np.uint8)
    Image.fromarray(np.concatenate([pixels, alpha], axis=2)).save(path)


def palette(path: Path) -> None:
    Image.open(path).quantize(8).save(path)


def deep(path: Path, factor: int = 257) -> None:
    grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * factor
    Image.fromarray(grey).save(path)


def bytes_of_16_bits(path: Path) -> None:
    deep(path, factor=1)


@pytest.mark.parametrize(
    ("change", "background"),
    [(turned, 230), (transparent, 255), (palette, 230), (deep, 230), (bytes_of_16_bits, 230)],
)
def test_pictures_are_upright_opaque_and_eight_bits_deep(
    work: Path, change: Callable[[Path], None], background: int
) -> None:
    change(path := save(work / "one.png", GREY, (10, 20)))
    made = read_picture(path, 20, 10)
    assert (made[:, :10, :5] == 90).all()
    assert (made[:, 10:] == background).all()
    assert (read_picture(path, 20, 10, channels=1) == made[:1]).all()


def test_a_folder_of_turned_pictures_keeps_their_upright_size(work: Path) -> None:
    for path in save_classes(work, 6, size=(10, 20)).rglob("*.png"):
        turned(path)
    assert load("folder:.").shape == (3, 20, 10)


BAD_FOLDERS = {
    "empty": (lambda own: own.mkdir(), "holds no folder of pictures (use DIR/train/CLASS/*.png"),
    "a file": (lambda own: own.write_bytes(b""), "is a file"),
    "loose pictures": (lambda own: save(own / "1.png"), "holds no folder of pictures"),
    "one class": (lambda own: [save(own / "a" / f"{n}.png") for n in range(9)], "one class, 'a' (use"),
    "one folder too many": (lambda own: save_classes(own / "all"), "did you mean 'folder:own/all'?"),
    "a class called train": (
        lambda own: [save(own / name / "1.png") for name in ("train", "car")],
        "own/train holds no folder of pictures ('train' is read as a part; use DIR/train/",
    ),
    "a class without pictures": (lambda own: (save_classes(own) / "empty").mkdir(), "holds no picture"),
    "only a test part": (lambda own: save_classes(own / "test"), "has no folder 'train'"),
    "another class in the test": (
        lambda own: (save_classes(own / "train"), save(own / "test" / "bee" / "1.png")),
        "test images of class 'bee', which no training image has (add training images of it, or leave",
    ),
    "no picture": (
        lambda own: (save_classes(own) / "rose" / "bad.png").write_bytes(b"\x89PNG"),
        "bad.png cannot be read (damaged, or not a picture)",
    ),
    "half a picture": (lambda own: cut(save_classes(own) / "rose" / "1.png"), "1.png cannot be read"),
    "few pictures": (lambda own: save_classes(own, 3), "has 6 images (use at least 8"),
}  # fmt: skip


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize("what", BAD_FOLDERS)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(work: Path, what: str) -> None:
    make, says = BAD_FOLDERS[what]
    make(work / "own")
    with pytest.raises(InputError) as refused:
        load("folder:own")
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_was_read_once_is_read_again_only_after_a_change(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(f"folder:{save_classes(work / 'own')}")
    with monkeypatch.context() as patched:
        patched.setattr(folder, "read_picture", lambda *_: pytest.fail("read again"))
        assert load("folder:own").fingerprint == first.fingerprint
    save(work / "own" / "rose" / "0.png", GREEN)
    assert load("folder:own").fingerprint != first.fingerprint
    entries = list((cache.cache_folder() / "read").glob("*-images.npy"))
    assert len([one for one in entries if one.stat().st_size > 0]) == len({one.name[:16] for one in entries})
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/no")
    assert len(load("folder:own").train) == len(first.train)


PIXELS = np.random.default_rng(0).integers(0, 256, (40, 64))
DIGITS = np.arange(40) % 3


def write_csv(
    path: Path, labels: object = DIGITS, header: str = "label,pixel{}", pixels: object = PIXELS
) -> Path:
    rows = [[label, *row] for label, row in zip(np.asarray(labels), np.asarray(pixels), strict=True)]
    first, _, name = header.partition(",")
    lines = [",".join([first, *(name.format(n) for n in range(len(rows[0]) - 1))])] if header else []
    path.write_text("\n".join([*lines, *(",".join(map(str, row)) for row in rows), ""]))
    return path


@pytest.mark.parametrize("header", ["label,pixel{}", "Class,{}x1", "y,anything {}", "", "0,0.{}"])
def test_a_csv_file_of_labels_and_pixels(work: Path, header: str) -> None:
    data = load(f"csv:{write_csv(work / 'train.csv', header=header)}")
    assert (data.shape, data.own_names) == ((1, 8, 8), ())
    assert (len(data.train), len(data.read_test())) == (34, 6)
    images, labels = read_table(work / "train.csv")
    assert (images.reshape(40, 64) == PIXELS).all()
    assert labels is not None
    assert (labels == DIGITS).all()


def test_a_csv_file_beside_its_test_file(work: Path) -> None:
    labels = np.array([0, 1, 10])[DIGITS]  # with a gap, as the letters of signs have one
    write_csv(work / "sign_train.csv", labels)
    write_csv(work / "sign_test.csv", labels[:12], pixels=PIXELS[:12])
    data = load("csv:sign_train.csv")
    assert (len(data.train), len(data.read_test()), data.class_names) == (40, 12, ("0", "1", "10"))
    assert "sign_test.csv is the test part" in data.source
    (work / "sign_test.csv").write_text(",".join(f"pixel{n}" for n in range(64)) + "\n" + "7," * 63 + "7\n")
    data = load("csv:sign_train.csv")
    assert "sign_test.csv has no labels and is not used; 6 more are held out" in data.source
    images, unknown = read_table(work / "sign_test.csv")
    assert images.shape == (1, 1, 8, 8)
    assert unknown is None


def test_csv_files_of_words_colours_and_parts_of_one(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_ROWS", 7)  # at once
    words = np.array(["ant", "bee", "cat"])[DIGITS]
    colours = np.tile(PIXELS, 3)
    data = load(f"csv:{write_csv(work / 'a.csv', words, pixels=colours)}")
    assert (data.shape, data.class_names) == ((3, 8, 8), ("ant", "bee", "cat"))
    assert (data.train.images[0, :, 0, 0].numpy() == colours[0, :3]).all()
    data = load(f"csv:{write_csv(work / 'b.csv', pixels=PIXELS / 255)}")
    assert (data.train.images[0].flatten().numpy() == PIXELS[0]).all()


BAD_CSV = {
    "empty": ("", "0 columns, no rows of pixels"),
    "text": ("hello\nworld\n", "1 columns, no rows of pixels"),
    "no label": (
        ",".join(["id", *(f"pixel{n}" for n in range(64))]) + "\n" + "1," * 64 + "1",
        "no column of labels",
    ),
    "a word": (
        "label," + ",".join(["p1"] * 64) + "\n" + "1," * 63 + "1,x\n",
        "line 2: pixel 'x' (use a number)",
    ),
    "a hole": ("label," + ",".join(["p1"] * 64) + "\n" + "1," * 63 + ",1\n", "line 2: an empty pixel"),
    "no square": (
        "label," + ",".join(["p1"] * 63) + "\n" + "1," * 63 + "1\n",
        "uint8 [1, 63] (use a square number",
    ),
    "an empty label": (
        "label," + ",".join(["p1"] * 64) + "\n" + "1," * 64 + "1\n" + ",1" * 64 + "\n",
        "line 3: an empty label",
    ),
    "a longer row": (
        "label," + ",".join(["p1"] * 64) + "\n" + ("1," * 64 + "1\n") * 2 + "1," * 99,
        "no CSV file",
    ),
    "bytes": ("\x00\x01\x02,\x00\n" * 3, "own.csv, line 2"),
}


@pytest.mark.parametrize("what", BAD_CSV)
def test_a_csv_file_that_cannot_be_used_is_refused_in_one_line(work: Path, what: str) -> None:
    text, says = BAD_CSV[what]
    (work / "own.csv").write_text(text)
    with pytest.raises(InputError) as refused:
        load("csv:own.csv")
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("one_process", "no_figures")
def test_own_colour_pictures_from_a_folder_to_a_prediction(work: Path, invoke: Runner) -> None:
    save_classes(work / "own", 30)
    (work / "recipe.toml").write_text(TINY_RECIPE.replace("64", "10") + "[augmentation]\nrotate = 20\n")
    asked = ["--dataset", "folder:own", "--device", "cpu", "--recipe", "recipe.toml", "--epochs", 8]
    asked += ["--max-params", 300, "--space", "tiny"]
    ended = invoke("search", *asked, "--trials", 1, "--workers", 1, "--finalists", 1)
    assert (ended.code, ended.err) == (0, "")
    assert "folder:own: 50 colour images of 12x10 pixels to train, 2 classes" in ended.out
    assert not [asked for asked in ("99.4%", "epochs <=", "fully connected") if asked in ended.out]
    (folder,) = (work / "reports" / "nas_mnist").glob("trial-*")
    assert json.loads((folder / "result.json").read_text())["data"]["classes"] == ["leaf", "rose"]
    assert Classifier.load(folder / "weights-seed-0.safetensors").class_names == ("leaf", "rose")
    page = (work / "reports" / "nas_mnist" / "report.html").read_text()
    assert "50 colour images" in page
    assert "Search on folder:own for the most accurate" in page
    for name in ("rose", "leaf"):
        ended = invoke("predict", f"own/{name}/3.png", "--network", "best")
        assert (ended.code, ended.out.splitlines()[0]) == (0, f"class {name}")
    for form in ("python", "c"):
        ended = invoke("export", "best", "--to", form)
        assert (ended.code, "of 10 images" in ended.out, "not measured" in ended.out) == (0, True, False)
    again = invoke("reproduce", folder, "--device", "cpu")
    assert (again.code, again.err) == (0, "")
