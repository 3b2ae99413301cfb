"""Bad input ends in one line that says what is wrong and what is allowed, with nothing written."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import optuna
import pytest
import typer
from conftest import STUDY_FACTS, TINY_SPACE, Ended, Runner, run_module, run_python
from PIL import Image

STAGE = "[[stages]]\nblocks = 1\nchannels = 4\n"
CONV = {"kind": "conv", "channels": 4}
SMALL = ["--dataset", "mnist-5k", "--device", "cpu"]


class Case(NamedTuple):
    """A command line, the files it finds, and parts of the line that it must say."""

    command: str
    arguments: list[object]
    says: list[str]
    files: Mapping[str, str] = MappingProxyType({})


def space(text: str, *says: str) -> Case:
    return Case("search", [*SMALL, "--space", "my.toml"], ["my.toml", *says], {"my.toml": text})


def architecture(text: str, *says: str, command: str = "describe", more: tuple[object, ...] = ()) -> Case:
    return Case(command, ["my.json", *more], list(says), {"my.json": text})


CASES = {
    # options
    "no trials": Case("search", ["--trials", 0], ["--trials", "0", "1"]),
    "negative trials": Case("search", ["--trials", -3], ["--trials", "-3", "1"]),
    "trials in words": Case("search", ["--trials", "many"], ["--trials", "many"]),
    "no epochs": Case("search", ["--epochs", 0], ["--epochs", "0", "1", "20"]),
    "too many epochs": Case("search", ["--epochs", 21], ["--epochs", "21", "20"]),
    "too many epochs to reproduce": Case(
        "reproduce", ["reference", "--epochs", 21], ["--epochs", "21", "20"]
    ),
    "no budget": Case("search", ["--max-params", 0], ["--max-params", "0", "1"]),
    "negative budget": Case("search", ["--max-params", -20_000], ["--max-params", "-20000", "1"]),
    "no seeds": Case("reproduce", ["reference", "--seeds", 0], ["--seeds", "0", "1"]),
    "more seeds of no folder": Case(
        "reproduce", ["reference", "--more", 2], ["--more: 'reference' is no folder of results"]
    ),
    "more seeds of a file": Case(
        "reproduce",
        ["my.json", "--more", 2],
        ["--more: 'my.json' is no folder of results"],
        {"my.json": json.dumps({"blocks": [CONV]})},
    ),
    "more seeds and how many": Case(
        "reproduce", ["reference", "--more", 2, "--seeds", 3], ["--seeds", "'3'", "without --more"]
    ),
    "more seeds and one seed": Case(
        "reproduce", ["reference", "--more", 2, "--seeds", 1], ["--seeds", "'1'", "without --more"]
    ),
    "more seeds by another recipe": Case(
        "reproduce", ["reference", "--more", 2, "--recipe", "tiny"], ["--recipe", "'tiny'", "without --more"]
    ),
    "part of the data with nothing to follow": Case(
        "search",
        ["--search-images", 300, "--no-retrain"],
        ["--search-images", "'300'", "without --no-retrain"],
    ),
    "more images than there are": Case(
        "search",
        [*SMALL, "--search-images", 3473],
        ["--search-images: 3,473 (use all, or 10 to 3,472: 3,473 train)"],
    ),
    "fewer images than classes": Case(
        "search",
        [*SMALL, "--search-images", 9],
        ["--search-images: 9 (use all, or 10 to 3,472: 3,473 train)"],
    ),
    "too few images for a batch": Case(
        "search",
        [*SMALL, "--search-images", 20, "--recipe", "my.toml"],
        ["batch_size 30", "20 images"],
        {"my.toml": "batch_size = 30\nlearning_rate = 0.1\n"},
    ),
    "negative seed": Case("search", ["--seed", -1], ["--seed", "-1", "0"]),
    "unknown option": Case("search", ["--budget", 3], ["--budget"]),
    "unknown option of describe": Case("describe", ["reference", "--xml"], ["--xml"]),
    "nothing to describe": Case("describe", [], ["NAME|best|FILE.json"]),
    "nothing to reproduce": Case("reproduce", [], ["NAME|best|FILE.json"]),
    "no time": Case("search", ["--timeout", 0], ["--timeout", "0", "minutes above 0"]),
    "negative time": Case("search", ["--timeout", -1], ["--timeout", "-1", "minutes above 0"]),
    "time that is no number": Case("search", ["--timeout", "nan"], ["--timeout", "nan", "minutes above 0"]),
    "endless time": Case("search", ["--timeout", "inf"], ["--timeout", "inf", "minutes above 0"]),
    "no workers": Case("search", ["--workers", 0], ["--workers", "0"]),
    "workers in words": Case("search", ["--workers", "all"], ["--workers", "'all'", "auto"]),
    "study outside": Case("search", ["--study", "../x"], ["--study", "'../x'", "letters, digits"]),
    "study without a name": Case("search", ["--study", ""], ["--study", "''", "letters, digits"]),
    "study outside to reproduce": Case("reproduce", ["best", "--study", "a/b"], ["--study", "'a/b'"]),
    "unknown data set": Case("search", ["--dataset", "cifar"], ["'cifar'", "use mnist, mnist-5k"]),
    "unknown data set to reproduce": Case(
        "reproduce", ["reference", "--dataset", "MNIST"], ["'MNIST'", "use mnist, mnist-5k"]
    ),
    "unknown device": Case("search", [*SMALL[:2], "--device", "tpu"], ["'tpu'", "auto, cpu, cuda, mps"]),
    "unknown recipe": Case("search", [*SMALL, "--recipe", "fast"], ["recipe", "'fast'", "default, published"]),
    "recipe with a field that no recipe has": Case(
        "search", [*SMALL, "--recipe", "tiny:colour=3"], ["tiny: 'colour' is not known (use epochs,"]
    ),
    "recipe with a value out of range": Case(
        "search", [*SMALL, "--recipe", "tiny:epochs=30"], ["tiny:epochs=30", "less than or equal to 20"]
    ),
    "recipe with half a change": Case(
        "search", [*SMALL, "--recipe", "tiny:epochs=3,momentum"], ["tiny: 'momentum' changes nothing"]
    ),
    "recipes of other lengths": Case(
        "bench recipes", ["reference", "tiny", "tiny:epochs=3", *SMALL], ["recipes: of 3 and 20 epochs"]
    ),
    "a recipe twice": Case(
        "bench recipes", ["reference", "tiny", "tiny:epochs=20", *SMALL], ["one comes twice"]
    ),
    "a part of the benchmark that there is not": Case(
        "bench", ["serch"], ["'serch' is not known (use record, search, recipes or options)"]
    ),
    "curves that are missing": Case(
        "bench search", ["--curves", "no.csv"], ["--curves: no.csv does not exist"]
    ),
    "network without recipes": Case("bench recipes", ["reference"], ["RECIPE"]),
    "recipe that is missing": Case("search", [*SMALL, "--recipe", "no.toml"], ["no.toml", "does not exist"]),
    "recipe with an unknown key": Case(
        "reproduce",
        ["reference", *SMALL, "--recipe", "r.toml"],
        ["r.toml", "speed: unknown field"],
        {"r.toml": "speed = 3\n"},
    ),
    "recipe with more images in a batch than there are": Case(
        "search",
        [*SMALL, "--recipe", "r.toml"],
        ["recipe: batch_size 3474 is more than the 3,473 images"],
        {"r.toml": "batch_size = 3474\n"},
    ),
    "no workers to reproduce": Case("reproduce", ["reference", "--workers", "x"], ["--workers", "'x'"]),
    "time that is negative zero": Case("search", ["--timeout", "-0.0"], ["--timeout", "minutes above 0"]),
    # options that contradict others
    "finalists that are not trained": Case(
        "search", ["--finalists", 3, "--no-retrain"], ["--finalists", "3", "without --no-retrain"]
    ),
    "short trainings without long ones": Case(
        "search", ["--search-epochs", 3, "--no-retrain"], ["--search-epochs", "3", "without --no-retrain"]
    ),
    "short trainings as long as the others": Case(
        "search", ["--search-epochs", 5, "--epochs", 5], ["--search-epochs: 5 (use up to 4", "have 5)"]
    ),
    "seeds of no finalists": Case(
        "search",
        ["--finalists", 1, "--finalist-seeds", 3],
        ["--finalist-seeds", "3", "with --finalists of 2 and more"],
    ),
    "seeds of finalists that there will not be": Case(
        "search", ["--no-retrain", "--finalist-seeds", 3], ["--finalist-seeds", "without --no-retrain"]
    ),
    "a folder for data that lie elsewhere": Case(
        "search", [*SMALL, "--data-dir", "data"], ["--data-dir", "'data'"], {"data/x": ""}
    ),
    "a folder for data that lie elsewhere to reproduce": Case(
        "reproduce", ["reference", *SMALL, "--data-dir", "data"], ["--data-dir", "'data'"], {"data/x": ""}
    ),
    "a study to look up nothing in": Case(
        "reproduce", ["reference", "--study", "mine"], ["--study", "'mine'", "with 'best'"]
    ),
    "a storage to look up nothing in": Case(
        "export",
        ["mnist-19k", "--to", "torch", "--storage", "sqlite:///a.db"],
        ["--storage", "'sqlite:///a.db'", "with 'best'"],
    ),
    "a study to look up no network in": Case(
        "predict", ["digit.png", "--study", "mine"], ["--study", "'mine'", "with 'best'"]
    ),
    "a storage to report nothing of": Case(
        "report",
        ["reference", "--storage", "sqlite:///a.db"],
        ["--storage", "'sqlite:///a.db'", "with a study"],
    ),
    # data
    "data folder without files": Case(
        "search", ["--data-dir", "data"], ["--data-dir", "train-images-idx3-ubyte is missing"], {"data/x": ""}
    ),
    "data folder that is missing": Case(
        "reproduce", ["reference", "--data-dir", "nowhere"], ["nowhere", "train-images-idx3-ubyte is missing"]
    ),
    "data files that are corrupt": Case(
        "search",
        ["--data-dir", "data", "--device", "cpu"],
        ["train-images-idx3-ubyte", "truncated or corrupt"],
        {
            f"data/MNIST/raw/{part}-{kind}-ubyte": "x"
            for part in ("train", "t10k")
            for kind in ("images-idx3", "labels-idx1")
        },
    ),
    # space files
    "space that is missing": Case("search", [*SMALL, "--space", "no.toml"], ["no.toml", "does not exist"]),
    "space that is a folder": Case(
        "search", [*SMALL, "--space", "folder"], ["folder", "is a folder"], {"folder/x": ""}
    ),
    "space without a name": Case("search", [*SMALL, "--space", ""], ["''"]),
    "space that is not TOML": space("stages: 3", "not TOML", "line 1"),
    "space with a wrong type": space(STAGE + 'kernel = "3"\n', "stages[0].kernel", "'3'", "1, 3, 5 or 7"),
    "space with an unknown key": space(STAGE + "colour = 3\n", "stages[0].colour: unknown field"),
    "space with an empty range": space(
        "[[stages]]\nblocks = 1\nchannels = { min = 9, max = 8 }\n", "stages[0].channels", "empty"
    ),
    "space with an empty list": space(STAGE + "padding = []\n", "stages[0].padding", "empty"),
    "space without stages": space("classes = 10\n", "stages: missing field"),
    "space for other images": Case(
        "search",
        [*SMALL, "--space", "my.toml"],
        ["input_shape [3, 32, 32]", "[1, 28, 28]"],
        {"my.toml": "input_shape = [3, 32, 32]\n" + STAGE},
    ),
    "space for other classes": Case(
        "search", [*SMALL, "--space", "my.toml"], ["classes 7", "10"], {"my.toml": "classes = 7\n" + STAGE}
    ),
    # architecture files
    "unknown architecture": Case("describe", ["alexnet"], ["'alexnet'", "reference", ".json"]),
    "unknown architecture to reproduce": Case("reproduce", ["alexnet"], ["'alexnet'", "reference"]),
    "file that is missing": Case("describe", ["no.json"], ["no.json", "does not exist"]),
    "file that is a folder": Case(
        "describe", ["f.json"], ["f.json", "holds no result.json"], {"f.json/x": ""}
    ),
    "not JSON": architecture("blocks = 3", "my.json", "not JSON"),
    "not JSON to reproduce": architecture("{", "my.json", "not JSON", command="reproduce"),
    "JSON of something else": architecture("[1, 2]", "my.json", "list", "blocks"),
    "unknown field": architecture(
        json.dumps({"blocks": [CONV | {"width": 3}]}), "my.json", "blocks[0].width: unknown field"
    ),
    "even kernel": architecture(
        json.dumps({"blocks": [CONV | {"kernel": 4}]}), "my.json", "blocks[0].kernel: 4", "1, 3, 5 or 7"
    ),
    "shape below one pixel": architecture(
        json.dumps({"blocks": [{"kind": "pool", "kernel": 28}, CONV | {"padding": "valid"}]}),
        "my.json",
        "blocks[1].kernel: 3 does not fit a map of 1x1",
    ),
    "does not fit 28x28": architecture(
        json.dumps({"blocks": [CONV], "input_shape": [3, 32, 32]}),
        "3 x 32 x 32",
        "1 x 28 x 28",
        command="reproduce",
        more=tuple(SMALL),
    ),
    "other classes": architecture(
        json.dumps({"blocks": [CONV], "classes": 7}),
        "classes 7",
        "10",
        command="reproduce",
        more=tuple(SMALL),
    ),
    # where results go
    "studies is a file": Case(
        "search",
        [*SMALL, "--space", "s.toml"],
        ["storage", "studies is a file"],
        {"studies": "", "s.toml": STAGE},
    ),
    "reports is a file": Case("search", SMALL, ["reports is a file"], {"reports": ""}),
    "reports is a file to reproduce": Case(
        "reproduce", ["reference", *SMALL], ["reports is a file"], {"reports": ""}
    ),
    "storage that is no URL": Case(
        "search",
        [*SMALL, "--space", "s.toml", "--storage", "my.db"],
        ["storage", "'my.db'"],
        {"s.toml": STAGE},
    ),
    "storage of an unknown kind": Case(
        "search",
        [*SMALL, "--space", "s.toml", "--storage", "oracle9://x/y"],
        ["storage", "oracle9://x/y"],
        {"s.toml": STAGE},
    ),
    "storage that is a folder": Case(
        "search",
        [*SMALL, "--space", "s.toml", "--storage", "sqlite:///db"],
        ["storage", "db is a folder"],
        {"s.toml": STAGE, "db/x": ""},
    ),
    "storage that is no database": Case(
        "search",
        [*SMALL, "--space", "s.toml", "--storage", "sqlite:///s.toml"],
        ["storage", "s.toml"],
        {"s.toml": STAGE * 3},
    ),
    "storage in memory": Case(
        "search",
        [*SMALL, "--space", "s.toml", "--storage", "sqlite:///:memory:"],
        ["storage", ":memory:"],
        {"s.toml": STAGE},
    ),
    "best of no study": Case("reproduce", ["best", *SMALL], ["studies/nas_mnist.db", "does not exist"]),
    "best of a file that is no database": Case(
        "reproduce",
        ["best", *SMALL, "--storage", "sqlite:///x.db"],
        ["storage", "x.db"],
        {"x.db": "hello " * 99},
    ),
    "JSON onto a file": Case(
        "reproduce",
        ["reference", *SMALL, "--json", "out.json"],
        ["--json", "out.json exists"],
        {"out.json": "{}"},
    ),
    "JSON into a file": Case(
        "reproduce", ["reference", *SMALL, "--json", "file/out.json"], ["--json", "is a file"], {"file": ""}
    ),
}
# Every number of every command, with everything that is none of its numbers.
NUMBERS = {
    "search": [
        "--trials",
        "--max-params",
        "--max-macs",
        "--max-memory",
        "--epochs",
        "--search-epochs",
        "--search-images",
        "--seed",
        "--finalists",
        "--finalist-seeds",
    ],
    "reproduce": ["--seeds", "--seed", "--epochs", "--trial", "--more"],
    "bench": ["--images", "--repeats", "--seeds"],
    "bench record": ["--candidates", "--max-params", "--epochs", "--images", "--seed"],
    "bench search": ["--repeats", "--seed"],
    "bench recipes": ["--seeds", "--seed"],
}
NO_NUMBERS = [
    "-0",
    "+3",
    "1_0",
    "٣",
    "",
    "x",
    "1.5",
    "-1",
    "1e3",
    "nan",
    "inf",
    "9" * 30,
    "9" * 5000,
    "½",
    "0x10",
    "1,000",
    "--",
    "null",
]

# Every option that takes a text, behind a command line that lacks nothing else; and texts that are none.
TEXTS: dict[str, tuple[list[str], list[str]]] = {
    "search": (
        [],
        ["--objective", "--study", "--storage", "--space", "--recipe", "--dataset", "--data-dir", "--device",
         "--workers", "--timeout", "--json"],
    ),
    "reproduce": (
        ["best"],
        ["--study", "--storage", "--recipe", "--dataset", "--data-dir", "--device", "--workers", "--json"],
    ),
    "describe": (["best"], ["--study", "--storage"]),
    "report": ([], ["--study", "--storage", "--data-dir"]),
    "export": (["best"], ["--to", "--output", "--study", "--storage"]),
    "predict": (["digit.png"], ["--network", "--study", "--storage"]),
    "bench": ([], ["--dataset", "--data-dir", "--device", "--json"]),
    "bench record": (
        ["--curves", "c.csv"],
        ["--curves", "--space", "--recipe", "--dataset", "--data-dir", "--device", "--workers"],
    ),
    "bench search": ([], ["--curves", "--target", "--json"]),
    "bench recipes": (
        ["reference", "seed"],
        ["--table", "--dataset", "--data-dir", "--device", "--workers"],
    ),
}  # fmt: skip
NEW_FILES = ("--json", "--output")  # a name of any letters will do
NO_TEXTS = {"nothing": "", "unicode": "数/\u202e½", "long": "x" * 5_000, "binary": "\x01\x7f"}

# Every option and argument that names a file, and what may lie there instead.
FILES: dict[str, list[object]] = {
    "search --space": ["search", *SMALL, "--space"],
    "bench search --curves": ["bench search", "--curves"],
    "bench recipes --table": ["bench recipes", "reference", "seed", *SMALL, "--table"],
    "bench recipes RECIPE": ["bench recipes", "reference", *SMALL],
    "bench recipes FILE.json": ["bench recipes"],
    "bench record --space": ["bench record", "--curves", "c.csv", "--dataset", "mnist-5k", "--space"],
    "search --recipe": ["search", *SMALL, "--recipe"],
    "reproduce --recipe": ["reproduce", "reference", *SMALL, "--recipe"],
    "reproduce FILE.json": ["reproduce"],
    "describe FILE.json": ["describe"],
    "report FILE.json": ["report"],
    "export FILE": ["export", "--to", "torch"],
    "predict PICTURE": ["predict"],
    "predict --network": ["predict", "digit.png", "--network"],
    "search --dataset npz": ["search", "--device", "cpu", "--dataset", "npz:"],
    "search --dataset idx": ["search", "--device", "cpu", "--dataset", "idx:"],
}
SUFFIXES = {
    "toml": ("--space", "--recipe", "RECIPE"),
    "json": (".json",),
    "csv": ("--curves", "--table"),
    "png": ("PICTURE",),
    "npz": ("npz",),
    "": ("idx",),
}
WRONG_FILES = ["missing", "folder", "empty", "binary", "zeros", "loop", "long", "unicode", "unreadable"]


def wrong_file(kind: str, suffix: str, folder: Path) -> str:
    """The name of a file that is not what it should be."""
    name = {"long": "n" * 300, "unicode": "ünï-数字 \u202e"}.get(kind, kind) + f".{suffix}"
    match kind:
        case "folder":
            (folder / name).mkdir()
        case "empty":
            (folder / name).touch()
        case "binary":
            (folder / name).write_bytes(bytes(range(256)) * 8)
        case "zeros":
            (folder / name).write_bytes(bytes(5_000))
        case "loop":
            (folder / name).symlink_to(name)
        case "unreadable":  # to everybody, root included
            (folder / name).symlink_to("/proc/self/mem")
    return name


FRESH = {  # as a person would meet it, in a fresh interpreter
    "negative trials": CASES["negative trials"],
    "even kernel": CASES["even kernel"],
    "unknown architecture to reproduce": CASES["unknown architecture to reproduce"],
    "device that is not there": Case(
        "search", ["--dataset", "mnist-5k", "--device", "cuda"], ["'cuda'", "here: cpu"]
    ),
    "space with an unknown key": CASES["space with an unknown key"],
}


def furnish(folder: Path, files: Mapping[str, str]) -> dict[str, bytes]:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Every folder and every file with its bytes."""
    return {
        str(path.relative_to(folder)): b"" if path.is_symlink() or path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }


