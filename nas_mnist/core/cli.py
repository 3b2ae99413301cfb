"""What every command line shares: one line for bad input, the exit codes, names that become paths."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from collections.abc import Callable
from errno import ENAMETOOLONG
from pathlib import Path

import typer

from .errors import InputError, NoResultError
from .signals import listen

DONE, NO_RESULT, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
STUDY, STORAGE = "nas_mnist", "sqlite:///studies/nas_mnist.db"  # unless something else is asked for

_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # also of options that are unknown or missing


def run(command: Callable[..., None], **others: Callable[..., None]) -> None:
    """Run a command line and exit: 0 done, 1 no result, 2 bad input, 130 interrupted.

    Where there are ``others``, a first word that is no option names the one to run with the rest of the line.
    What the system refuses (a full disk, a file that cannot be made) is said in one line, too.
    """
    listen(signal.SIGINT, signal.SIGTERM)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    words = sys.argv[1:]
    name = None  # typer finds out
    if others and words and not words[0].startswith("-"):
        if words[0] not in others:
            sys.exit(
                _say(f"{_short(words[0])!r} is not known (use {', '.join(others)} or options)", BAD_INPUT)
            )
        command = others[words[0]]
        name = f"python -m {command.__module__.rpartition('.')[0]} {words.pop(0)}"
    app.command()(command)
    try:
        code = app(words, name, standalone_mode=False)
    except InputError as error:
        code = _say(str(error), BAD_INPUT)
    except NoResultError as error:
        code = _say(str(error), NO_RESULT)
    except _UsageError as error:
        code = _say(error.format_message(), BAD_INPUT)  # type: ignore[attr-defined]
    except OSError as error:
        name = f"{_short(os.fsdecode(error.filename))}: " if error.filename else ""
        code = _say(
            f"{name}{error.strerror or error}", BAD_INPUT if error.errno == ENAMETOOLONG else NO_RESULT
        )
    except (KeyboardInterrupt, typer.Abort):
        sys.stdout.flush()
        os._exit(INTERRUPTED)  # libraries may be half loaded, and those that are whole take their time to go
    sys.exit(code or DONE)


def typed(module: str, hidden: str = "", shown: str = "", again: bool = False) -> str:
    """What was typed to start this command, as a line that may be typed again, with ``shown`` for ``hidden``.

    Without ``--quiet``, and without ``--json``, which asks for a new file every time, unless what was typed
    came to no end and is to run ``again``.
    """
    kept: list[str] = []
    words = iter(sys.argv[1:])
    for word in words:
        if word == "--json" and not again:
            next(words, None)
        elif word != "--quiet" and (again or not word.startswith("--json=")):
            kept.append(word.replace(hidden, shown) if hidden else word)
    return shlex.join(["python", "-m", f"nas_mnist.{module}", *kept])


def whole(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers from ``low`` to ``high`` for an option of a command."""

    def parse(text: str) -> int:
        plain = re.fullmatch(r"[0-9]{1,20}|-[1-9][0-9]{0,19}", str(text))  # defaults are numbers
        number = int(text) if plain else low - 1
        if not low <= number <= high:
            raise typer.BadParameter(f"{_short(str(text))!r} (use a whole number from {low:,} to {high:,})")
        return number

    return parse


def check_name(option: str, name: str) -> str:
    """A name that may become a folder; raises `InputError` for one that could leave it."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", name):
        raise InputError(f"{option}: {_short(name)!r} (use up to 80 letters, digits, '.', '_' and '-')")
    return name


def check_in_use(option: str, given: object, default: object, used: bool, where: str) -> None:
    """Raise `InputError` for an option that was given where it does nothing."""
    if given != default and not used:
        raise InputError(f"{option}: {_short(str(given))!r} counts only {where} (leave it out)")


def check_lookup(what: str, study: str, storage: str) -> None:
    """Raise `InputError` for a study's name that could leave its folder, and where nothing is looked up."""
    check_name("--study", study)
    check_in_use("--study", study, STUDY, what == "best", "with 'best'")
    check_in_use("--storage", storage, STORAGE, what == "best", "with 'best'")


def check_data_dir(data_dir: str | None, dataset: str) -> None:
    """Raise `InputError` for a folder of data where the data set lies elsewhere."""
    elsewhere = dataset.partition(":")[0] in ("mnist-5k", "idx", "npz")
    check_in_use("--data-dir", data_dir, None, not elsewhere, "with sets that torchvision downloads")


def as_path(text: str | None) -> Path | None:
    """An option's text as a path; raises `InputError` for text that cannot be one."""
    if text is None:
        return None
    if not text or "\0" in text:
        raise InputError(f"path: {text!r} (use the path of a file or folder)")
    return Path(text).expanduser()


def as_table(option: str, text: str) -> Path:
    """The path of a table; raises `InputError`, naming the option, where it does not end in .csv."""
    path = as_path(text)
    if path is None or path.suffix != ".csv":
        raise InputError(f"{option}: {text!r} (use a path that ends in .csv)")
    return path


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "..."


def _say(message: str, code: int) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code
