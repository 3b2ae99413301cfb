"""The templates of the files that exports write as text."""

from __future__ import annotations

import jinja2


def environment() -> jinja2.Environment:
    """The templates in `templates/`; a name without a value raises."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("nas_mnist.export", "templates"),
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
