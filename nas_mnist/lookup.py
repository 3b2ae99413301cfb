"""What an architecture is called on a command line: a name, the best of a study, a file or a folder."""

from __future__ import annotations

from pathlib import Path

from .core.cli import STORAGE, STUDY, check_name
from .core.errors import InputError, NoResultError, stored_by_others
from .models.architecture import Architecture
from .models.zoo import Entry, load, names
from .recipes.recipe import Recipe, load_recipe, make_recipe


def find_entry(
    name: str, study: str = STUDY, storage: str = STORAGE, trial: int | None = None
) -> tuple[Entry, Recipe, str]:
    """What ``name`` stands for, and the recipe and the data set that belong to it.

    ``best`` is the winner of a study, or one of its trials; a folder is one that `reproduce` or a search
    wrote; for other names see `zoo.load`. Raises `InputError`, and `NoResultError` where the study has no
    winner.
    """
    if name == "best":
        return _best_of(study, storage, trial)
    if name not in names() and (Path(name) / "result.json").is_file():
        return _of_folder(Path(name))
    if name not in names() and Path(name).is_dir():
        below = sorted(str(file.parent) for file in Path(name).glob("*/result.json"))
        advice = f"use {' or '.join(below)}" if below else "use a folder of results"
        raise InputError(f"architecture: {name} holds no result.json ({advice})")
    entry = load(name)
    check_name("architecture", entry.name)
    return entry, load_recipe(entry.recipe), "mnist"


def _of_folder(folder: Path) -> tuple[Entry, Recipe, str]:
    from .report.items import read_result

    result = read_result(folder / "result.json")
    with stored_by_others(f"result: {folder}"):
        name, recipe = folder.resolve().name, make_recipe(result["recipe"], f"{folder}: recipe")
        check_name("architecture", name)
        trained_by = str(result.get("recipe_name") or f"of {folder}")
        architecture, budget = Architecture.make(result["architecture"]), result.get("budget")
        entry = Entry(name, "", architecture, trained_by, budget=budget)
        return entry, recipe, str(result["data"]["name"])


def _best_of(study: str, storage: str, trial: int | None) -> tuple[Entry, Recipe, str]:
    """The best candidate that a study trained to the end, or that of a trial, as its trial stored it."""
    from .study.results import FINALS, trained_shortly, trial_rows, winner_of
    from .study.study import load_study

    stored = load_study(storage, study)
    with stored_by_others(f"study: {study!r}"):
        rows = trial_rows(stored)
        winner = winner_of(rows, stored.user_attrs.get(FINALS, {}), trained_shortly(stored.user_attrs))
    if trial is not None:
        chosen = [row for row in rows if row.trial == trial and row.verdict.counts]
        if not chosen:
            raise InputError(f"--trial: {trial} is no trial of study {study!r} that was trained")
        winner = chosen[0]
    if winner is None:
        raise NoResultError(f"study {study!r} has no candidate that was trained to the last epoch")
    about = f"{'best' if trial is None else 'one'} of study {study!r}, trial {winner.trial}"
    name = f"{study}-best" if trial is None else f"{study}-trial-{trial}"
    budget = stored.user_attrs["identity"]["max_params"]
    entry = Entry(name, about, Architecture.make(winner.architecture), f"of study {study!r}", budget=budget)
    used = winner.recipe or stored.user_attrs.get("recipe", {})
    recipe = make_recipe(used, f"study {study!r}: recipe")
    if trained_shortly(stored.user_attrs):
        recipe = recipe.with_epochs(stored.user_attrs["recipe"]["epochs"])
    dataset = stored.user_attrs.get("dataset") or stored.user_attrs["identity"]["data"].rpartition(" ")[0]
    return entry, recipe, str(dataset)
