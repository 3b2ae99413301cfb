"""``python -m nas_mnist.report [WHAT...] [--study NAME]``: tables on screen, a page and pictures as files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from ..core.cli import STORAGE, STUDY, as_path, check_in_use, check_name, run
from ..core.errors import stored_by_others
from ..core.fileio import check_writable, new_folder
from ..models.zoo import names as zoo_names

REPORTS = Path("reports")
ZOO = "zoo"  # stands for all of its networks


def report(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[WHAT]...", help="Folders of results, names of the zoo (or 'zoo': all), or JSON files."
        ),
    ] = None,
    study: Annotated[list[str] | None, typer.Option(help="A study; may be given several times.")] = None,
    storage: Annotated[str, typer.Option(help="Database URL of the studies.")] = STORAGE,
    data_dir: Annotated[str | None, typer.Option(metavar="DIR", help="Holds MNIST/raw.")] = None,
) -> None:
    """Report a study (without arguments: nas_mnist), a result, or several of them side by side."""
    names = [name for one in what or [] for name in (zoo_names() if one == ZOO else [one])]
    studies = [check_name("--study", name) for name in study or ([] if what else [STUDY])]
    check_in_use("--storage", storage, STORAGE, bool(studies), "with a study")
    data_folder = as_path(data_dir)

    from ..study.study import load_study
    from .items import of_name, of_study
    from .live import screen
    from .page import compared
    from .tables import compared_table, show
    from .write import chapters_of, study_folder, write_report

    loaded = [load_study(storage, name) for name in studies]
    check_writable(REPORTS, "reports")
    console = screen()
    with stored_by_others(f"report: {', '.join([*names, *studies])}"):
        subjects = [of_name(name, data_folder) for name in names]
        subjects += [of_study(one, data_folder) for one in loaded]
        chapters = chapters_of(subjects)
        for subject in subjects:
            show(console, subject)
        if len(chapters) > 1:
            console.print(compared_table(compared(chapters)))
    if len(subjects) > 1 or not (loaded or Path(names[0]).is_dir()):
        together = ZOO if what == [ZOO] else "-and-".join(subject.name for subject in subjects)
        name = re.sub(r"[^A-Za-z0-9._-]", "-", together)
        folder = new_folder(REPORTS, name.lstrip(".-")[:80] or "report")
    else:
        folder = study_folder(REPORTS, loaded[0]) if loaded else Path(names[0])
    console.print(f"Written: {write_report(folder, subjects, chapters)}")


if __name__ == "__main__":
    run(report)
