"""``python -m nas_mnist.search``: find the best all-convolutional network within a parameter budget."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from ..core.cli import (
    HOW_WELL,
    OUTPUT,
    WHAT,
    WHERE,
    DataDir,
    Device,
    EngineName,
    Quiet,
    as_path,
    command_line,
    option,
    real,
    run,
    size,
    whole,
)
from ..core.process_pool import parse_workers
from .config import MAX_IMAGES, SearchConfig
from .effort import EFFORTS


def field_option(field: str, group: str, metavar: str, sentence: str, name: str = "", **more: Any) -> Any:
    """The option of a `SearchConfig` field; whole numbers take their range from it."""
    bounds = {key: value for one in SearchConfig.model_fields[field].metadata for key, value in _bounds(one)}
    if {"ge", "le"} <= set(bounds) and "parser" not in more:
        more["parser"] = whole(bounds["ge"], bounds["le"])
    return option(group, metavar, sentence.format(default(field)), *([name] if name else []), **more)


def _bounds(constraint: Any) -> list[tuple[str, int]]:
    return [(key, getattr(constraint, key)) for key in ("ge", "le") if hasattr(constraint, key)]


def default(field: str) -> Any:
    """The default of a `SearchConfig` field."""
    return SearchConfig.model_fields[field].default


def _images(text: str) -> int:
    """A number of images; 0 stands for all."""
    if str(text) == "all":
        return 0
    try:
        return whole(1, MAX_IMAGES)(text)
    except typer.BadParameter as error:
        raise typer.BadParameter(str(error).replace("(use ", "(use all or ")) from None


_size = size(1, 10**12)


def _by_effort(field: str) -> str:
    return ", ".join(str(getattr(effort, field)) for effort in EFFORTS.values())


def search(
    trials: Annotated[int, field_option("trials", WHAT, "N", "Train N candidates ({}).")] = default("trials"),
    max_params: Annotated[
        int,
        field_option("max_params", WHAT, "N", "Fit the network into N parameters ({}; on MNIST fewer)."),
    ] = default("max_params"),
    dataset: Annotated[
        str, field_option("dataset", WHAT, "NAME", "Train on mnist, kmnist, folder:DIR, csv:FILE... ({}).")
    ] = default("dataset"),
    space: Annotated[
        str | None,
        field_option("space", WHAT, "NAME|FILE", "Draw from default, tiny, strided... (by the budget)."),
    ] = default("space"),
    recipe: Annotated[
        str | None,
        field_option("recipe", WHAT, "NAME|FILE", "Train by small, tiny, default or a file (by budget)."),
    ] = default("recipe"),
    objective: Annotated[
        str, field_option("objective", WHAT, "NAME", "Accuracy, or a front against params, macs, flash, ram.")
    ] = default("objective"),
    max_macs: Annotated[
        int | None, field_option("max_macs", WHAT, "N", "Limit the multiply-adds for one image.")
    ] = default("max_macs"),
    max_flash: Annotated[
        int | None, field_option("max_flash", WHAT, "SIZE", "Limit the int8 tables: 32KB.", parser=_size)
    ] = default("max_flash"),
    max_ram: Annotated[
        int | None, field_option("max_ram", WHAT, "SIZE", "Limit the int8 memory for an image.", parser=_size)
    ] = default("max_ram"),
    max_memory: Annotated[
        int | None, field_option("max_memory", WHAT, "BYTES", "Of earlier versions: float32.", hidden=True)
    ] = default("max_memory"),
    start: Annotated[
        list[str] | None,
        field_option(
            "start", WHAT, "NETWORK|FILE.json", "Try this network first; repeatable; zoo: all of the zoo."
        ),
    ] = None,
    target: Annotated[
        float | None,
        field_option("target", WHAT, "PERCENT", "Accuracy of the smallest answer (99.4).", parser=real),
    ] = default("target"),
    effort: Annotated[
        str, field_option("effort", HOW_WELL, "EFFORT", "Spend: quick, normal or thorough ({}).")
    ] = default("effort"),
    epochs: Annotated[
        int | None, field_option("epochs", HOW_WELL, "N", "Train for N epochs (the recipe's, 20).")
    ] = default("epochs"),
    finalists: Annotated[
        int | None,
        field_option(
            "finalists", HOW_WELL, "N", f"Train the best N again (by effort: {_by_effort('finalists')})."
        ),
    ] = default("finalists"),
    finalist_seeds: Annotated[
        int | None,
        field_option(
            "finalist_seeds", HOW_WELL, "N", f"Train them with up to N fresh seeds ({_by_effort('seeds')})."
        ),
    ] = default("finalist_seeds"),
    search_epochs: Annotated[
        int | None, field_option("search_epochs", HOW_WELL, "N", "Train candidates for fewer epochs.")
    ] = default("search_epochs"),
    search_images: Annotated[
        int | None,
        field_option(
            "search_images",
            HOW_WELL,
            "N|all",
            "Train candidates on N images (by effort).",
            parser=_images,
        ),
    ] = default("search_images"),
    sampler: Annotated[
        str, field_option("sampler", HOW_WELL, "SAMPLER", "Draw by random, tpe, gp... or MODULE:CLASS ({}).")
    ] = default("sampler"),
    search_recipe: Annotated[
        bool,
        field_option("search_recipe", HOW_WELL, "", "Draw some training choices as well.", "--search-recipe"),
    ] = default("search_recipe"),
    timeout: Annotated[
        float | None,
        field_option("timeout", HOW_WELL, "MINUTES", "Start no candidate after this time.", parser=real),
    ] = default("timeout"),
    no_retrain: Annotated[
        bool, field_option("retrain", HOW_WELL, "", "Leave the test images unread.", "--no-retrain")
    ] = False,
    seed: Annotated[
        int, field_option("seed", HOW_WELL, "N", "Decide draws, weights and order by N ({}).")
    ] = default("seed"),
    study: Annotated[
        str, field_option("study", WHERE, "NAME", "Continue or make this study ({}).")
    ] = default("study"),
    storage: Annotated[
        str, field_option("storage", WHERE, "URL", "Keep the study in this database or journal.")
    ] = default("storage"),
    data_dir: DataDir = None,
    device: Device = "auto",
    workers: Annotated[str, option(WHERE, "N|auto", "Train in N processes (auto: one a core).")] = "auto",
    engine: EngineName = None,
    quiet: Quiet = False,
    json_file: Annotated[
        str | None, field_option("json_file", OUTPUT, "FILE", "Copy the summary to a new file.", "--json")
    ] = default("json_file"),
) -> None:
    """Search for the best network within a budget; the same command continues it."""
    options = dict(locals())
    options |= {"start": tuple(start or ()), "workers": parse_workers(workers), "data_dir": as_path(data_dir)}
    options |= {"json_file": as_path(json_file), "retrain": not options.pop("no_retrain")}
    config = SearchConfig.make(**options)
    with _continuation_hint(config):
        from .pipeline import run_search

        run_search(config, _command(storage))


@contextlib.contextmanager
def _continuation_hint(config: SearchConfig) -> Iterator[None]:
    """Print the command that continues the search when it is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        if not config.quiet:  # print: rich may be half loaded
            print(f"Interrupted. Continue with:\n{_command(config.storage, again=True)}")
        raise


def _command(storage: str, again: bool = False) -> str:
    """This command line without the storage's password; ``again`` as in `command_line`."""
    if "@" not in storage and "?" not in storage:
        return command_line("search", again=again)
    from ..study.storage import hide_password

    return command_line("search", storage, hide_password(storage), again)


if __name__ == "__main__":
    run(search)
