"""The figures of one report item: which plots its data allows, by file name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..data.class_names import class_names
from ..models.published import PUBLISHED_LOG
from ..study.results import StudyResults, best_rows
from ..training.requirements import required_accuracy
from . import result_plots, study_plots
from .diagram import draw_network
from .items import ReportItem

MOST_MISTAKES = 60  # misclassified images on a page
MOST_IMPORTANCES = 12  # bars


def figures_of(item: ReportItem) -> dict[str, Figure]:
    """All figures of an item, by file name."""
    figures: dict[str, Figure] = {}
    if item.architecture:
        figures["network"] = draw_network(item.architecture)
    if item.study:
        figures |= _study_figures(item.study)
    if item.result:
        figures |= _result_figures(item.result, item.images)
    return figures


def _study_figures(study: StudyResults) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    config, rows = study.config, study.rows
    if curves := study.curves:
        trained = [row.trial for row in best_rows(rows, len(rows))]
        required = required_accuracy(config.data)
        figures["learning-curves"] = study_plots.learning_curves(curves, trained, study.epochs, required)
        figures["accuracy-parameters"] = study_plots.accuracy_against(rows, config.max_params)
        if config.cost_metric in ("macs", "peak_memory"):
            limit = config.max_macs if config.cost_metric == "macs" else config.max_memory
            figures["accuracy-cost"] = study_plots.accuracy_against(rows, limit, config.cost_metric)
    if rows:
        figures["spending"] = study_plots.search_effort(rows)
    if study.importances:
        greatest = list(study.importances.items())[:MOST_IMPORTANCES]
        figures["importances"] = study_plots.importance_bars(
            {choice_label(name): share for name, share in greatest}
        )
    return figures


def _result_figures(result: Mapping[str, Any], images: np.ndarray | None) -> dict[str, Figure]:
    """Curves of all runs; confusion matrix and misclassified ``images`` (N, H, W) of the first run."""
    figures: dict[str, Figure] = {}
    first, data = result["runs"][0], result["data"]["name"]
    if sum(row["test_accuracy"] is not None for row in first["epochs"]) > 1:
        is_published = (result["name"], data) == ("reference", "mnist")
        published = [correct / 10_000 for _, correct in PUBLISHED_LOG] if is_published else []
        required = required_accuracy(data)
        figures["test-curves"] = result_plots.seed_curves(result["runs"], published, required)
    if "confusion" in first:
        names = class_names(data, len(first["confusion"]))
        figures["confusion"] = result_plots.confusion(first["confusion"], names)
        if images is not None and len(images):
            shown = min(len(images), MOST_MISTAKES)  # spread evenly: test images may be sorted by class
            positions = [number * len(images) // shown for number in range(shown)]
            chosen = [first["mistakes"][position] for position in positions]
            figures["mistakes"] = result_plots.misclassified(images[positions], chosen, names)
    return figures


def choice_label(parameter: str) -> str:
    """The label of a search parameter: ``stage2.channels1`` is "stage 2, channels of block 1"."""
    label = re.sub(r"^stage(\d+)\.", r"stage \1, ", parameter)
    return re.sub(r"\bchannels(\d+)$", r"channels of block \1", label)
