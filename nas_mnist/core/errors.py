"""Errors that commands print as one line: the field, its value and what is allowed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from pydantic import ValidationError


class InputError(ValueError):
    """Input that cannot be used. Commands print one line and exit with code 2."""


class NoResultError(RuntimeError):
    """The command ended without its result. Commands print one line and exit with code 1."""


class StorageLostError(NoResultError):
    """The storage of a study failed while it was in use."""


@contextlib.contextmanager
def foreign_data(what: str) -> Iterator[None]:
    """Raise `InputError` for stored data of a wrong structure: a file may come from any program."""
    try:
        yield
    except (InputError, NoResultError):
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError) as error:
        text = " ".join(str(error).split())[:80]
        raise InputError(f"{what} was not written by this program ({type(error).__name__}: {text})") from None


def explain(error: ValidationError, tags: frozenset[str] = frozenset()) -> str:
    """The first error of a pydantic validation: ``blocks[1].kernel: 4 (input should be 1, 3, 5 or 7)``.

    ``tags`` are discriminator values of unions: pydantic puts them into the location, the input has none.
    """
    errors = error.errors()
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    message = first["msg"].removeprefix("Value error, ")
    where = ""
    for part in first["loc"]:
        if isinstance(part, int):
            where += f"[{part}]"
        elif part not in tags:
            name = part if part.isprintable() and len(part) <= 60 else repr(part[:57] + "...")
            where += f".{name}" if where else name
    if first["type"] == "value_error" and re.match(r"\S+: ", message):
        return f"{where}.{message}" if where else message  # a validator of several fields names them itself
    if first["type"] == "union_tag_invalid":
        tag, allowed = first["ctx"]["tag"], first["ctx"]["expected_tags"]
        return f"{where}.kind: {_short(repr(tag))} (use {allowed})"
    if first["type"] == "union_tag_not_found":
        return f"{where}.kind: missing field"
    value = _short(repr(first["input"]))
    reason = message[0].lower() + message[1:]
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown field"
    if first["type"] == "missing":
        return f"{where}: missing field"
    return f"{where}: {value} ({reason})" if where else reason


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
