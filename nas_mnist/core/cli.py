"""The parts that all command lines share: exit codes, one-line errors, parsers of option values."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from collections.abc import Callable
from errno import ENAMETOOLONG
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from .defaults import ANSWERS, DEFAULT_STORAGE, DEFAULT_STUDY, OWN_KINDS
from .errors import InputError, NoResultError, choices, closest
from .fileio import check_new, expand_user
from .numbers import parse_number, parse_whole
from .signals import raise_on

DONE, NO_RESULT, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

# Groups of options in --help.
ARGUMENTS, WHAT, HOW_WELL, WHERE, OUTPUT = "Arguments", "What", "How well", "Where", "Output"

_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # also of unknown and missing options


def _check_path(param: typer.CallbackParam, text: str | None) -> str | None:
    as_path(text, param.opts[0])
    return text


def option(group: str, metavar: str, sentence: str, *names: str, **more: Any) -> Any:
    """An option of a command: its group in --help, its value's name and one sentence with the default."""
    if metavar in ("DIR", "FILE"):
        more["callback"] = _check_path
    return typer.Option(
        *names, metavar=metavar, help=sentence, rich_help_panel=group, show_default=False, **more
    )


def integer(group: str, low: int, high: int, sentence: str) -> Any:
    """An option for a whole number from ``low`` to ``high``."""
    return option(group, "N", sentence, parser=whole(low, high))


def argument(metavar: str, sentence: str) -> Any:
    """A positional argument of a command."""
    return typer.Argument(metavar=metavar, help=sentence, rich_help_panel=ARGUMENTS, show_default=False)


# Options that several commands share.
Network = Annotated[str, argument("NETWORK", "Name of the zoo, best, a FILE, or a FOLDER of results.")]
Study = Annotated[str, option(WHAT, "NAME", "Look 'best' up in this study (nas_mnist).")]
Storage = Annotated[str, option(WHAT, "URL", "Look that study up in this database or journal.")]
DataDir = Annotated[str | None, option(WHERE, "DIR", "Read the data from DIR/MNIST/raw.")]
Device = Annotated[str, option(WHERE, "NAME", "Train on cpu, cuda or mps (auto).")]
EngineName = Annotated[str | None, option(WHERE, "NAME", "Compute by fast kernels (auto) or by torch.")]
Dataset = Annotated[str, option(WHAT, "NAME", "Train on this data set (mnist).")]
Workers = Annotated[str, option(WHERE, "N|auto", "Train N at once (auto: one a core).")]
JsonFile = Annotated[str | None, option(OUTPUT, "FILE", "Write the results to a new file.", "--json")]
Quiet = Annotated[bool, option(OUTPUT, "", "Print errors only.", "--quiet")]


class GroupedHelp(typer.core.TyperCommand):
    """A command whose --help lists the options by their ``rich_help_panel``, as plain text."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options under the headings of their groups."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                heading = getattr(param, "rich_help_panel", None) or OUTPUT
                groups.setdefault(heading, []).append(record)
        for heading in (one for one in (ARGUMENTS, WHAT, HOW_WELL, WHERE, OUTPUT) if one in groups):
            with formatter.section(heading):
                formatter.write_dl(groups[heading], col_spacing=1)


def run(command: Callable[..., None], **others: Callable[..., None]) -> None:
    """Run a command line and exit: 0 done, 1 no result, 2 bad input, 130 interrupted.

    A first word that is no option selects one of the ``others``, which gets the rest of the line. Errors of
    the system (a full disk, a file that cannot be made) are printed as one line, too.
    """
    raise_on(signal.SIGINT, signal.SIGTERM)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    words = sys.argv[1:]
    name = None  # typer derives it
    if others and words and not words[0].startswith("-"):
        if words[0] not in others:
            advice = choices(words[0], others, " or options")
            sys.exit(_print_error(f"{_short(words[0])!r} is not known {advice}", BAD_INPUT))
        command = others[words[0]]
        name = f"python -m {command.__module__.rpartition('.')[0]} {words.pop(0)}"
    app.command(cls=GroupedHelp)(command)
    try:
        code = app(words, name, standalone_mode=False)
    except InputError as error:
        code = _print_error(_with_option(str(error), words), BAD_INPUT)
    except NoResultError as error:
        code = _print_error(str(error), NO_RESULT)
    except _UsageError as error:
        code = _print_error(error.format_message(), BAD_INPUT)  # type: ignore[attr-defined]
    except OSError as error:
        name = f"{_short(os.fsdecode(error.filename))}: " if error.filename else ""
        code = _print_error(
            f"{name}{error.strerror or error}", BAD_INPUT if error.errno == ENAMETOOLONG else NO_RESULT
        )
    except (KeyboardInterrupt, typer.Abort):
        sys.stdout.flush()
        os._exit(INTERRUPTED)  # an orderly exit fails with half-loaded libraries, and is slow with torch
    sys.exit(code or DONE)


def command_line(module: str, hidden: str = "", shown: str = "", again: bool = False) -> str:
    """The command line of this process, ready to be typed again, with ``hidden`` replaced by ``shown``.

    ``--quiet`` is left out. ``--json`` names a new file, so it is left out as well, unless the command did
    not end and the same line is to run ``again``.
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
    """A parser of whole numbers from ``low`` to ``high`` for an option."""

    def parse(text: str) -> int:
        number = parse_whole(str(text), low, high)  # typer passes defaults as numbers
        if number is None:
            raise typer.BadParameter(f"{_short(str(text))!r} (use a whole number from {low:,} to {high:,})")
        return number

    return parse


