"""Bad input, said in one line: what is wrong, where, and what is allowed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from pydantic import ValidationError


class InputError(ValueError):
    """Something the user gave cannot be used. Commands print it as one line and exit with code 2."""


class NoResultError(RuntimeError):
    """The command ended without the result that was asked for. Commands exit with code 1."""


class StorageLostError(NoResultError):
    """The storage of a study went away while it was used."""


@contextlib.contextmanager
def stored_by_others(what: str) -> Iterator[None]:
    """Turn what goes wrong with stored data that may come from anywhere into an `InputError`."""
    try:
        yield
    except (InputError, NoResultError):
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError) as error:
        text = " ".join(str(error).split())[:80]
        raise InputError(
            f"{what} holds what this program does not write ({type(error).__name__}: {text})"
        ) from None


def explain(error: ValidationError, tags: frozenset[str] = frozenset()) -> str:
    """The first failure of a pydantic check: ``blocks[1].kernel: 4 (input should be 1, 3, 5 or 7)``.

    ``tags`` are the discriminator values of unions, which pydantic puts into the location and which
    the user never wrote.
    """
    errors = error.errors()
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])  # a misspelt one
    message = first["msg"].removeprefix("Value error, ")
    where = ""
    for part in first["loc"]:
        if isinstance(part, int):
            where += f"[{part}]"
        elif part not in tags:
            name = part if part.isprintable() and len(part) <= 60 else repr(part[:57] + "...")
            where += f".{name}" if where else name
    if first["type"] == "value_error" and re.match(r"\S+: ", message):
        return f"{where}.{message}" if where else message  # a check of ours of several fields together
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
