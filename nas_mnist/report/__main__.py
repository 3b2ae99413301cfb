"""``python -m nas_mnist.report [WHAT...] [--study NAME]``: tables on screen, a page and figures as files."""

from __future__ import annotations

import re
from typing import Annotated

from ..core.cli import WHAT, DataDir, Storage, argument, as_path, check_in_use, check_name, option, run
from ..core.defaults import DEFAULT_STORAGE, DEFAULT_STUDY, REPORTS
from ..core.errors import foreign_data
from ..core.fileio import check_writable, new_folder
from ..models.zoo import names as zoo_names

ZOO = "zoo"  # stands for all networks of the zoo


def report(
    what: Annotated[
        list[str] | None,
        argument("WHAT", "Folders of results, names of the zoo (or 'zoo': all), or JSON files."),
    ] = None,
    study: Annotated[list[str] | None, option(WHAT, "NAME", "A study; may be given several times.")] = None,
    storage: Storage = DEFAULT_STORAGE,
    data_dir: DataDir = None,
) -> None:
    """Report a study (without arguments: nas_mnist), a result, or several of them side by side."""
    names = [name for one in what or [] for name in (zoo_names() if one == ZOO else [one])]
    studies = [check_name("--study", name) for name in study or ([] if what else [DEFAULT_STUDY])]
    check_in_use("--storage", storage, DEFAULT_STORAGE, bool(studies), "with a study")
    data_folder = as_path(data_dir)

    from ..study.study import load_study
    from .items import comparison_rows, item_of_name, item_of_study
    from .progress import make_console
    from .sections import sections_of
    from .tables import comparison_table, print_item
    from .write import study_folder, write_report

    loaded = [load_study(storage, name) for name in studies]
    check_writable(REPORTS, "reports")
    console = make_console()
    with foreign_data(f"report: {', '.join([*names, *studies])}"):
        items = [item_of_name(name, data_folder) for name in names]
        items += [item_of_study(one, data_folder) for one in loaded]
        sections = sections_of(items)
        for item in items:
            print_item(console, item)
        if len(items) > 1:
            console.print(comparison_table(comparison_rows([section.item for section in sections])))
    if len(items) > 1 or not (loaded or items[0].folder):
        joined = ZOO if what == [ZOO] else "-and-".join(item.name for item in items)
        name = re.sub(r"[^A-Za-z0-9._-]", "-", joined).lstrip(".-")[:80]
        folder = new_folder(REPORTS, name or "report")
    else:
        folder = items[0].folder or study_folder(REPORTS, loaded[0])
    console.print(f"Written: {write_report(folder, sections)}")


if __name__ == "__main__":
    run(report)
