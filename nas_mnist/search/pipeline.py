"""The course of a search, in order: announce, search, choose among finalists, retrain the winner, report."""

from __future__ import annotations

import contextlib
import shlex
import threading
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ..core.defaults import REPORTS
from ..core.errors import InputError, NoResultError, StorageLostError
from ..core.fileio import write_bytes
from ..core.process_pool import Handlers, WorkersLostError, run_workers
from ..models import zoo
from ..models.architecture import Architecture
from ..models.cost import COST_NAMES
from ..space.encode import encode
from ..space.recipe_space import encode_recipe
from .config import SearchConfig
from .finals import Finals
from .jobs import SearchJob
from .setup import SearchSetup, prepare

if TYPE_CHECKING:
    import optuna
    from rich.console import Console

    from ..data.dataset import DataSet
    from ..space.sampling import Params
    from ..space.space import Survey
    from ..study.results import TrialRow

RARE = 0.05  # a share of draws that fit the budget
STORAGE_PATIENCE = 0.5  # seconds; the time that an interrupted search gives its storage


def run_search(config: SearchConfig, command: str = "") -> optuna.Study:
    """Run or continue a search to its report; returns the study.

    ``command`` is the command line that continues it, for the study's note and page. Raises `InputError` for
    options that cannot be used here, and `NoResultError` for a search that ends without a winner.
    """
    from ..study.candidate import check_space
    from ..study.storage import storage_guard
    from ..study.study import open_study

    setup, data = prepare(config)
    survey = check_space(setup.space, setup.budget, config.seed)
    pipeline = SearchPipeline(setup, data)
    study_config, metadata = setup.study_config(data), pipeline.metadata()
    with storage_guard(config.storage):
        study = open_study(config.storage, config.study, study_config, metadata, pipeline.first_candidate())
    pipeline.run(study, survey, command or f"python -m nas_mnist.search --study {config.study}")
    return study


