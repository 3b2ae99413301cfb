"""The end of a search: the best candidates with further seeds, and the winner on the test images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.defaults import REPORTS
from ..core.process_pool import Handlers, run_workers
from ..models.architecture import Architecture
from ..recipes.recipe import Recipe, stored_recipe
from ..training.jobs import RetrainJob, ValidateJob, Validation, retrain_seeds
from .setup import SearchSetup

if TYPE_CHECKING:
    import optuna
    from rich.console import Console

    from ..data.dataset import DataSet
    from ..study.results import TrialRow
    from ..training.final import Run


@dataclass(frozen=True)
class Finals:
    """Chooses the winner and retrains it."""

    setup: SearchSetup
    data: DataSet
    console: Console

    def choose(self, study: optuna.Study) -> TrialRow | None:
        """The winner by the mean over further seeds; None if no candidate was trained to the end."""
        from ..report.tables import SHOWN, candidates_table
        from ..study.results import StudyResults, best_rows, trial_rows

        count = self.setup.config.finalist_count
        rows = best_rows(trial_rows(study), max(SHOWN, count))
        if not rows:
            return None
        self.console.print(candidates_table(rows[:SHOWN]))
        if self.setup.config.cost_metric:
            front = StudyResults.read(study).front
            self.console.print(candidates_table(front, "Pareto front"))
            rows = best_rows(front, count)
        if count > 1 and len(rows) == 1:
            self.console.print("One candidate was trained to the end: further seeds have nothing to decide")
        self._add_seeds(study, rows[:count])
        return StudyResults.read(study).winner

    def _add_seeds(self, study: optuna.Study, rows: list[TrialRow]) -> None:
        """Train finalists with further seeds: the best of many scores is too good by chance."""
        from ..report.epoch_log import EpochLog
        from ..report.tables import finals_table
        from ..study.config import StudyConfig
        from ..study.results import FINAL_IMAGES, FINALS

        finals: dict[str, dict[str, float]] = study.user_attrs.get(FINALS, {})
        tested = not finals and study.user_attrs.get("winner", {}).get("key") == rows[0].key
        if len(rows) < 2 or tested:  # an earlier search read the test images for the best of them
            return
        first = self.setup.config.seed + 1
        trainings = [
            Validation(
                name=f"trial {row.trial}, seed {seed}",
                key=row.key or "",
                architecture=Architecture.make(row.architecture),
                recipe=self.recipe_of(row),
                seed=seed,
            )
            for row in rows
            for seed in range(first, first + self.setup.config.finalist_seeds)
            if str(seed) not in finals.get(row.key or "", {})
        ]

        def on_score(key: str, seed: int, accuracy: float) -> None:
            finals.setdefault(key, {})[str(seed)] = accuracy
            study.set_user_attr(FINALS, finals)

        if trainings:
            self.console.print(f"Training the best {len(rows)} again; the mean over their seeds decides")
            job = ValidateJob(trainings, self.setup.source, study.user_attrs.get(FINAL_IMAGES))
            with EpochLog(self.console, self.setup.recipe.epochs, len(trainings), lines=False) as log:
                handlers: Handlers = {"epoch": log, "score": on_score}
                run_workers(job, self.setup.workers, len(trainings), handlers)
        low_fidelity = StudyConfig.from_metadata(study.user_attrs).low_fidelity
        self.console.print(finals_table(rows, finals, low_fidelity))

    def test_accuracy(self, study: optuna.Study, winner: TrialRow) -> float:
        """The winner's test accuracy (0 to 1) after training on all training images; kept in the study."""
        import torch

        from ..report.epoch_log import EpochLog
        from ..report.write import study_folder
        from ..training.device import describe_machine
        from ..training.run_store import RunStore, metadata_of

        setup, seed = self.setup, self.setup.config.seed
        stored = study.user_attrs.get("winner", {})
        if (stored.get("key"), stored.get("seed")) == (winner.key, seed):
            self.console.print(f"Retrained before: {stored['folder']}")
            return float(stored["test_accuracy"])
        self.console.print(f"Retraining the winner on all {len(self.data.train):,} training images")
        job = RetrainJob(
            architecture=Architecture.make(winner.architecture),
            recipe=self.recipe_of(winner),
            seeds=(seed,),
            source=setup.source,
            last_only=True,
        )
        runs: list[Run] = []
        with EpochLog(self.console, setup.recipe.epochs, 1) as log:
            retrain_seeds(job, self.data, 1, log, runs.append)
        (run,) = runs
        name, device = f"trial-{winner.trial}", describe_machine(torch.device(setup.source.device))
        limit = setup.budget.max_params
        metadata = metadata_of(name, job.architecture, job.recipe, self.data, device, limit)
        metadata |= {"trial": winner.trial, "plain": setup.source.engine == "torch"}
        store = RunStore(study_folder(REPORTS, study), name, metadata)
        store.add(run)
        accuracy = run.result.accuracy
        result = {"key": winner.key, "seed": seed, "test_accuracy": accuracy, "folder": str(store.folder)}
        study.set_user_attr("winner", result)
        self.console.print(f"Written: {store.folder}")
        return accuracy

    def recipe_of(self, row: TrialRow) -> Recipe:
        """The recipe of a candidate as finalist and winner."""
        if row.recipe is None:
            return self.setup.recipe
        own = stored_recipe(row.recipe, f"trial {row.trial}: recipe")
        return own.with_epochs(self.setup.recipe.epochs)