def check(case: Case, work: Path, call: Callable[..., Ended]) -> None:
    before = furnish(work, case.files)
    ended = call(case.command, *case.arguments)
    assert ended.code == 2, ended
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1, ended.err
    assert "Traceback" not in ended.err
    assert [part for part in case.says if part not in ended.err] == [], ended.err
    assert ended.out == ""
    assert contents(work) == before


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_in_one_line_with_nothing_written(name: str, work: Path, invoke: Runner) -> None:
    check(CASES[name], work, invoke)


@pytest.mark.parametrize("text", NO_NUMBERS, ids=[text[:12] or "nothing" for text in NO_NUMBERS])
@pytest.mark.parametrize(
    "option", [(command, one) for command in NUMBERS for one in NUMBERS[command]], ids=" ".join
)
def test_what_is_no_number_is_refused(option: tuple[str, str], text: str, work: Path, invoke: Runner) -> None:
    command, name = option
    before = {"reproduce": ["reference", *SMALL], "bench record": ["--curves", "c.csv"], "bench search": []}
    before["bench recipes"] = ["reference", "seed", *SMALL]
    check(Case(command, [*before.get(command, SMALL), name, text], [name, text[:40]]), work, invoke)


@pytest.mark.parametrize(
    ("command", "name", "kind"),
    [
        (command, name, kind)
        for command, (_, names) in TEXTS.items()
        for name in names
        for kind in NO_TEXTS
        if name not in NEW_FILES or kind in ("nothing", "long")
    ],
)
def test_what_is_no_text_for_an_option_is_refused(
    command: str, name: str, kind: str, work: Path, invoke: Runner
) -> None:
    Image.new("L", (28, 28), 255).save(work / "digit.png")
    check(Case(command, [*TEXTS[command][0], name, NO_TEXTS[kind]], []), work, invoke)


