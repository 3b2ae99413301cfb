"""Several report items side by side: a table row each and a figure of error against parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from matplotlib.figure import Figure

from ..models.published import RESULTS
from ..models.zoo import names as zoo_names
from ..training.requirements import summarise
from . import result_plots
from .items import ReportItem
from .sections import Section


def comparison_rows(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """One row per section, the largest network first; empty for a single section."""
    rows: list[dict[str, Any]] = []
    for section in sections if len(sections) > 1 else ():
        item = section.item
        rows.append(
            {
                "name": item.name,
                "data": _data_name(item),
                "recipe": item.recipe_name,
                **section.cost,
                "validation": item.winner.validation_accuracy if item.winner else None,
                "test": _test_accuracy(item),
            }
        )
    return sorted(rows, key=lambda row: -row.get("params", 0))


def comparison_figure(sections: Sequence[Section]) -> Figure | None:
    """Test error against parameters; None unless at least two results share one data set."""
    tests = [(section, test) for section in sections if (test := _test_accuracy(section.item))]
    if len(tests) < 2 or len({_data_name(section.item) for section, _ in tests}) > 1:
        return None
    names = [section.item.name for section, _ in tests]
    params = [section.cost["params"] for section, _ in tests]
    from_zoo = sum(bool(section.item.zoo_accuracies) for section, _ in tests)
    published = RESULTS if from_zoo == len(tests) == len(zoo_names()) else ()  # beside the whole zoo only
    return result_plots.comparison(names, params, [test for _, test in tests], published)


def _test_accuracy(item: ReportItem) -> Mapping[str, Any] | None:
    """The summary of the test accuracies, as in ``result.json``."""
    if item.result:
        return item.result["test_accuracy"]  # type: ignore[no-any-return]
    return asdict(summarise(item.zoo_accuracies)) if item.zoo_accuracies else None


def _data_name(item: ReportItem) -> str:
    if item.result:
        return str(item.result["data"]["name"])
    if item.study:
        return item.study.config.data.partition(" ")[0]  # without the fingerprint
    return "mnist" if item.zoo_accuracies else ""