@dataclass(frozen=True)
class SearchPipeline:
    """One search, with everything checked."""

    setup: SearchSetup
    data: DataSet

    @cached_property
    def console(self) -> Console:
        """The console of all output."""
        from ..report.progress import make_console

        return make_console(self.setup.config.quiet)

    def metadata(self) -> dict[str, object]:
        """The user attributes that a new study gets, for people to read."""
        import torch

        from ..core.versions import versions
        from ..study.results import FINAL_IMAGES
        from ..training.device import describe_machine

        train_data, _ = self.data.split()
        return {
            "seed": self.setup.config.seed,
            "space": self.setup.space.model_dump(mode="json"),
            "recipe": self.setup.recipe.model_dump(mode="json"),
            "data": self.data.source,
            "data_note": self.data.note,
            FINAL_IMAGES: self.setup.finalist_images(len(train_data)),
            "device": describe_machine(torch.device(self.setup.source.device), self.setup.workers),
            "versions": versions(),
        }

    def first_candidate(self) -> Params | None:
        """The parameters that draw the reference network; None if the space does not contain it."""
        try:
            params = encode(self.setup.space, zoo.load("reference").architecture)
        except InputError:
            return None
        return params | (encode_recipe(self.setup.recipe) if self.setup.config.search_recipe else {})

    def run(self, study: optuna.Study, survey: Survey, again: str) -> None:
        """Run the search; ``again`` is the command line that continues it."""
        from ..study.storage import dashboard_command, storage_guard

        storage = self.setup.config.storage
        try:
            with storage_guard(storage):
                study.set_user_attr("command", again)
                study.set_user_attr("dataset", self.data.name)
                study.set_user_attr("reproduce", self.reproduce_command())
                self._announce(study, survey)
                self._train_candidates(study)
                self._finish(study)
        except KeyboardInterrupt:
            self._print_kept(study)
            raise
        finally:
            look = f"Look into the study with:\n{dashboard_command(storage)}"
            self.console.print(look, soft_wrap=True, markup=False)

    def reproduce_command(self) -> str:
        """The command line that trains the winner again over seeds."""
        from ..study.storage import hide_password

        config = self.setup.config
        options = ["--study", config.study, "--storage", hide_password(config.storage)]
        if config.data_dir is not None:
            options += ["--data-dir", str(config.data_dir)]
        return shlex.join(["python", "-m", "nas_mnist.reproduce", "best", "--seeds", "3", *options])

    def _announce(self, study: optuna.Study, survey: Survey) -> None:
        import torch

        from ..training.device import describe_device

        setup, say = self.setup, self.console.print
        metric = setup.config.cost_metric
        objective = f", accuracy against {COST_NAMES[metric]}" if metric else ""
        device = describe_device(torch.device(setup.source.device), setup.workers)
        say(
            f"[bold]Searching[/bold] for at most {setup.budget}{objective}: study {study.study_name!r}, "
            f"{setup.config.trials} candidates, {self._training(study)}, {device}"
        )
        if setup.note:
            say(setup.note, markup=False)
        say(f"Data: {self.data.source}; one in six is held out for validation", markup=False)
        self._warn()
        share = survey.feasible / survey.tried
        say(f"Space: {share:.1%} of {survey.tried:,} random draws fit the budget")
        if share < RARE and setup.space.fill is None:
            say("Few draws fit: of the spaces 'filled' and 'tiny' (--space) nearly every draw does")
        if self.first_candidate() is None:
            say("The reference network is not in this space: the search starts without it.")

    def _training(self, study: optuna.Study) -> str:
        """Epochs and images of candidates and finalists, in words."""
        from ..study.results import FINAL_IMAGES

        few, many = self.setup.candidate_recipe.epochs, self.setup.recipe.epochs
        epochs = f"{few} epochs" + (f" (finalists: {many})" if few < many else "")
        if self.setup.images is None:
            return epochs
        images = study.user_attrs.get(FINAL_IMAGES)
        finalists = "all" if images is None else f"{images:,}"
        return f"{epochs} of {self.setup.images:,} images (finalists: {finalists})"

    def _train_candidates(self, study: optuna.Study) -> None:
        """Train candidates until the study has its total."""
        from ..report.notes import write_missing_notes, write_study_note, write_trial_note
        from ..report.search_display import SearchDisplay
        from ..report.tables import counts_line
        from ..study.recovery import recover
        from ..study.results import trial_rows
        from ..study.storage import dashboard_command
        from ..study.verdict import count_candidates, count_verdicts

        config = self.setup.config
        recover(study)
        write_missing_notes(study)
        epochs = self.setup.candidate_recipe.epochs
        display = SearchDisplay(self.console, config.trials, epochs, trial_rows(study))

        def on_ended(row: TrialRow) -> None:
            display.ended(row)
            write_study_note(study, dashboard_command(config.storage))
            write_trial_note(study, row.trial)

        handlers: Handlers = {
            "candidate": display.candidate,
            "epoch": display.epoch,
            "ended": on_ended,
            "lost": display.lost,
        }
        missing = config.trials - count_candidates(study)
        if missing > 0:
            try:
                with display:
                    run_workers(SearchJob(self.setup), self.setup.workers, missing, handlers)
            except WorkersLostError as error:
                if count_candidates(study) < config.trials:
                    raise WorkersLostError(f"{error}; the same command continues the search") from None
            except StorageLostError:
                raise
            except NoResultError as error:
                self.console.print(f"Ended early: {error}")
        else:
            self.console.print(f"The study has its {config.trials} candidates (--trials N: for more)")
        self.console.print(f"Trials: {counts_line(count_verdicts(study))}")

    def _finish(self, study: optuna.Study) -> None:
        """Choose the winner, retrain it, read the test images once, and report."""
        from ..report.layer_table import layer_table
        from ..report.tables import requirement_table
        from ..training.requirements import requirements

        finals = Finals(self.setup, self.data, self.console)
        winner = finals.choose(study)
        if winner is None:
            self._report(study)
            raise NoResultError("no candidate was trained to the last epoch (raise --trials or --timeout)")
        say, architecture = self.console.print, Architecture.make(winner.architecture)
        known = [name for name in zoo.names() if zoo.load(name).architecture.key == architecture.key]
        also = f", which is {known[0]!r} of the zoo" if known else ""
        say(f"The winner: trial {winner.trial}, key {architecture.key}{also}")
        say(layer_table(architecture), markup=False)
        if self.setup.config.search_recipe:
            own, usual = finals.recipe_of(winner).model_dump(), self.setup.recipe.model_dump()
            changes = [f"{name} {value}" for name, value in own.items() if value != usual[name]]
            say(f"Its recipe differs in: {', '.join(changes) or 'nothing'}", markup=False)
        accuracy, scored_on = winner.validation_accuracy or 0.0, "validation images"
        if self.setup.config.retrain:
            accuracy, scored_on = finals.test_accuracy(study, winner), "test images, last epoch, one seed"
        epochs, budget = self.setup.recipe.epochs, self.setup.budget
        met = requirements(architecture, epochs, accuracy, self.data.name, budget)
        say(requirement_table(met, f"The requirements ({scored_on})"))
        self._warn()
        say(f"Repeat it over seeds with:\n{self.reproduce_command()}", soft_wrap=True, markup=False)
        self._report(study)

    def _report(self, study: optuna.Study) -> None:
        from ..report.items import item_of_study
        from ..report.sections import sections_of
        from ..report.write import study_folder, write_report

        config = self.setup.config
        folder = study_folder(REPORTS, study)
        page = write_report(folder, sections_of([item_of_study(study, config.data_dir)]))
        self.console.print(f"Report: {page}")
        if config.json_file is not None:
            write_bytes(config.json_file, (folder / "summary.json").read_bytes())

    def _print_kept(self, study: optuna.Study) -> None:
        """Print what an interrupted search has stored, unless the storage is slow to answer."""
        from ..report.tables import counts_line
        from ..study.verdict import count_verdicts

        lines: list[str] = []

        def read() -> None:
            with contextlib.suppress(Exception):
                lines.append(counts_line(count_verdicts(study)))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(STORAGE_PATIENCE)
        for line in lines:
            self.console.print(f"Kept: {line}")

    def _warn(self) -> None:
        if self.data.note:
            self.console.print(f"[bold yellow]{self.data.note}[/bold yellow]")