def options(command: str) -> list[Any]:
    name, *words = command.split()
    module = importlib.import_module(
        f"nas_mnist.{name}.__main__" if name in ("bench", "report", "search") else f"nas_mnist.{name}"
    )
    app = typer.Typer()
    app.command()(module.SUBCOMMANDS[words[0]] if words else getattr(module, name))
    return [option for option in typer.main.get_command(app).params if option.param_type_name == "option"]


COMMANDS = [
    "search",
    "reproduce",
    "describe",
    "report",
    "export",
    "predict",
    "bench",
    "bench record",
    "bench search",
    "bench recipes",
]
FLAGS = [
    (command, name)
    for command in COMMANDS
    for option in options(command)
    if option.is_flag
    for name in [*option.opts, *option.secondary_opts]
]


@pytest.mark.parametrize("flag", FLAGS, ids=" ".join)
def test_a_flag_takes_no_value(flag: tuple[str, str], work: Path, invoke: Runner) -> None:
    check(Case(flag[0], [f"{flag[1]}=3"], [flag[1]]), work, invoke)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_its_bad_values_here(command: str) -> None:
    here = {*NUMBERS.get(command, []), *TEXTS.get(command, ([], []))[1]}
    here |= {name for owner, name in FLAGS if owner == command}
    there = {name for option in options(command) for name in [*option.opts, *option.secondary_opts]}
    assert there == here | ({"--help"} & there)


