"""The templates of the files that exports write as text."""

from __future__ import annotations

import re

import jinja2


def environment() -> jinja2.Environment:
    """The templates in `templates/`; a name without a value raises."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("nas_mnist.export", "templates"),
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    made.filters["comment"] = as_comment
    return made


def as_comment(text: str) -> str:
    """Text from a file, such as a class name, for a comment in C or a docstring: it ends neither."""
    printable = "".join(one if one.isprintable() else " " for one in text)
    return re.sub(r'[\\"]|/(?=\*)|\*(?=/)', "_", printable)
