"""``python -m nas_mnist.search``: find the best all-convolutional network within a parameter budget."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .architecture import Architecture
from .cli import as_path, check_name, run, typed, whole
from .cost import Budget
from .errors import InputError, NoResultError
from .files import check_new, check_writable, write_bytes
from .recipe import MAX_EPOCHS, load_recipe
from .space import Draws, SearchSpace, Survey
from .workers import Handlers, WorkersLostError, auto_workers, parse_workers, run_workers
from .zoo import load as load_from_zoo
from .zoo import names as zoo_names

if TYPE_CHECKING:
    import optuna
    import torch
    from rich.console import Console

    from .data import DataSet
    from .results import TrialRow
    from .tasks import SearchTask

REPORTS = Path("reports")


def search(
    trials: Annotated[
        int, typer.Option(parser=whole(1, 100_000), metavar="N", help="Candidates to train.")
    ] = 50,
    max_params: Annotated[
        int, typer.Option(parser=whole(1, 10**9), metavar="N", help="The budget.")
    ] = 20_000,
    epochs: Annotated[
        int | None,
        typer.Option(
            parser=whole(1, MAX_EPOCHS), metavar="N", help="For every candidate; else the recipe's."
        ),
    ] = None,
    study: Annotated[str, typer.Option(help="The same name continues the same study.")] = "nas_mnist",
    storage: Annotated[str, typer.Option(help="Database URL.")] = "sqlite:///studies/nas_mnist.db",
    space: Annotated[str | None, typer.Option(metavar="FILE", help="Search space, TOML.")] = None,
    recipe: Annotated[str, typer.Option(metavar="NAME|FILE.toml", help="How to train.")] = "default",
    dataset: Annotated[str, typer.Option(help="mnist, fashion-mnist, idx:FOLDER, npz:FILE...")] = "mnist",
    data_dir: Annotated[str | None, typer.Option(metavar="DIR", help="Holds MNIST/raw.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    workers: Annotated[str, typer.Option(metavar="N|auto", help="Processes that train at once.")] = "auto",
    seed: Annotated[
        int, typer.Option(parser=whole(0, 2**31 - 1), metavar="N", help="Of draws, weights and order.")
    ] = 0,
    timeout: Annotated[float | None, typer.Option(metavar="MINUTES", help="Start nothing later.")] = None,
    retrain: Annotated[bool, typer.Option(help="Retrain the winner and read the test images.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Also write the summary here; must be new.")
    ] = None,
) -> None:
    """Search for the best all-convolutional network within a parameter budget.

    The same command again continues the same study up to the same total.
    """
    check_name("--study", study)
    if timeout is not None and not 0 < timeout <= 1e6:
        raise InputError(f"--timeout: {timeout} (use minutes above 0)")
    processes = parse_workers(workers)
    SearchSpace.load(as_path(space))  # what is wrong with it is said before any data is read
    trained_by = load_recipe(recipe)
    trained_by = trained_by if epochs is None else trained_by.with_epochs(epochs)
    check_writable(REPORTS, "reports")
    copy_to = as_path(json_file)
    if copy_to is not None:
        check_new(copy_to, "--json")

    from .data import load
    from .device import pick_device
    from .storages import dashboard_command, losing
    from .study import Identity, check_space, open_study
    from .tasks import SearchTask
    from .training import check_enough

    where = pick_device(device)
    data = load(dataset, as_path(data_dir))
    drawn_from = _space(as_path(space), data)
    check_enough(data.split()[0], trained_by)
    survey = check_space(drawn_from, Budget(max_params), seed)
    identity = Identity(
        drawn_from.digest, trained_by.digest, f"{data.name} {data.fingerprint}", max_params, trained_by.epochs
    )
    task = SearchTask(
        storage=storage,
        study=study,
        total=trials,
        space=drawn_from,
        budget=Budget(max_params),
        recipe=trained_by,
        dataset=data.name,
        data_dir=as_path(data_dir),
        device=where.type,
        seed=seed,
        timeout=None if timeout is None else timeout * 60,
    )
    count = processes or auto_workers(where.type)
    plan = _Plan(task, data, where, trials, count, retrain, quiet, copy_to)
    opened = open_study(storage, study, identity, plan.facts(), plan.reference())
    look = dashboard_command(storage)
    again = _command(storage)
    try:
        with losing(storage):
            opened.set_user_attr("command", again)
            opened.set_user_attr("reproduce", plan.repeat())
            plan.announce(opened, survey)
            plan.search(opened)
            plan.finish(opened)
    except KeyboardInterrupt:
        plan.interrupted(opened, again)
        raise
    finally:
        plan.console.print(f"Look into the study with:\n{look}", soft_wrap=True)


@dataclass(frozen=True)
class _Plan:
    """Everything a search was asked to do, checked."""

    task: SearchTask
    data: DataSet
    device: torch.device
    trials: int
    workers: int
    retrain: bool
    quiet: bool
    copy_to: Path | None  # of the summary

    @property
    def console(self) -> Console:
        from .report.live import screen

        return screen(self.quiet)

    def facts(self) -> dict[str, object]:
        """What the study stores for people."""
        from .device import describe_device
        from .retrain import versions

        return {
            "seed": self.task.seed,
            "space": self.task.space.model_dump(mode="json"),
            "recipe": self.task.recipe.model_dump(mode="json"),
            "data": self.data.source,
            "data_note": self.data.note,
            "device": describe_device(self.device),
            "versions": versions(),
        }

    def announce(self, study: optuna.Study, survey: Survey) -> None:
        """Say what begins."""
        from .device import describe_device

        say = self.console.print
        say(
            f"[bold]Searching[/bold] for at most {self.task.budget.max_params:,} parameters: study "
            f"{study.study_name!r}, {self.trials} candidates, {self.task.recipe.epochs} epochs, "
            f"{describe_device(self.device)}, {self.workers} worker{'s' * (self.workers > 1)}",
        )
        say(f"Data: {self.data.source}; one in six is held out to choose")
        self._warn()
        share = survey.feasible / survey.tried
        say(f"Space: {share:.1%} of {survey.tried:,} random draws fit the budget")

    def search(self, study: optuna.Study) -> None:
        """Train candidates until the total is reached."""
        from .report.live import SearchDisplay
        from .report.notes import note_study, note_trial
        from .report.tables import counts_line
        from .results import trial_rows
        from .storages import dashboard_command
        from .study import count_verdicts, counted, recover

        recover(study)
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
            except WorkersLostError:
                if counted(study) < self.trials:
                    raise
            except NoResultError as error:
                self.console.print(f"Ended early: {error}")
        else:
            have = f"The study has its {self.trials} candidates (--trials N: for more)"
            self.console.print(have)
        self.console.print(f"Trials: {counts_line(count_verdicts(study))}")

    def repeat(self) -> str:
        """The command that trains the winner again; it knows the data set from the study."""
        from .storages import shown

        options = ["--study", self.task.study, "--storage", shown(self.task.storage)]
        if self.task.data_dir is not None:
            options += ["--data-dir", str(self.task.data_dir)]
        return shlex.join(["python", "-m", "nas_mnist.reproduce", "best", "--seeds", "3", *options])

    def interrupted(self, study: optuna.Study, again: str) -> None:
        """Say what is kept and how to go on."""
        from .report.tables import counts_line
        from .study import count_verdicts

        self.console.print(f"Interrupted. Kept: {counts_line(count_verdicts(study))}")
        self.console.print(f"Continue with:\n{again}", soft_wrap=True)

    def finish(self, study: optuna.Study) -> None:
        """Show the best candidates; retrain the winner and read the test images once."""
        from .report.layers import layer_table
        from .report.subjects import of_study
        from .report.tables import SHOWN, best_table, requirement_table
        from .report.write import study_folder, write_report
        from .results import best_rows, trial_rows
        from .retrain import requirements

        rows = best_rows(trial_rows(study), SHOWN)
        if not rows:
            raise NoResultError("no candidate was trained to the last epoch (raise --trials or --timeout)")
        winner = rows[0]
        architecture = Architecture.make(winner.architecture)
        say = self.console.print
        say(best_table(rows))
        known = [name for name in zoo_names() if load_from_zoo(name).architecture.key == architecture.key]
        also = f", which is {known[0]!r} of the zoo" if known else ""
        say(f"The winner: trial {winner.trial}, key {architecture.key}{also}")
        say(layer_table(architecture), markup=False)
        accuracy, judge = winner.validation_accuracy or 0.0, "validation images"
        if self.retrain:
            accuracy, judge = self._test_accuracy(study, winner), "test images, last epoch, one seed"
        met = requirements(architecture, self.task.recipe.epochs, accuracy, self.data.name)
        say(requirement_table(met, f"The requirements ({judge})"))
        self._warn()
        say(f"Repeat it over seeds with:\n{self.repeat()}", soft_wrap=True)
        folder = study_folder(REPORTS, study)
        say(f"Report: {write_report(folder, [of_study(study, self.task.data_dir)])}")
        if self.copy_to is not None:
            write_bytes(self.copy_to, (folder / "summary.json").read_bytes())

    def _test_accuracy(self, study: optuna.Study, winner: TrialRow) -> float:
        """The winner's test accuracy after training on all training images, kept in the study."""
        from .device import describe_device
        from .report.files import write_runs
        from .report.live import EpochLog
        from .report.write import study_folder
        from .tasks import RetrainTask, retrain_seeds

        stored = study.user_attrs.get("winner", {})
        if (stored.get("key"), stored.get("seed")) == (winner.key, self.task.seed):
            self.console.print(f"Retrained before: {stored['folder']}")
            return float(stored["test_accuracy"])
        images = len(self.data.train)
        self.console.print(f"Retraining the winner on all {images:,} training images")
        task = RetrainTask(
            architecture=Architecture.make(winner.architecture),
            recipe=self.task.recipe,
            seeds=(self.task.seed,),
            dataset=self.task.dataset,
            data_dir=self.task.data_dir,
            device=self.task.device,
            last_only=True,
        )
        with EpochLog(self.console, self.task.recipe.epochs, 1) as log:
            (result,) = retrain_seeds(task, self.data, 1, log)
        device = describe_device(self.device)
        name, recipe = f"trial-{winner.trial}", self.task.recipe
        parent = study_folder(REPORTS, study)
        folder = write_runs(parent, name, [result], recipe, self.data, device, trial=winner.trial)
        accuracy = result.result.accuracy
        read = {"key": winner.key, "seed": self.task.seed, "test_accuracy": accuracy, "folder": str(folder)}
        study.set_user_attr("winner", read)
        self.console.print(f"Written: {folder}")
        return accuracy

    def reference(self) -> Draws | None:
        """The draws that make the reference network, where the space holds it."""
        try:
            return self.task.space.encode(load_from_zoo("reference").architecture)
        except InputError:
            return None

    def _warn(self) -> None:
        if self.data.note:
            self.console.print(f"[bold yellow]{self.data.note}[/bold yellow]")


def _command(storage: str) -> str:
    """What was typed to start this search, without the storage's password."""
    from .storages import shown

    return typed("search").replace(shlex.quote(storage), shlex.quote(shown(storage)))


def _space(path: Path | None, data: DataSet) -> SearchSpace:
    """The space in a file, which must fit the data, or the package's own, fitted to them."""
    space = SearchSpace.load(path)
    if path is None:
        return space.model_copy(update={"input_shape": data.shape, "classes": data.classes})
    got, wanted = list(space.input_shape), list(data.shape)
    if got != wanted:
        raise InputError(f"space: input_shape {got} does not fit {data.name} (use {wanted})")
    if space.classes != data.classes:
        raise InputError(f"space: classes {space.classes} does not fit {data.name} (use {data.classes})")
    return space


if __name__ == "__main__":
    run(search)