@pytest.mark.parametrize("kind", WRONG_FILES)
@pytest.mark.parametrize("where", FILES)
def test_a_wrong_file_is_refused(where: str, kind: str, work: Path, invoke: Runner) -> None:
    suffix = next((one for end, one in SUFFIXES.items() if where.endswith(end)), "safetensors")
    name = wrong_file(kind, suffix, work)
    if where == "predict --network":
        Image.new("L", (28, 28), 255).save(work / "digit.png")
    command, *arguments = FILES[where]
    glued = str(arguments[-1] if arguments else "").endswith(":")
    arguments = [*arguments[:-1], f"{arguments[-1]}{name}"] if glued else [*arguments, name]
    check(Case(str(command), arguments, []), work, invoke)


@pytest.mark.parametrize("name", FRESH)
def test_bad_input_is_refused_in_a_fresh_interpreter_too(name: str, work: Path) -> None:
    check(FRESH[name], work, lambda command, *arguments: run_module(command, *arguments, cwd=work))


def test_every_command_has_a_case_in_a_fresh_interpreter() -> None:
    assert {case.command for case in FRESH.values()} == {"search", "reproduce", "describe"}


def test_a_command_is_run_by_its_name_alone_and_no_other(work: Path) -> None:
    ended = run_python(["-m", "nas_mnist", "describe", "reference"], work)
    assert (ended.code, ended.err) == (0, "")
    assert "19,122" in ended.out
    ended = run_python(["-m", "nas_mnist", "serch"], work)
    assert (ended.code, ended.out) == (2, "")
    assert "command: 'serch' is not known (use search, reproduce," in ended.err


