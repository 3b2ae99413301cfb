"""A report as files: the page, its figures, and for a study the table of its trials and a summary."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna

from ..core.errors import InputError
from ..core.fileio import new_folder, read_text, write_bytes
from ..study.results import StudyResults, to_frame
from .items import ReportItem, requirements_of
from .page import render_page
from .sections import Section, comparison_figure
from .style import png, svg

MAX_SUMMARY_BYTES = 1 << 24


def study_folder(parent: Path, study: optuna.Study) -> Path:
    """The folder of a study's reports: its earlier one, or a new one with the study's name.

    The study stores the folder, but may come from another machine. So it counts only directly in ``parent``,
    and only if it holds no report of another study.
    """
    stored = Path(str(study.user_attrs.get("reports", "")))
    if stored.parent == parent and re.fullmatch(r"\w[\w.-]*", stored.name) and _is_usable(stored, study):
        return stored
    folder = new_folder(parent, study.study_name)
    study.set_user_attr("reports", str(folder))
    return folder


def _is_usable(folder: Path, study: optuna.Study) -> bool:
    """Whether a folder holds this study's report or none."""
    if not (folder / "summary.json").exists():
        return True
    try:
        summary = json.loads(read_text(folder / "summary.json", "summary", MAX_SUMMARY_BYTES))
    except (InputError, ValueError):
        return False
    wanted = (study.study_name, study.user_attrs.get("identity"))
    return isinstance(summary, dict) and (summary.get("study"), summary.get("identity")) == wanted


def write_report(folder: Path, sections: Sequence[Section]) -> Path:
    """Write ``report.html``, ``plots/*.png`` and ``plots/*.svg``; returns the path of the page.

    For a single study also ``trials.csv`` and ``summary.json``. An earlier report in the folder is replaced;
    other files stay.
    """
    figures = {
        f"{section.item.name}-{name}" if len(sections) > 1 else name: figure
        for section in sections
        for name, figure in section.figures.items()
    }
    if comparison := comparison_figure([section.item for section in sections]):
        figures["comparison"] = comparison
    for name, figure in figures.items():
        write_bytes(folder / "plots" / f"{name}.png", png(figure))
        write_bytes(folder / "plots" / f"{name}.svg", svg(figure, name).encode())
    if len(sections) == 1 and (study := sections[0].item.study):
        table = to_frame(study.rows).to_csv(index=False, lineterminator="\n")
        write_bytes(folder / "trials.csv", table.encode())
        summary = json.dumps(study_summary(study, sections[0].item), indent=2)
        write_bytes(folder / "summary.json", f"{summary}\n".encode())
    path = folder / "report.html"
    write_bytes(path, render_page(sections).encode())
    return path


def study_summary(study: StudyResults, item: ReportItem) -> dict[str, Any]:
    """The content of ``summary.json``; reports/README.md documents the fields. ``item`` is the study's."""
    winner, best, result = study.winner, study.best, item.result
    metadata = ("identity", "seed", "recipe", "space", "data", "device", "versions")
    return {
        "study": study.name,
        "trials": {verdict.value: count for verdict, count in study.counts.items()},
        "epochs": sum(row.epochs for row in study.rows),
        "images": sum(row.images for row in study.rows),
        "seconds": round(sum(row.seconds for row in study.rows), 3),
        "answers": {name: answer.to_json() for name, answer in study.answers.items()},
        "winner": asdict(winner) if winner else None,
        "leader": asdict(best) if best and not winner else None,
        "finals": study.finals,
        "front": [asdict(row) for row in study.front],
        "test_accuracy": result["test_accuracy"] if result else None,
        "requirements": [asdict(one) for one in requirements_of(item)] if result else None,
        "importances": study.importances,
        **{name: study.metadata.get(name) for name in metadata},
    }
