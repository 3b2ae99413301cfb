"""Bad input ends in one line that says what is wrong, with exit code 2 and nothing written.

The property test draws bad values for every option and argument of every command, by its kind. The table of
cases has bad content of files, and options that contradict each other.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import re
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import optuna
import pytest
import typer
from conftest import TINY_SPACE, Ended, Runner, run_module, run_python
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from nas_mnist.__main__ import COMMANDS
from nas_mnist.core.numbers import parse_number

pytestmark = pytest.mark.usefixtures("no_figures")

SMALL = ["--dataset", "mnist-5k", "--device", "cpu"]
SPACE = ["--space", "space.toml"]
CONV = {"kind": "conv", "channels": 4}
FILES = {  # that the command lines below may name
    "space.toml": TINY_SPACE,
    "other.json": json.dumps({"blocks": [CONV], "classes": 7}),
    "file": "",
    "folder/x": "",
}


def check_refused(ended: Ended, work: Path, before: Mapping[str, bytes], says: list[str]) -> None:
    """The contract of every command for bad input."""
    assert ended.code == 2, ended
    assert ended.out == ""
    assert re.fullmatch(r"error: [^\n]+\n", ended.err), ended.err
    assert "Traceback" not in ended.err
    assert [text for text in says if text not in ended.err] == [], ended.err
    assert contents(work) == before


def make_files(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def contents(folder: Path) -> dict[str, bytes]:
    """Every folder and every file with its bytes."""
    return {
        str(path.relative_to(folder)): b"" if path.is_symlink() or path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }


# ---------------------------------------------------------------- every option of every command

# The arguments in front of a bad option. If a command accepts the bad value, a later fault ends it before it
# trains: no candidate fits the budget, or the network does not fit the data.
BASES = {
    "search": [*SMALL, *SPACE, "--max-params", "1"],
    "reproduce": ["other.json", *SMALL],
    "describe": ["best"],
    "report": [],
    "export": ["best", "--to", "torch"],
    "predict": ["digit.png", "--network", "best"],
    "bench": SMALL,
    "bench record": ["--curves", "new.csv", *SMALL, *SPACE, "--max-params", "1"],
    "bench search": [],
    "bench train": ["other.json", *SMALL],
    "bench searches": ["--table", "new.csv", *SMALL, "--max-params", "1"],
}
OPTION_BASES = {  # the same for single options
    "search --storage": [*SMALL, *SPACE],
    "reproduce --study": ["best", *SMALL],
    "reproduce --storage": ["best", *SMALL],
    "report --data-dir": ["reference"],
    "export --output": ["mnist-500", "--to", "torch"],
    "export --dataset": ["mnist-500", "--to", "torch"],
    "export --data-dir": ["mnist-500", "--to", "torch"],
    "bench record --curves": [*SMALL, *SPACE],
}


class Option(NamedTuple):
    """An option or a positional argument of a command."""

    command: str
    name: str  # as it is typed, and the parameter's name for an argument
    kind: str
    low: int = 0  # the range of a whole number
    high: int = 0
    position: int | None = None  # of an argument

    def __str__(self) -> str:
        return f"{self.command} {self.name}"

    def line(self, value: str) -> list[str]:
        """The arguments of a command with this value."""
        base = OPTION_BASES.get(str(self), BASES[self.command])
        if self.position is not None:
            return [*base[: self.position], value, *base[self.position + 1 :]]
        if self.name == "--data-dir":
            base = [word for word in base if word not in SMALL[:2]]
        return [*base, f"{self.name}={value}"] if self.kind == "flag" else [*base, self.name, value]


def functions() -> dict[str, Any]:
    """The functions of all commands and subcommands, by the words that start them."""
    found = {}
    for command in COMMANDS:
        module = importlib.import_module(f"nas_mnist.{command}")
        if hasattr(module, "__path__"):
            module = importlib.import_module(f"nas_mnist.{command}.__main__")
        found[command] = getattr(module, command)
        subcommands = getattr(module, "SUBCOMMANDS", {})
        found |= {f"{command} {name}": function for name, function in subcommands.items()}
    return found


def options(command: str, function: Any) -> list[Option]:
    """The options and arguments of a command, as typer knows them."""
    app = typer.Typer(add_completion=False)
    app.command()(function)
    hints = inspect.signature(function, eval_str=True).parameters
    found = []
    for one in typer.main.get_command(app).params:
        if one.name not in hints:  # --help
            continue
        if one.param_type_name == "argument":
            found.append(Option(command, one.name, one.metavar, position=len(found)))
        elif one.is_flag:
            found += [Option(command, name, "flag") for name in [*one.opts, *one.secondary_opts]]
        else:
            kind = one.metavar if one.metavar in KINDS else one.opts[0]
            parser = hints[one.name].annotation.__metadata__[0].parser
            limits = inspect.getclosurevars(parser).nonlocals if parser else {}
            limits = limits if set(limits) == {"low", "high"} else {}  # those of `cli.whole`
            found.append(Option(command, one.opts[0], kind, **limits))
    return found


def is_number(text: str) -> bool:
    return 0 < (parse_number(text) or 0) <= 1e6


# Hypothesis draws words of our source, too, and some are good values: only texts with other characters count.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30).filter(
    lambda text: not re.fullmatch("[!-~]+", text)
) | st.sampled_from(
    ["", "nothing", "数/\u202e½", "x" * 5_000, "\x01\x7f", "a/../b", "-1", "--", "~no-such-user/x", "a\nb"]
)
NO_NUMBERS = TEXTS.filter(lambda text: not is_number(text)) | st.sampled_from(
    ["-0", "0", "-1", "1e9", "nan", "inf", "-0.0", "9" * 30, "9" * 5_000, "0x10", "1,00", "2 k", "."]
)
NO_WHOLE_NUMBERS = TEXTS.filter(lambda text: not re.fullmatch("-?[0-9]+", text)) | st.sampled_from(
    ["-0", "+3", "1_0", "٣", "½", " 3", "1.5", "1e3", "nan", "9" * 30, "9" * 5_000, "0x10", "1,00", "2kk"]
)
NO_NAMES = TEXTS.filter(lambda text: not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text))
NO_CONTENT = ("folder", "empty", "binary", "zeros", "unreadable")  # see `wrong_files`
WRONG_FILES = ("missing", "loop", "ünï-数字 \u202e", "n" * 300, *NO_CONTENT)
BAD_STORAGES = [
    *("", "my.db", "oracle9://x/y", "journal:", "journal:folder", "sqlite:///folder"),
    *("sqlite:///space.toml", "sqlite:///:memory:", "postgresql://", "x" * 5_000, "数/\u202e½", "\x01\x7f"),
]


def files(*suffixes: str) -> st.SearchStrategy[str]:
    """Names of files that are not what they should be (`make_wrong_files`), and texts that name none."""
    names = [f"{name}{suffix}" for name in WRONG_FILES for suffix in suffixes]
    return st.sampled_from(names) | TEXTS


# Bad values by the placeholder of an option in --help, else by its name.
KINDS = {
    "flag": TEXTS,
    "N": NO_WHOLE_NUMBERS,
    "FIRST": NO_WHOLE_NUMBERS,
    "BYTES": NO_WHOLE_NUMBERS,
    "N|auto": NO_WHOLE_NUMBERS | st.just("0"),
    "N|all": NO_WHOLE_NUMBERS | st.just("0"),
    "MINUTES": NO_NUMBERS,
    "PERCENT": NO_NUMBERS | st.just("100.1"),
    "FORMAT": TEXTS,
    "NAME|FILE": files(".toml"),
    "NAME|FILE.toml": files(".toml"),
    "FILE.csv": TEXTS.filter(lambda text: not text.endswith(".csv"))
    | st.sampled_from([f"{name}.csv" for name in NO_CONTENT]),
    "FILE": st.sampled_from(["", "x" * 5_000, "file", "folder", "file/new"]),
    "DIR": st.sampled_from(["", "x" * 5_000, "file", "folder", "missing", "~no-such-user/x"]),
    "PICTURE...": files(".png", ".csv"),
    "NETWORK": files(".safetensors", ".json"),
    "NETWORK...": files(".safetensors", ".json"),
    "NETWORK|FILE.json": files(".json"),
    "WHAT": files(".json"),
    "--study": NO_NAMES,
    "--storage": st.sampled_from(BAD_STORAGES),
    "--objective": TEXTS,
    "--effort": TEXTS,
    "SAMPLER": TEXTS | st.sampled_from(["nothing:Here", "json:loads2", "json:JSONDecoder", ":", "a:"]),
    "--device": TEXTS,
    "--engine": TEXTS,
    "--dataset": TEXTS
    | files(".npz").map("npz:{}".format)
    | files(".csv").map("csv:{}".format)
    | files("").flatmap(lambda name: st.sampled_from([f"idx:{name}", f"folder:{name}", f"npz:{name}"])),
}


FIELDS = {  # what a message may call the option
    "NETWORK|FILE.json": ("architecture:", "network:"),
    "NETWORK": ("architecture:", "weights:"),
    "NETWORK...": ("architecture:", "weights:", "network:"),
    "WHAT": ("network:", "report:"),
    "PICTURE...": ("picture:",),
}


def bad_values(option: Option) -> st.SearchStrategy[str]:
    """Values that an option refuses."""
    if str(option) == "report --data-dir":  # without the data set, a report only lacks images
        return st.just("")
    if option.high:
        return NO_WHOLE_NUMBERS | st.sampled_from(
            [str(option.low - 1), str(option.high + 1), f"{option.high}0"]
        )
    values = KINDS[option.kind]
    return values if option.name.startswith("-") else values.filter(lambda text: not text.startswith("-"))


OPTIONS = [one for command, function in functions().items() for one in options(command, function)]


@pytest.fixture
def wrong_files(work: Path) -> Path:
    """The working folder with files of every kind that are not what they should be."""
    make_files(work, FILES)
    Image.new("L", (28, 28), 255).save(work / "digit.png")
    for suffix in (".toml", ".csv", ".png", ".safetensors", ".json", ".npz", ""):
        if suffix:
            (work / f"folder{suffix}").mkdir()
        (work / f"empty{suffix}").touch()
        (work / f"binary{suffix}").write_bytes(bytes(range(256)) * 8)
        (work / f"zeros{suffix}").write_bytes(bytes(5_000))
        (work / f"loop{suffix}").symlink_to(f"loop{suffix}")
        (work / f"unreadable{suffix}").symlink_to("/proc/self/mem")
    return work


@pytest.mark.parametrize("option", OPTIONS, ids=str)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_option_refuses_bad_values(
    option: Option, wrong_files: Path, invoke: Runner, data: st.DataObject
) -> None:
    value = data.draw(bad_values(option))
    before = contents(wrong_files)
    ended = invoke(option.command, *option.line(value))
    check_refused(ended, wrong_files, before, [])
    assert any(word in ended.err for word in named_by(option, value)), ended.err


@pytest.mark.parametrize("suffix", [".csv", ".png"])
@pytest.mark.parametrize("stem", ["empty", "binary", "zeros", "loop", "unreadable", "file/x", "n" * 300])
def test_a_picture_that_cannot_be_read_is_refused(
    stem: str, suffix: str, wrong_files: Path, invoke: Runner
) -> None:
    before = contents(wrong_files)
    check_refused(invoke("predict", f"{stem}{suffix}"), wrong_files, before, ["picture: ", stem[:20]])


def named_by(option: Option, value: str) -> set[str]:
    """Texts of which an error message must have one: the option, its field, or the value."""
    start = " ".join(value.rpartition(":")[2].split())[:20]
    values = {start, repr(start)[1:-1]} - {""}
    return {option.name, f"{option.name.strip('-')}:", *FIELDS.get(option.kind, ()), *values}


@pytest.mark.parametrize("command", BASES)
def test_an_unknown_option_or_one_without_its_value_is_named(
    command: str, work: Path, invoke: Runner
) -> None:
    check_refused(invoke(command, *BASES[command], "--colour", "3"), work, {}, ["--colour"])
    valued = [one for one in OPTIONS if one.command == command and one.name[0] == "-" and one.kind != "flag"]
    for option in valued[-1:]:
        check_refused(invoke(command, *option.line("")[:-1]), work, {}, [option.name])


@pytest.mark.parametrize(
    "line",
    ["reproduce", "describe", "predict", "export --to torch", "bench train"],
)
def test_a_missing_argument_is_refused(line: str, work: Path, invoke: Runner) -> None:
    check_refused(invoke(line), work, {}, [])


# ---------------------------------------------------------------- bad content, contradicting options


class Case(NamedTuple):
    """A command line, parts of its error message, and the files it finds."""

    command: str
    arguments: list[object]
    says: list[str]
    files: Mapping[str, str] = MappingProxyType({})


STAGE = "[[stages]]\nblocks = 1\nchannels = 4\n"
UBYTES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


def search(arguments: list[object], *says: str, **files: str) -> Case:
    """A search; the keys of ``files`` are names of TOML files."""
    return Case("search", arguments, list(says), {f"{name}.toml": text for name, text in files.items()})


def space(text: str, *says: str) -> Case:
    return search([*SMALL, "--space", "my.toml"], *says, my=text)


def recipe(text: str, *says: str, more: Sequence[object] = ()) -> Case:
    return search([*SMALL, "--recipe", "my.toml", *more], *says, my=text)


def architecture(text: str, *says: str, command: str = "describe") -> Case:
    more = SMALL if command == "reproduce" else []
    return Case(command, ["my.json", *more], list(says), {"my.json": text})


COLOURS = json.dumps({"blocks": [CONV], "input_shape": [3, 32, 32]})
CASES = {
    "space: not TOML": space("stages: 3", "my.toml: not TOML"),
    "space: unknown key": space(STAGE + "colour = 3\n", "my.toml: stages[0].colour: unknown field"),
    "space: other images": space(
        "input_shape = [3, 32, 32]\n" + STAGE, "input_shape [3, 32, 32]", "[1, 28, 28]"
    ),
    "space: other classes": space("classes = 7\n" + STAGE, "classes 7", "10"),
    "recipe: unknown key": recipe("speed = 3\n", "my.toml: speed: unknown field (use epochs, batch"),
    "recipe: mistyped key": recipe("epoch = 3\n", "epoch: unknown field (did you mean 'epochs'? use"),
    "recipe: mistyped part": recipe(
        "[augmentation]\nrotat = 3\n",
        "augmentation.rotat: unknown field (did you mean 'rotate'? use rotate, ",
    ),
    "recipe: mistyped": search([*SMALL, "--recipe", "smal"], "recipe: 'smal'", "did you mean 'small'?"),
    "recipe: mistyped change": search(
        [*SMALL, "--recipe", "tiny:learning-rate=1"], "'learning-rate'", "did you mean 'learning_rate'?"
    ),
    "space: mistyped": search([*SMALL, "--space", "Defualt"], "'Defualt'", "did you mean 'default'?"),
    "space: mistyped key": space(STAGE + "kernal = 3\n", "stages[0].kernal", "did you mean 'kernel'?"),
    "effort: mistyped": search(["--effort", "through"], "--effort: 'through'", "did you mean 'thorough'?"),
    "dataset: mistyped": search(["--dataset", "fashion_mnist"], "did you mean 'fashion-mnist'?"),
    "dataset: a folder as npz": Case(
        "search", ["--dataset", "npz:data"], ["data holds no .npz file", "idx:data"], {"data/x": ""}
    ),
    "dataset: a file as idx": Case(
        "search", ["--dataset", "idx:data"], ["data is a file", "npz:FILE"], {"data": "x"}
    ),
    "dataset: mistyped kind": search(["--dataset", "nzp:own/digits.npz"], "did you mean 'npz'?"),
    "dataset: kind alone": search(["--dataset", "npz:"], "use npz:FILE or npz:FOLDER"),
    "start: mistyped": search([*SMALL, "--start", "zo"], "--start: 'zo'", "did you mean 'zoo'?"),
    "report: mistyped": Case("report", ["zooo"], ["'zooo'", "did you mean 'zoo'?"]),
    "answer: mistyped": Case("describe", ["smalest", "--study", "s"], ["did you mean 'smallest'?"]),
    "size: commas": search(["--max-ram", "20,00"], "--max-ram", "use a size such as 32KB"),
    "size: a count": search(["--max-flash", "8k"], "--max-flash", "use a size such as 32KB"),
    "network: mistyped": Case("describe", ["refrence"], ["'refrence'", "did you mean 'reference'?"]),
    "architecture: mistyped key": architecture(
        json.dumps({"blocks": [{"kind": "residual", "body": [CONV | {"kernl": 3}]}]}),
        *("blocks[0].body[0].kernl: unknown field (did you mean 'kernel'?", "use kernel, stride"),
    ),
    "recipe: batch above the data": recipe("batch_size = 3474\n", "batch_size 3474", "3,473 images"),
    "recipe: batches of one image": recipe("batch_size = 1\n", "batch_size 1", "use at least 2"),
    "reproduce: batches of one image": Case(
        "reproduce",
        ["reference", "--recipe", "tiny:batch_size=1", *SMALL],
        ["batch_size 1", "use at least 2"],
    ),
    "reproduce: batch above the data": Case(
        "reproduce",
        ["reference", "--recipe", "default:batch_size=4168,min_steps=1", *SMALL],
        ["4168", "4,167"],
    ),
    "recipe: batch above the part": recipe(
        "batch_size = 30\n", "batch_size 30", "20 images", more=["--search-images", 20]
    ),
    "unknown effort": search(["--effort", "lazy"], "--effort: 'lazy'", "quick, normal, thorough"),
    "effort: an old objective": search(
        ["--effort", "memory"], "--effort: 'memory'", "quick, normal, thorough"
    ),
    "a target above all": search(["--target", 100], "--target: 100"),
    "a start above the budget": search(
        [*SMALL, "--max-params", 5_000, "--start", "reference"], "--start: reference", "14,122 parameters"
    ),
    "more images than train": Case(
        "bench train", ["reference", "--images", 3_474, *SMALL], ["--images: 3,474 (use at most 3,473"]
    ),
    "architecture: not JSON": architecture("{", "my.json", "not JSON", command="reproduce"),
    "architecture: other images": architecture(COLOURS, "3 x 32 x 32", "1 x 28 x 28", command="reproduce"),
    "architecture: huge file": architecture(" " * 1_000_001, "my.json is larger than 1,000,000 bytes"),
    "result: not JSON": Case("report", ["mine"], ["is not JSON"], {"mine/result.json": "{"}),
    "result: a field less": Case(
        "report", ["mine"], ["lacks architecture"], {"mine/result.json": '{"name": "x"}'}
    ),
    "data: corrupt files": Case(
        "search",
        ["--data-dir", "data", "--device", "cpu"],
        ["train-images-idx3-ubyte", "truncated or corrupt"],
        {f"data/MNIST/raw/{name}": "x" for name in UBYTES},
    ),
    "more images than there are": search(
        [*SMALL, "--search-images", 3473], "--search-images: 3,473 (use all, or 10 to 3,472"
    ),
    "seeds of no finalists": search(
        ["--finalists", 1, "--finalist-seeds", 3], "--finalist-seeds: '3' counts"
    ),
    "short trainings as long as the others": search(
        ["--search-epochs", 5, "--epochs", 5], "--search-epochs: 5 (use up to 4"
    ),
    "data folder for data that lie elsewhere": search([*SMALL, "--data-dir", "."], "--data-dir", "'.'"),
    "study without 'best'": Case(
        "reproduce", ["reference", "--study", "mine"], ["--study", "'mine'", "with best"]
    ),
    "storage without a study": Case(
        "report", ["reference", "--storage", "sqlite:///a.db"], ["--storage", "with a study"]
    ),
    "the best in a report": Case("report", ["best"], ["--study"]),
    "studies is a file": Case(
        "search", [*SMALL, "--space", "s.toml"], ["studies is a file"], {"studies": "", "s.toml": STAGE}
    ),
    "reports is a file": Case("reproduce", ["reference", *SMALL], ["reports is a file"], {"reports": ""}),
    "best of no study": Case("export", ["best", "--to", "torch"], ["studies/nas_mnist.db", "does not exist"]),
    "export: no weights": Case(
        *("export", ["s.json", "--to", "torch"], ["train it with python -m nas_mnist.reproduce s.json"]),
        {"s.json": json.dumps({"blocks": [CONV]})},
    ),
    "export: a folder without a result": Case("export", [".", "--to", "torch"], ["holds no result.json"]),
    "unknown part of bench": Case("bench", ["serch"], ["'serch'", "record", "train"]),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_content_is_refused(name: str, work: Path, invoke: Runner) -> None:
    case = CASES[name]
    make_files(work, case.files)
    before = contents(work)
    check_refused(invoke(case.command, *case.arguments), work, before, case.says)


def test_commands_are_run_by_name_in_a_fresh_interpreter(work: Path) -> None:
    ended = run_python(["-m", "nas_mnist", "describe", "reference"], work)
    assert (ended.code, ended.err) == (0, "")
    assert "19,122" in ended.out
    check_refused(run_python(["-m", "nas_mnist", "serch"], work), work, {}, ["'serch'", "search, reproduce,"])
    cuda = run_module("search", *SMALL[:2], "--device", "cuda", cwd=work)
    check_refused(cuda, work, {}, ["here: cpu"])


# ---------------------------------------------------------------- studies and databases


def test_a_missing_study_is_refused_with_the_names_of_others(work: Path, invoke: Runner) -> None:
    optuna.create_study(study_name="mine", storage=f"sqlite:///{work}/s.db")
    ended = invoke("reproduce", "best", *SMALL, "--storage", "sqlite:///s.db", "--study", "yours")
    assert ended.code == 2
    assert "'yours'" in ended.err
    assert "use --study mine" in ended.err


@pytest.mark.parametrize("tables", ["", "CREATE TABLE mine (a);"])
def test_a_foreign_database_is_refused_unchanged(work: Path, invoke: Runner, tables: str) -> None:
    with contextlib.closing(sqlite3.connect(work / "mine.db")) as database:
        database.executescript(tables or "CREATE TABLE x (a); DROP TABLE x;")
    before = contents(work)
    for command in (["report"], *([["search", *SMALL]] if tables else [])):
        ended = invoke(*command, "--storage", "sqlite:///mine.db")  # an empty one is a place for a new study
        check_refused(ended, work, before, ["mine.db holds no studies"])


@pytest.mark.parametrize("attributes", [{}, {"identity": {"max_params": 1}}, {"identity": {}, "recipe": 3}])
def test_a_study_of_another_program_is_refused(
    work: Path, invoke: Runner, attributes: dict[str, Any]
) -> None:
    study = optuna.create_study(study_name="nas_mnist", storage=f"sqlite:///{work}/plain.db")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    for name, value in attributes.items():
        study.set_user_attr(name, value)
    for command in (["report"], ["reproduce", "best", *SMALL], ["search", *SMALL]):
        ended = invoke(*command, "--storage", "sqlite:///plain.db")
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert "was not made " in ended.err or "was made with" in ended.err
    assert len(study.trials) == 1
