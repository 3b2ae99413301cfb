"""What a search does once everything that was asked for is checked, from its first line to its last."""

from __future__ import annotations

import contextlib
import shlex
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import InputError, NoResultError, StorageLostError
from ..core.fileio import write_bytes
from ..core.process_pool import Handlers, WorkersLostError, run_workers
from ..models.architecture import Architecture
from ..models.cost import COST_NAMES
from ..models.zoo import load as load_from_zoo
from ..models.zoo import names as zoo_names
from ..recipes.recipe import Recipe, make_recipe, unvaried
from ..space.sampling import Draws
from ..space.space import Survey

if TYPE_CHECKING:
    import optuna
    import torch
    from rich.console import Console

    from ..data.dataset import DataSet
    from ..study.results import TrialRow
    from ..training.final import Run
    from .jobs import SearchTask

REPORTS = Path("reports")
FINAL_SHARE = 5  # so many times as many images as candidates have finalists
RARE = 0.05  # a share of draws that fit
PATIENCE = 0.5  # seconds; an interrupted search waits so long for its storage


@dataclass(frozen=True)
class Plan:
    """Everything a search was asked to do, checked."""

    task: SearchTask
    recipe: Recipe  # of finalists and winner; candidates may be trained for fewer epochs
    data: DataSet
    device: torch.device
    trials: int
    workers: int
    finals: tuple[int, int]  # how many are trained again, with how many further seeds
    retrain: bool
    quiet: bool
    copy_to: Path | None  # of the summary

    @property
    def console(self) -> Console:
        """Where everything is said."""
        from ..report.live import screen

        return screen(self.quiet)

    def facts(self) -> dict[str, object]:
        """What the study stores for people."""
        from ..study.results import FINAL_IMAGES
        from ..training.device import describe_machine
        from ..training.final import versions

        return {
            "seed": self.task.seed,
            "space": self.task.space.model_dump(mode="json"),
            "recipe": self.recipe.model_dump(mode="json"),
            "data": self.data.source,
            "data_note": self.data.note,
            FINAL_IMAGES: self._final_images(),
            "device": describe_machine(self.device, self.workers),
            "versions": versions(),
        }

    def run(self, study: optuna.Study, survey: Survey, again: str) -> None:
        """Search, choose, retrain, report; ``again`` is the command that goes on."""
        from ..study.storage import dashboard_command, losing

        try:
            with losing(self.task.storage):
                study.set_user_attr("command", again)
                study.set_user_attr("dataset", self.data.name)
                study.set_user_attr("reproduce", self.repeat())
                self._announce(study, survey)
                self._search(study)
                self._finish(study)
        except KeyboardInterrupt:
            self._interrupted(study)
            raise
        finally:
            look = f"Look into the study with:\n{dashboard_command(self.task.storage)}"
            self.console.print(look, soft_wrap=True, markup=False)

    def _announce(self, study: optuna.Study, survey: Survey) -> None:
        """Say what begins."""
        from ..training.device import describe_device

        say = self.console.print
        say(
            f"[bold]Searching[/bold] for at most {self.task.budget}{self._weighed()}: study "
            f"{study.study_name!r}, {self.trials} candidates, {self._epochs(study)}, "
            f"{describe_device(self.device, self.workers)}",
        )
        say(f"Data: {self.data.source}; one in six is held out to choose", markup=False)
        self._warn()
        share = survey.feasible / survey.tried
        say(f"Space: {share:.1%} of {survey.tried:,} random draws fit the budget")
        if share < RARE and self.task.space.fill is None:
            say("Few do: of the spaces 'filled' and 'tiny' (--space) nearly every draw fits")

    def _epochs(self, study: optuna.Study) -> str:
        from ..study.results import FINAL_IMAGES

        few, many = self.task.recipe.epochs, self.recipe.epochs
        said = f"{few} epochs" + (f" (of finalists {many})" if few < many else "")
        if self.task.images is None:
            return said
        final = study.user_attrs.get(FINAL_IMAGES)
        finalists = "all" if final is None else f"{final:,}"
        return f"{said} of {self.task.images:,} images (of finalists: of {finalists})"

    def _final_images(self) -> int | None:
        """How many images finalists are trained on, an epoch; None: all but those that choose."""
        learn, _ = self.data.split()
        images = None if self.task.images is None else FINAL_SHARE * self.task.images
        return None if images is None or images >= len(learn) else images

    def _weighed(self) -> str:
        against = self.task.against
        return f", accuracy against {COST_NAMES[against]}" if against else ""

    def _search(self, study: optuna.Study) -> None:
        """Train candidates until the total is reached."""
        from ..report.live import SearchDisplay
        from ..report.notes import note_interrupted, note_study, note_trial
        from ..report.tables import counts_line
        from ..study.recovery import recover
        from ..study.results import trial_rows
        from ..study.storage import dashboard_command
        from ..study.study import count_verdicts, counted

        recover(study)
        note_interrupted(study)
        if self.reference() is None:
            self.console.print("The reference network is not in this space: the search starts without it.")
        display = SearchDisplay(self.console, self.trials, self.task.recipe.epochs, trial_rows(study))

        def ended(row: TrialRow) -> None:
            display.ended(row)
            note_study(study, dashboard_command(self.task.storage))
            note_trial(study, row.trial)

        handlers: Handlers = {
            "candidate": display.candidate,
            "epoch": display.epoch,
            "ended": ended,
            "lost": display.lost,
        }
        missing = self.trials - counted(study)
        if missing > 0:
            try:
                with display:
                    run_workers(self.task, self.workers, missing, handlers)
            except WorkersLostError as error:
                if counted(study) < self.trials:
                    raise WorkersLostError(f"{error}; the same command goes on") from None
            except StorageLostError:
                raise
            except NoResultError as error:
                self.console.print(f"Ended early: {error}")
        else:
            have = f"The study has its {self.trials} candidates (--trials N: for more)"
            self.console.print(have)
        self.console.print(f"Trials: {counts_line(count_verdicts(study))}")

    def repeat(self) -> str:
        """The command that trains the winner again; it knows the data set from the study."""
        from ..study.storage import shown

        options = ["--study", self.task.study, "--storage", shown(self.task.storage)]
        if self.task.data_dir is not None:
            options += ["--data-dir", str(self.task.data_dir)]
        return shlex.join(["python", "-m", "nas_mnist.reproduce", "best", "--seeds", "3", *options])

    def _interrupted(self, study: optuna.Study) -> None:
        """Say what is kept, unless the storage takes its time to answer."""
        from ..report.tables import counts_line
        from ..study.study import count_verdicts

        def ask() -> None:
            with contextlib.suppress(Exception):
                told.append(counts_line(count_verdicts(study)))

        told: list[str] = []
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(PATIENCE)
        for line in told:
            self.console.print(f"Kept: {line}")

    def _finish(self, study: optuna.Study) -> None:
        """Show the best candidates; retrain the winner and read the test images once."""
        from ..report.layers import layer_table
        from ..report.tables import SHOWN, best_table, requirement_table
        from ..study.results import StudyResults, best_rows, trial_rows
        from ..training.final import requirements

        rows = best_rows(trial_rows(study), max(SHOWN, self.finals[0]))
        if not rows:
            self._report(study)
            raise NoResultError("no candidate was trained to the last epoch (raise --trials or --timeout)")
        say = self.console.print
        say(best_table(rows[:SHOWN]))
        if self.task.against:
            front = StudyResults.read(study).front
            say(best_table(front, "The front"))
            rows = best_rows(front, self.finals[0])
        if self.finals[0] > 1 and len(rows) == 1:
            say("One candidate came to the last epoch: there is nothing to choose among by further seeds")
        self._train_again(study, rows[: self.finals[0]])
        winner = StudyResults.read(study).winner
        assert winner is not None
        architecture = Architecture.make(winner.architecture)
        known = [name for name in zoo_names() if load_from_zoo(name).architecture.key == architecture.key]
        also = f", which is {known[0]!r} of the zoo" if known else ""
        say(f"The winner: trial {winner.trial}, key {architecture.key}{also}")
        say(layer_table(architecture), markup=False)
        if self.task.vary_recipe:
            own, usual = self._recipe_of(winner).model_dump(), self.recipe.model_dump()
            changed = {name: value for name, value in own.items() if value != usual[name]}
            words = ", ".join(f"{name} {value}" for name, value in changed.items())
            say(f"Its recipe differs in: {words or 'nothing'}", markup=False)
        accuracy, judge = winner.validation_accuracy or 0.0, "validation images"
        if self.retrain:
            accuracy, judge = self._test_accuracy(study, winner), "test images, last epoch, one seed"
        met = requirements(architecture, self.recipe.epochs, accuracy, self.data.name, self.task.budget)
        say(requirement_table(met, f"The requirements ({judge})"))
        self._warn()
        say(f"Repeat it over seeds with:\n{self.repeat()}", soft_wrap=True, markup=False)
        self._report(study)

    def _report(self, study: optuna.Study) -> None:
        from ..report.items import of_study
        from ..report.write import study_folder, write_report

        folder = study_folder(REPORTS, study)
        self.console.print(f"Report: {write_report(folder, [of_study(study, self.task.data_dir)])}")
        if self.copy_to is not None:
            write_bytes(self.copy_to, (folder / "summary.json").read_bytes())

    def _train_again(self, study: optuna.Study, rows: list[TrialRow]) -> None:
        """Train the best candidates with further seeds, for the best of many scores is too good by luck."""
        from ..report.live import EpochLog
        from ..report.tables import finals_table
        from ..study.results import FINAL_IMAGES, FINALS, trained_shortly
        from .jobs import Final, FinalsTask

        finals: dict[str, dict[str, float]] = study.user_attrs.get(FINALS, {})
        judged = not finals and study.user_attrs.get("winner", {}).get("key") == rows[0].key
        if len(rows) < 2 or judged:  # the test images were read for the best of them, by an earlier search
            return
        first = self.task.seed + 1
        jobs = [
            Final(
                f"trial {row.trial}, seed {seed}",
                row.key or "",
                Architecture.make(row.architecture),
                self._recipe_of(row),
                seed,
            )
            for row in rows
            for seed in range(first, first + self.finals[1])
            if str(seed) not in finals.get(row.key or "", {})
        ]
        where = self.task.dataset, self.task.data_dir, self.task.device
        task = FinalsTask(jobs, *where, study.user_attrs.get(FINAL_IMAGES))

        def score(key: str, seed: int, accuracy: float) -> None:
            finals.setdefault(key, {})[str(seed)] = accuracy
            study.set_user_attr(FINALS, finals)

        if jobs:
            self.console.print(f"Training the best {len(rows)} again, to choose by the mean of their seeds")
            with EpochLog(self.console, self.recipe.epochs, len(jobs), lines=False) as log:
                run_workers(task, self.workers, len(jobs), {"epoch": log, "score": score})
        self.console.print(finals_table(rows, finals, trained_shortly(study.user_attrs)))

    def _test_accuracy(self, study: optuna.Study, winner: TrialRow) -> float:
        """The winner's test accuracy after training on all training images, kept in the study."""
        from ..report.live import EpochLog
        from ..report.write import study_folder
        from ..training.device import describe_machine
        from ..training.run_store import Results, facts_of
        from .jobs import RetrainTask, retrain_seeds

        stored = study.user_attrs.get("winner", {})
        if (stored.get("key"), stored.get("seed")) == (winner.key, self.task.seed):
            self.console.print(f"Retrained before: {stored['folder']}")
            return float(stored["test_accuracy"])
        images = len(self.data.train)
        self.console.print(f"Retraining the winner on all {images:,} training images")
        task = RetrainTask(
            architecture=Architecture.make(winner.architecture),
            recipe=self._recipe_of(winner),
            seeds=(self.task.seed,),
            dataset=self.task.dataset,
            data_dir=self.task.data_dir,
            device=self.task.device,
            last_only=True,
        )
        runs: list[Run] = []
        with EpochLog(self.console, self.recipe.epochs, 1) as log:
            retrain_seeds(task, self.data, 1, log, runs.append)
        (run,) = runs
        name, where = f"trial-{winner.trial}", describe_machine(self.device)
        facts = facts_of(name, task.architecture, task.recipe, self.data, where, self.task.budget.max_params)
        kept = Results(study_folder(REPORTS, study), name, facts | {"trial": winner.trial})
        kept.add(run)
        accuracy = run.result.accuracy
        read = {"key": winner.key, "seed": self.task.seed, "test_accuracy": accuracy}
        study.set_user_attr("winner", read | {"folder": str(kept.folder)})
        self.console.print(f"Written: {kept.folder}")
        return accuracy

    def reference(self) -> Draws | None:
        """The draws that make the reference network, where the space holds it."""
        try:
            draws = self.task.space.encode(load_from_zoo("reference").architecture)
        except InputError:
            return None
        return draws | (unvaried(self.task.recipe) if self.task.vary_recipe else {})

    def _recipe_of(self, row: TrialRow) -> Recipe:
        """How a candidate is trained as finalist and winner."""
        if row.recipe is None:
            return self.recipe
        return make_recipe(row.recipe, f"trial {row.trial}: recipe").with_epochs(self.recipe.epochs)

    def _warn(self) -> None:
        if self.data.note:
            self.console.print(f"[bold yellow]{self.data.note}[/bold yellow]")