def real(text: str) -> float:
    """A parser of positive numbers for an option."""
    if (number := parse_number(str(text))) is None:
        raise typer.BadParameter(f"{_short(str(text))!r} (use a positive number, as 99.4)")
    return float(number)


def size(low: int, high: int) -> Callable[[str], int]:
    """A parser of bytes for an option: ``32KB`` (of 1,024 bytes), ``1.5MB`` or ``16384``."""

    def parse(text: str) -> int:
        found = re.fullmatch(r"([0-9.,_]{1,20}) ?(|[kKmM]?[bB])", str(text))
        number = parse_number(found[1]) if found else None
        if found and number is not None:
            number *= {"KB": 1 << 10, "MB": 1 << 20}.get(found[2].upper(), 1)
        if number is None or not low <= number <= high or number != int(number):
            raise typer.BadParameter(f"{_short(str(text))!r} (use a size such as 32KB, 1MB or 16384)")
        return int(number)

    return parse


def check_name(option: str, name: str) -> str:
    """A name that may become a folder; raises `InputError` for a name that could leave its parent."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", name):
        raise InputError(f"{option}: {_short(name)!r} (use up to 80 letters, digits, '.', '_' and '-')")
    return name


def check_in_use(option: str, given: object, default: object, used: bool, where: str) -> None:
    """Raise `InputError` for an option that was given and has no effect."""
    if given != default and not used:
        raise InputError(f"{option}: {_short(str(given))!r} counts only {where} (leave it out)")


def check_lookup(what: str, study: str, storage: str) -> None:
    """Raise `InputError` for a bad study name, and for --study and --storage without ``best``."""
    check_name("--study", study)
    of_study = (study, storage) != (DEFAULT_STUDY, DEFAULT_STORAGE)
    if of_study and what not in ANSWERS and re.fullmatch(r"\w+", what) and closest(what, list(ANSWERS)):
        advice = choices(what, ANSWERS, ", or a network without --study and --storage")
        raise InputError(f"network: {what!r} is not known {advice}")
    for option, given, default in (
        ("--study", study, DEFAULT_STUDY),
        ("--storage", storage, DEFAULT_STORAGE),
    ):
        if given != default and what not in ANSWERS:
            raise InputError(
                f"{option}: {_short(given)!r} counts only with best, smaller or smallest "
                f"(the network is {_short(what)})"
            )


def check_data_dir(data_dir: str | None, dataset: str) -> None:
    """Raise `InputError` for --data-dir with a data set that lies elsewhere."""
    elsewhere = dataset.partition(":")[0] in ("mnist-5k", *OWN_KINDS)
    check_in_use("--data-dir", data_dir, None, not elsewhere, "with sets that torchvision downloads")


def as_path(text: str | None, option: str = "path") -> Path | None:
    """An option's text as a path; raises `InputError` for text that cannot be one."""
    if text is None:
        return None
    if not text or "\0" in text:
        raise InputError(f"{option}: {text!r} (use the path of a file or folder)")
    return expand_user(text, option)


def as_new_file(text: str | None, option: str = "--json") -> Path | None:
    """An option's text as the path of a new file; raises `InputError` if it exists or cannot be made."""
    if (path := as_path(text, option)) is not None:
        check_new(path, option)
    return path


def as_table(option: str, text: str) -> Path:
    """The path of a table; raises `InputError` with the option's name if it does not end in .csv."""
    path = as_path(text, option)
    if path is None or path.suffix != ".csv":
        raise InputError(f"{option}: {text!r} (use a path that ends in .csv)")
    return path


def _with_option(message: str, words: list[str]) -> str:
    """A message that begins with a field's name; it begins with the option where that was typed."""
    field = message.partition(":")[0]
    typed = any(word.partition("=")[0] == f"--{field}" for word in words)
    return f"--{message}" if typed else message


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "..."


def _print_error(message: str, code: int) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code
