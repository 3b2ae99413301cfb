"""The answers of a search on the test images: trained on all training images, and read once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..core.defaults import REPORTS
from ..models.architecture import Architecture
from ..recipes.recipe import stored_recipe
from ..study.race import Answer
from ..study.results import RETRAINED, retrained_of
from ..training.jobs import RetrainJob, retrain_seeds
from .setup import SearchSetup

if TYPE_CHECKING:
    import optuna
    from rich.console import Console

    from ..data.dataset import DataSet
    from ..training.final import Run


def retrain_answer(
    setup: SearchSetup, data: DataSet, console: Console, study: optuna.Study, answer: Answer
) -> None:
    """Train an answer on all training images, and keep its test accuracy (0 to 1) in the study."""
    import torch

    from ..report.epoch_log import EpochLog
    from ..report.write import study_folder
    from ..training.device import describe_machine
    from ..training.run_store import RunStore, metadata_of

    seed = setup.config.seed
    stored = retrained_of(study.user_attrs, answer.key)
    if stored and stored["seed"] == seed and Path(stored["folder"]).is_dir():
        console.print(f"Retrained before: {stored['folder']}")
        return
    console.print(f"Retraining {answer.name} on all {len(data.train):,} training images")
    job = RetrainJob(
        architecture=Architecture.make(answer.architecture),
        recipe=stored_recipe(answer.recipe, f"{answer.name}: recipe"),
        seeds=(seed,),
        source=setup.source,
        last_only=True,
    )
    runs: list[Run] = []
    with EpochLog(console, setup.recipe.epochs, 1) as log:
        retrain_seeds(job, data, 1, log, runs.append)
    (run,) = runs
    device, limit = describe_machine(torch.device(setup.source.device)), setup.budget.max_params
    metadata = metadata_of(answer.name, job.architecture, job.recipe, data, device, limit)
    metadata |= {"trial": answer.trial, "plain": setup.source.engine == "torch"}
    store = RunStore(study_folder(REPORTS, study), answer.name, metadata)
    store.add(run)
    result = {"seed": seed, "test_accuracy": run.result.accuracy, "folder": str(store.folder)}
    known = study.user_attrs.get(RETRAINED, {})
    study.set_user_attr(RETRAINED, known | {answer.key: result})
    console.print(f"Written: {store.folder}")