def test_best_of_a_study_that_is_not_there_names_those_that_are(work: Path, invoke: Runner) -> None:
    import optuna

    optuna.create_study(study_name="mine", storage=f"sqlite:///{work}/s.db")
    ended = invoke("reproduce", "best", *SMALL, "--storage", "sqlite:///s.db", "--study", "yours")
    assert ended.code == 2
    assert "'yours'" in ended.err
    assert "use --study mine" in ended.err


def test_best_of_a_study_without_a_trained_candidate_is_no_result(work: Path, invoke: Runner) -> None:
    import optuna

    study = optuna.create_study(study_name="mine", storage=f"sqlite:///{work}/s.db")
    for name, value in STUDY_FACTS.items():
        study.set_user_attr(name, value)
    ended = invoke("reproduce", "best", *SMALL, "--storage", "sqlite:///s.db", "--study", "mine")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == "error: study 'mine' has no candidate that was trained to the last epoch\n"


def test_a_file_that_is_not_text_is_named(work: Path, invoke: Runner) -> None:
    (work / "my.json").write_bytes(b"\xff\xfe\x00\x01")
    (work / "my.toml").write_bytes(b"\xff\xfe\x00\x01")
    for ended in (invoke("describe", "my.json"), invoke("search", *SMALL, "--space", "my.toml")):
        assert ended.code == 2
        assert "is not a text file (use UTF-8)" in ended.err


