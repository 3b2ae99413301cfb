"""Errors that commands print as one line: the field, its value and what is allowed."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


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


_WHOLE, _NUMBER, _FIELDS = "use a whole number", "use a number", "use named fields"
_ALLOWED = {  # by pydantic's type of an error
    "bool_parsing": "use true or false",
    "bool_type": "use true or false",
    "dict_type": _FIELDS,
    "finite_number": "use a finite number",
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "greater_than": "use more than {gt}",
    "greater_than_equal": "use at least {ge}",
    "int_from_float": _WHOLE,
    "int_parsing": _WHOLE,
    "int_parsing_size": _WHOLE,
    "int_type": _WHOLE,
    "json_invalid": "use JSON",
    "less_than": "use less than {lt}",
    "less_than_equal": "use at most {le}",
    "literal_error": "use {expected}",
    "model_attributes_type": _FIELDS,
    "model_type": _FIELDS,
    "path_type": "use a path",
    "string_pattern_mismatch": "use at most 32 of a-z, 0-9 and _, a letter first",  # names of blocks
    "string_too_long": "use at most {max_length} characters",
    "string_type": "use text",
    "string_unicode": "use text",
    "too_long": "use a list of at most {max_length}",
    "too_short": "use a list of at least {min_length}",
    "tuple_type": "use a list",
    "union_tag_invalid": "use {expected_tags}",
    "value_error": "{error}",
}
_OTHERWISE = "use another value"


def choices(name: str, known: Iterable[str], more: str = "") -> str:
    """Advice for an unknown name: ``(did you mean 'tiny'? use small, tiny or a file)``."""
    names = list(known)
    return f"({closest(name, names)}use {', '.join(names)}{more})"


def closest(name: str, known: Sequence[str]) -> str:
    """A question about the known name that is most like an unknown one; empty if none is."""
    close = difflib.get_close_matches(name[:80].lower(), known, n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def explain(error: ValidationError, model: type[BaseModel], tags: frozenset[str] = frozenset()) -> str:
    """The first error of a pydantic validation in our words: ``blocks[1].kernel: 4 (use 1, 3, 5 or 7)``.

    ``model`` is what was validated. ``tags`` are discriminator values of unions: pydantic puts them into the
    location, the input has none.
    """
    errors = error.errors(include_url=False)
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    context, value, where = first.get("ctx", {}), first["input"], _path(first["loc"], tags)
    if first["type"].startswith("union_tag_"):
        where, value = f"{where}.kind", context.get("tag")
    if first["type"] in ("missing", "union_tag_not_found"):
        return f"{where}: missing field"
    if first["type"] == "extra_forbidden":
        *parents, name = first["loc"]
        return f"{where}: unknown field {choices(str(name), _fields_at(model, parents, tags))}"
    reason = _ALLOWED.get(first["type"], _OTHERWISE).format_map(
        {name: _shown(context[name]) for name in context}
    )
    if first["type"] == "value_error" and where and reason.startswith(f"{where}: "):
        return reason
    if first["type"] == "value_error" and re.match(r"\S+: ", reason):
        return f"{where}.{reason}" if where else reason  # a validator of several fields names them itself
    if first["type"] == "value_error" and not where:
        return reason
    return f"{where}: {_short(repr(value))} ({reason})".removeprefix(": ")


def _fields_at(model: type[BaseModel], location: Sequence[int | str], tags: frozenset[str]) -> list[str]:
    """The fields of the model, or of the alternatives of a union, at a place below ``model``."""
    models = [model]
    for part in location:
        if part in tags:
            models = [one for one in models if one.model_fields["kind"].default == part]
        elif any(part in one.model_fields for one in models):  # else a position, or the key of a dictionary
            fields = (one.model_fields[str(part)] for one in models if part in one.model_fields)
            models = [found for field in fields for found in _models_in(field.annotation)]
    return list(dict.fromkeys(name for one in models for name in one.model_fields))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models in a type: ``tuple[Conv | Pool, ...]`` has two."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for one in get_args(annotation) for found in _models_in(one)]


def _path(location: tuple[int | str, ...], tags: frozenset[str]) -> str:
    """The place of a value as one writes it: ``blocks[1].kernel``."""
    where = ""
    for part in location:
        if isinstance(part, int):
            where += f"[{part}]"
        elif part not in tags and part != "[key]":  # pydantic's mark of a key that is wrong itself
            name = part if part.isprintable() and len(part) <= 60 else repr(part[:57] + "...")
            where += f".{name}" if where else name
    return where


def _shown(allowed: object) -> str:
    """A limit or the allowed values of an error's context."""
    if isinstance(allowed, int | float):
        return f"{allowed:,}".removesuffix(".0")
    return str(allowed) if isinstance(allowed, Exception) else str(allowed).replace("'", "")


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
