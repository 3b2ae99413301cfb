"""The HTML page of a report: ``templates/page.html.j2`` filled with its sections. It needs no other file."""

from __future__ import annotations

import json
from collections.abc import Sequence

import jinja2

from ..study.importance import MIN_TRIALS
from ..study.pruner import eval_epochs, rung
from .items import comparison_rows
from .layer_table import layer_table, shared_weights
from .progress import counted
from .result_plots import MOST_MISTAKES
from .sections import Section, comparison_figure
from .style import inline_svg
from .tables import counts_line


def render_page(sections: Sequence[Section]) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nas_mnist.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "percent": lambda share, digits=2: f"{share:.{digits}%}",
        "thousands": lambda number: "" if number is None else f"{number:,}",
        "pretty": lambda value: json.dumps(value, indent=2),
        "layer_table": layer_table,
        "shared_weights": shared_weights,
        "counts_line": counts_line,
        "counted": counted,
        "eval_epochs": lambda epochs: sorted(eval_epochs(epochs)),
        "rung": rung,
    }
    svgs = [
        {name: inline_svg(figure, f"{number}-{name}") for name, figure in section.figures.items()}
        for number, section in enumerate(sections)
    ]
    items = [section.item for section in sections]
    comparison = comparison_figure(items)
    return environment.get_template("page.html.j2").render(
        sections=list(zip(sections, svgs, strict=True)),
        comparison_rows=comparison_rows(items),
        comparison=inline_svg(comparison, "comparison") if comparison else "",
        importance_trials=MIN_TRIALS,
        most_mistakes=MOST_MISTAKES,
    )