def test_a_huge_file_is_not_read(work: Path, invoke: Runner) -> None:
    (work / "my.json").write_bytes(b" " * 1_000_001)
    ended = invoke("describe", "my.json")
    assert ended.code == 2
    assert "my.json is larger than 1,000,000 bytes" in ended.err


def test_a_good_search_differs_from_these_in_nothing_else(work: Path, invoke: Runner) -> None:
    """The same arguments as the cases, without their fault, are accepted up to the budget."""
    (work / "s.toml").write_text(TINY_SPACE)
    ended = invoke("search", *SMALL, "--space", "s.toml", "--max-params", 1)
    assert (ended.code, ended.out) == (1, "")
    assert "no candidate of this space fits 1 parameters" in ended.err


def test_a_pipe_that_never_ends_is_refused_at_once(work: Path, invoke: Runner) -> None:
    for name in ("a.json", "b.toml", "c.png"):
        os.mkfifo(work / name)
    for command in (["describe", "a.json"], ["search", *SMALL, "--space", "b.toml"], ["predict", "c.png"]):
        ended = invoke(*command)
        assert ended.code == 2
        assert "no regular file" in ended.err
        assert ended.err.count("\n") == 1


@pytest.mark.parametrize("tables", ["", "CREATE TABLE mine (a);"])
def test_somebody_elses_database_is_not_touched(work: Path, invoke: Runner, tables: str) -> None:
    with contextlib.closing(sqlite3.connect(work / "mine.db")) as database:
        database.executescript(tables or "CREATE TABLE x (a); DROP TABLE x;")
    before = (work / "mine.db").read_bytes()
    for command in ("report", "reproduce best", *(["search"] if tables else [])):
        ended = invoke(
            *command.split(), *(SMALL if command != "report" else []), "--storage", "sqlite:///mine.db"
        )
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert "mine.db holds no studies" in ended.err
        assert (work / "mine.db").read_bytes() == before
        assert {path.name for path in work.iterdir()} == {"mine.db"}


@pytest.mark.parametrize(
    "attributes", [{}, {"identity": "x"}, {"identity": {"max_params": 1}}, {"identity": {}, "recipe": 3}]
)
def test_a_study_of_another_program_is_refused_in_one_line(
    work: Path, invoke: Runner, attributes: dict[str, Any]
) -> None:
    study = optuna.create_study(study_name="nas_mnist", storage=f"sqlite:///{work}/plain.db")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    for name, value in attributes.items():
        study.set_user_attr(name, value)
    before = len(study.trials)
    for command in (
        ["report"],
        ["reproduce", "best", *SMALL],
        ["export", "best", "--to", "onnx"],
        ["search", *SMALL],
    ):
        ended = invoke(*command, "--storage", "sqlite:///plain.db")
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert "was not made " in ended.err or "was made with" in ended.err
    assert len(study.trials) == before


def test_a_number_of_thousands_of_digits_in_a_file_is_refused(work: Path, invoke: Runner) -> None:
    (work / "s.toml").write_text("classes = " + "9" * 5_000)
    ended = invoke("search", *SMALL, "--space", "s.toml")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "not TOML" in ended.err
