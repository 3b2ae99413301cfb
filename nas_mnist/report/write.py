"""A report as files: the page, its pictures, and for a study the table of all trials and a summary."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import InputError
from ..core.fileio import new_folder, read_text, write_bytes
from ..study.results import StudyResults, to_frame
from . import style as canvas
from .items import Subject
from .page import Chapter, chapter, comparison, page

if TYPE_CHECKING:
    import optuna


MAX_SUMMARY_BYTES = 1 << 24


def study_folder(parent: Path, study: optuna.Study) -> Path:
    """The folder of a study's reports: the one it had before, or a new one that is named after it.

    One that the study names is used only within ``parent``, and only where nothing or this study's own
    report lies there: studies come from other machines, too.
    """
    known = Path(str(study.user_attrs.get("reports", "")))
    if known.parent == parent and _NAME.fullmatch(known.name) and _holds_no_other(known, study):
        return known
    folder = new_folder(parent, study.study_name)
    study.set_user_attr("reports", str(folder))
    return folder


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _holds_no_other(folder: Path, study: optuna.Study) -> bool:
    """Whether a folder holds no report of another study."""
    if not (folder / "summary.json").exists():
        return True
    try:
        summary = json.loads(read_text(folder / "summary.json", "summary", MAX_SUMMARY_BYTES))
    except (InputError, ValueError):
        return False
    mine = (study.study_name, study.user_attrs.get("identity"))
    return isinstance(summary, dict) and (summary.get("study"), summary.get("identity")) == mine


def chapters_of(subjects: Sequence[Subject]) -> list[Chapter]:
    """Everything that a report of these subjects tells, before anything is written."""
    return [chapter(subject) for subject in _distinct(subjects)]


def write_report(folder: Path, subjects: Sequence[Subject], told: Sequence[Chapter] | None = None) -> Path:
    """Write ``report.html``, ``plots/*.png`` and ``plots/*.svg``; the path of the page.

    Of a single study also ``trials.csv`` and ``summary.json``. Files of these names from an earlier report
    of the same folder are replaced; nothing else is touched. ``told`` is what `chapters_of` made of the same
    subjects, where it was called before.
    """
    chapters = list(told or chapters_of(subjects))
    figures = {
        f"{one.subject.name}-{name}" if len(chapters) > 1 else name: figure
        for one in chapters
        for name, figure in one.figures.items()
    }
    if together := comparison(chapters):
        figures["comparison"] = together
    for name, figure in figures.items():
        write_bytes(folder / "plots" / f"{name}.png", canvas.png(figure))
        write_bytes(folder / "plots" / f"{name}.svg", canvas.svg(figure, name).encode())
    study = subjects[0].study if len(subjects) == 1 else None
    if study:
        table = to_frame(study.rows).to_csv(index=False, lineterminator="\n")
        write_bytes(folder / "trials.csv", table.encode())
        summary = json.dumps(summarise_study(study, chapters[0]), indent=2)
        write_bytes(folder / "summary.json", f"{summary}\n".encode())
    path = folder / "report.html"
    write_bytes(path, page(chapters).encode())
    return path


def _distinct(subjects: Sequence[Subject]) -> list[Subject]:
    """The subjects, those of a name that came before with a number behind it."""
    names: Counter[str] = Counter()
    found = []
    for subject in subjects:
        names[subject.name] += 1
        number = names[subject.name]
        found.append(subject if number == 1 else replace(subject, name=f"{subject.name} ({number})"))
    return found


def summarise_study(study: StudyResults, told: Chapter) -> dict[str, Any]:
    """What ``summary.json`` holds; the README documents the fields."""
    result, winner = told.subject.result, study.winner
    return {
        "study": study.name,
        "trials": {verdict.value: count for verdict, count in study.counts.items()},
        "epochs": sum(row.epochs for row in study.rows),
        "images": sum(row.images for row in study.rows),
        "seconds": round(sum(row.seconds for row in study.rows), 3),
        "winner": asdict(winner) if winner else None,
        "finals": study.finals,
        "front": [asdict(row) for row in study.front],
        "test_accuracy": result["test_accuracy"] if result else None,
        "requirements": result["requirements"] if result else None,
        "importances": study.importances,
        **{
            name: study.facts.get(name)
            for name in ("identity", "seed", "recipe", "space", "data", "device", "versions")
        },
    }
