"""The course of a search, in order: announce, search, race finalists, retrain the answers, report."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from math import sqrt
from typing import TYPE_CHECKING

from ..core.defaults import DEFAULT_STORAGE, DEFAULT_STUDY, REPORTS
from ..core.errors import InputError, NoResultError, StorageLostError
from ..core.fileio import write_bytes
from ..core.process_pool import Handlers, WorkersLostError, run_workers
from .config import SearchConfig
from .finals import AT_ONCE, Finals
from .jobs import SearchJob
from .messages import SearchMessages
from .retrain import retrain_answer
from .setup import SearchSetup, prepare

if TYPE_CHECKING:
    import optuna
    from rich.console import Console

    from ..data.dataset import DataSet
    from ..space.space import Survey
    from ..study.results import TrialRow
    from ..study.samplers import Tuning

DASHBOARD_HINT = "from afar: ssh -L 8080:localhost:8080 HOST; behind a prefix, as of Jupyter, it stays blank"
STEPS = (1, 1, 2, 4, 4, 4)  # of a search that narrows its budget: candidates, relative; the last ones decide


def run_search(config: SearchConfig, command: str, tuning: Tuning | None = None) -> optuna.Study:
    """Run or continue a search to its report; returns the study.

    ``command`` is the command line or the call that continues it, for the study's note and page. ``tuning``
    has a sampler or a pruner that the search takes instead of its own. Raises `InputError` for options that
    cannot be used here, and `NoResultError` for a search that ends without a winner.
    """
    from ..report.progress import loading

    with loading("Loading torch", config.quiet):
        import torch  # noqa: F401

        from ..study.candidate import check_space
        from ..study.given import enqueue_given
        from ..study.storage import storage_guard
        from ..study.study import open_study

    pickled = tuning.pickled() if tuning else None
    if tuning and tuning.pruner and config.cost_metric:
        raise InputError("pruner: Optuna's take one objective (use objective='accuracy')")
    setup, data = prepare(config)  # data that take long to read show so themselves
    with loading("Preparing the study", config.quiet):
        survey = check_space(setup.space, setup.budget, config.seed)
        pipeline = SearchPipeline(replace(setup, tuning=pickled), data)
        study_config, metadata = setup.study_config(data), pipeline.metadata()
        with storage_guard(config.storage):
            study = open_study(config.storage, config.study, study_config, metadata)
            enqueue_given(study, setup.given)
    pipeline.run(study, survey, command)
    return study


@dataclass(frozen=True)
class SearchPipeline:
    """One search, with everything checked."""

    setup: SearchSetup
    data: DataSet
    first: list[TrialRow] = field(default_factory=list)  # trained by this command, one a worker; of all steps

    @cached_property
    def console(self) -> Console:
        """The console of all output."""
        from ..report.progress import make_console

        return make_console(self.setup.config.quiet)

    @property
    def messages(self) -> SearchMessages:
        """The lines that are printed."""
        return SearchMessages(self.setup, self.data, self.console)

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
            FINAL_IMAGES: self.setup.final_images(len(train_data)),
            "device": describe_machine(torch.device(self.setup.source.device), self.setup.workers),
            "versions": versions(),
        }

    def run(self, study: optuna.Study, survey: Survey, again: str) -> None:
        """Run the search; ``again`` is the command line that continues it."""
        from ..study.concurrency import finals_claimed
        from ..study.storage import dashboard_command, storage_guard

        storage = self.setup.config.storage
        try:
            with storage_guard(storage):
                study.set_user_attr("command", again)
                study.set_user_attr("dataset", self.data.name)
                study.set_user_attr("sampler", self.setup.config.sampler)
                study.set_user_attr("reproduce", self._reproduce_best())
                self.messages.announce(study, survey)
                train = self._narrow if self.setup.config.narrows else self._train_candidates
                ending = train(study)
                with finals_claimed(study):
                    self._finish(study, ending)
                self._check_total(study, ending)
        except KeyboardInterrupt:
            self.messages.kept(study)
            raise
        finally:
            look = f"Look into the study with ({DASHBOARD_HINT}):\n{dashboard_command(storage)}"
            self.console.print(look, soft_wrap=True, markup=False)

    def _reproduce_best(self) -> str:
        """The command line that trains the best answer again over seeds."""
        from ..study.storage import hide_password

        config = self.setup.config
        options = ["--study", config.study] if config.study != DEFAULT_STUDY else []
        if config.storage != DEFAULT_STORAGE:
            options += ["--storage", hide_password(config.storage)]
        if config.data_dir is not None:
            options += ["--data-dir", str(config.data_dir)]
        return shlex.join(["python", "-m", "nas_mnist.reproduce", "best", "--seeds", "3", *options])

    @property
    def _final_trainings(self) -> float:
        """About how often finalists and copies of the best one are trained, in a full budget's trainings."""
        config = self.setup.config
        if config.narrows:
            return len(STEPS) * min(self.setup.workers, AT_ONCE) + config.final_seeds
        # Copies have a half, a quarter and an eighth of the parameters, or lie between them.
        return config.final_seeds * (config.finalist_count + 2) if config.finalist_count > 1 else 0

    def _narrow(self, study: optuna.Study) -> str:
        """Train candidates step by step, each step at a smaller budget while the target is met.

        The budget is halved until no candidate of a step meets the target, and then bisected. The first steps
        ask little and have few candidates. Returns how the last step ended that lacks candidates.
        """
        ending = ""
        finals, config = Finals(self.setup, self.data, self.console), self.setup.config
        params, meets, misses = self.setup.budget.max_params, 0, 0
        given = min(len(self.setup.given), config.trials)  # the first step tries them all
        for step, part in enumerate(accumulate(STEPS), 1):
            total = min(max(round(config.trials * part / sum(STEPS)), given, step), config.trials)
            self.console.print(f"Step {step} of {len(STEPS)}: at most {params:,} parameters")
            pipeline = replace(self, setup=replace(self.setup, step_params=params, step_trials=total))
            ending = pipeline._train_candidates(study) or ending
            if (found := finals.meets_target(study, params)) is not None:
                meets = found
                params = round(sqrt(meets * misses)) if misses else meets // 2
            elif meets:
                misses = params
                params = round(sqrt(meets * misses))
        return ending

    def _train_candidates(self, study: optuna.Study) -> str:
        """Train candidates until the study has its total; returns why it has fewer, empty if it has them."""
        from ..report.notes import write_missing_notes, write_study_note, write_trial_note
        from ..report.progress import counted
        from ..report.search_display import SearchDisplay
        from ..report.tables import counts_line
        from ..study.given import FOUND
        from ..study.recovery import recover
        from ..study.results import trial_rows
        from ..study.storage import dashboard_command
        from ..study.verdict import Verdict, count_candidates, count_verdicts

        setup, config, ending = self.setup, self.setup.config, ""
        recover(study)
        write_missing_notes(study)
        epochs = setup.candidate_recipe.epochs
        display = SearchDisplay(self.console, setup.trials, epochs, trial_rows(study))

        first = self.first

        def on_ended(row: TrialRow) -> None:
            display.ended(row)
            # A given network may be far from what is drawn.
            counts = row.origin == FOUND or len(setup.given) >= config.trials
            if row.verdict is Verdict.TRAINED and counts and len(first) < setup.workers:
                first.append(row)
                if len(first) == setup.workers:
                    self.messages.estimate(first, self._final_trainings)
            write_study_note(study, dashboard_command(config.storage))
            write_trial_note(study, row.trial)

        handlers: Handlers = {
            "candidate": display.candidate,
            "epoch": display.epoch,
            "ended": on_ended,
            "lost": display.lost,
        }
        missing = setup.trials - count_candidates(study)
        if missing > 0:
            begin = "Starting {}: to load the data and compile kernels takes about 10 seconds"
            self.console.print(begin.format(counted(min(setup.workers, missing), "worker")))
            try:
                with display:
                    run_workers(SearchJob(setup), setup.workers, missing, handlers)
            except WorkersLostError as error:
                if count_candidates(study) < setup.trials:
                    raise WorkersLostError(f"{error}; the same command continues the search") from None
            except StorageLostError:
                raise
            except NoResultError as error:
                ending = str(error)
            if not ending and count_candidates(study) < setup.trials:
                ending = "--timeout is over"
            if ending:
                self.console.print(f"Ended early: {ending}", markup=False)
        elif setup.step_trials is None:
            self.console.print(f"The study has its {setup.trials} candidates (--trials N: for more)")
        self.console.print(f"Trials: {counts_line(count_verdicts(study))}")
        return ending

    def _check_total(self, study: optuna.Study, ending: str) -> None:
        """Raise `NoResultError` for a search that ended without its total."""
        from ..study.verdict import count_candidates

        count, total = count_candidates(study), self.setup.config.trials
        if count < total:
            raise NoResultError(f"the study has {count} of {total} candidates: {ending}")

    def _finish(self, study: optuna.Study, ending: str) -> None:
        """Choose the answers, retrain them, read the test images once for each, and report."""
        from ..report.answers import BESIDE, answer_lines, beside_lines, retrained_accuracies
        from ..report.notes import add_answers, mark_answers
        from ..study.results import StudyResults
        from ..training.loop import TrainingError

        finals, say = Finals(self.setup, self.data, self.console), self.console.print
        answers = (finals.choose_smallest if self.setup.config.narrows else finals.choose)(study)
        if not answers:
            self._report(study)
            why = f": {ending}" if ending else ", also as a finalist (raise --trials or --timeout)"
            raise NoResultError(f"no candidate was trained to the last epoch{why}")
        beside = beside_lines(StudyResults.read(study), self.setup.target)
        study.set_user_attr(BESIDE, beside)
        if self.setup.config.retrain:
            for one in {answer.key: answer for answer in answers.values()}.values():
                try:
                    retrain_answer(self.setup, self.data, self.console, study, one)
                except TrainingError as error:
                    say(f"{one.name}: {error}", style="red", markup=False)
        results = StudyResults.read(study)
        _, asked = results.asked_for or ("", answers["most_accurate"])
        self.messages.verdict(asked, retrained_accuracies(results))
        lines = [*answer_lines(results), *beside]
        for line in lines:
            say(line, soft_wrap=True, markup=False)
        add_answers(study, lines)
        mark_answers(study, answers)
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
