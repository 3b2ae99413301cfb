"""Bad input ends in one line that says what is wrong, with exit code 2 and nothing written.

The property test draws bad values for every option and argument of every command, by its kind. The table of
cases has bad content of files, and options that contradict each other.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import re
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import pytest
import typer
from conftest import STUDY_FACTS, TINY_SPACE, Ended, Runner, run_module, run_python
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from nas_mnist.__main__ import COMMANDS

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

# The arguments in front of a bad option. Only the option's value is wrong, except for a later fault that ends
# the command before it trains, if it accepts that value: no candidate fits, the network does not fit the data.
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
    "bench recipes": ["other.json", "published", *SMALL],
}
# The same for single options and for positional arguments.
OPTION_BASES = {
    "search --storage": [*SMALL, *SPACE],
    "search --data-dir": [*SPACE, "--max-params", "1"],
    "reproduce network": SMALL,
    "reproduce --study": ["best", *SMALL],
    "reproduce --storage": ["best", *SMALL],
    "reproduce --data-dir": ["other.json"],
    "describe network": [],
    "report --data-dir": ["reference"],
    "export network": ["--to", "torch"],
    "export --output": ["mnist-500", "--to", "torch"],
    "predict picture": [],
    "predict --network": ["digit.png"],
    "bench --data-dir": [],
    "bench record --data-dir": ["--curves", "new.csv", *SPACE, "--max-params", "1"],
    "bench recipes network": [],
    "bench recipes names": ["other.json"],
    "bench recipes --data-dir": ["other.json", "published"],
}


class Option(NamedTuple):
    """An option or a positional argument of a command."""

    command: str
    name: str  # as it is typed, and the parameter's name for an argument
    kind: str
    low: int = 0  # the range of a whole number
    high: int = 0

    def __str__(self) -> str:
        return f"{self.command} {self.name}"

    @property
    def base(self) -> list[str]:
        """The arguments in front of it."""
        return OPTION_BASES.get(str(self), BASES[self.command])


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
            found.append(Option(command, one.name, one.metavar))
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
    with contextlib.suppress(ValueError):
        return 0 < float(text) <= 1e6
    return False


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30) | st.sampled_from(
    ["", "数/\u202e½", "x" * 5_000, "\x01\x7f", "a/../b", "-1", "--", "~nobody/x", "a\nb"]
)
NO_NUMBERS = TEXTS.filter(lambda text: not is_number(text)) | st.sampled_from(
    ["-0", "0", "-1", "1e9", "nan", "inf", "-0.0", "9" * 30, "9" * 5_000, "0x10", "1,000"]
)
NO_WHOLE_NUMBERS = TEXTS.filter(lambda text: not re.fullmatch("-?[0-9]+", text)) | st.sampled_from(
    ["-0", "+3", "1_0", "٣", "½", " 3", "1.5", "1e3", "nan", "9" * 30, "9" * 5_000, "0x10", "1,000"]
)
NO_NAMES = TEXTS.filter(lambda text: not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text))
WRONG_FILES = (
    "missing",
    "folder",
    "empty",
    "binary",
    "zeros",
    "loop",
    "ünï-数字 \u202e",
    "unreadable",
    "n" * 300,
)
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
    "BYTES": NO_WHOLE_NUMBERS,
    "N|auto": NO_WHOLE_NUMBERS | st.just("0"),
    "N|all": NO_WHOLE_NUMBERS | st.just("0"),
    "MINUTES": NO_NUMBERS,
    "PERCENT": NO_NUMBERS | st.just("100.1"),
    "FORMAT": TEXTS,
    "NAME|FILE": files(".toml"),
    "RECIPE...": files(".toml"),
    "FILE.csv": files(".csv"),
    "FILE": st.sampled_from(["", "x" * 5_000, "file", "folder", "file/new"]),
    "DIR": st.sampled_from(["", "x" * 5_000, "file", "folder", "missing", "~nobody/x"]),
    "PICTURE": files(".png"),
    "NETWORK": files(".safetensors", ".json"),
    "[WHAT]...": files(".json"),
    "--study": NO_NAMES,
    "--storage": st.sampled_from(BAD_STORAGES),
    "--objective": TEXTS,
    "--device": TEXTS,
    "--engine": TEXTS,
    "--dataset": TEXTS | files(".npz").map("npz:{}".format) | files("").map("idx:{}".format),
}


FIELDS = {  # what a message may call the option
    "DIR": ("path:",),
    "FILE": ("path:",),
    "NETWORK": ("architecture:", "weights:"),
    "[WHAT]...": ("network:", "report:"),
}


def bad_values(option: Option) -> st.SearchStrategy[str]:
    """Values that an option refuses."""
    if option.high:
        beyond = st.integers(option.high + 1, option.high + 10**12) | st.integers(
            option.low - 10**12, option.low - 1
        )
        return (
            NO_WHOLE_NUMBERS | beyond.map(str) | st.sampled_from([str(option.low - 1), str(option.high + 1)])
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
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_option_refuses_bad_values(
    option: Option, wrong_files: Path, invoke: Runner, data: st.DataObject
) -> None:
    value = data.draw(bad_values(option))
    before = contents(wrong_files)
    match option.kind:
        case "flag":
            given_as = [f"{option.name}={value}"]
        case _ if option.name.startswith("-"):
            given_as = [option.name, value]
        case _:
            given_as = [value]
    ended = invoke(option.command, *option.base, *given_as)
    check_refused(ended, wrong_files, before, [])
    assert any(word in ended.err for word in named_by(option, value)), ended.err


def named_by(option: Option, value: str) -> set[str]:
    """Texts of which an error message must have one: the option, its field, or the value."""
    start = " ".join(value.rpartition(":")[2].split())[:20]
    values = {start, repr(start)[1:-1]} - {""}
    return {option.name, f"{option.name.strip('-')}:", *FIELDS.get(option.kind, ()), *values}
