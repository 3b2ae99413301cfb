"""The lines that a search prints, beside its tables."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..models import zoo
from ..models.architecture import Architecture
from ..models.cost import COST_NAMES
from .setup import SearchSetup

if TYPE_CHECKING:
    import optuna
    from rich.console import Console

    from ..data.dataset import DataSet
    from ..space.space import Survey
    from ..study.race import Answer
    from ..study.results import TrialRow

RARE = 0.05  # a share of draws that fit the budget
STORAGE_PATIENCE = 0.5  # seconds; the time that an interrupted search gives its storage


@dataclass(frozen=True)
class SearchMessages:
    """The lines of one search on one console."""

    setup: SearchSetup
    data: DataSet
    console: Console

    def announce(self, study: optuna.Study, survey: Survey) -> None:
        """Print the budget, the data, the space and the networks that are tried first."""
        import torch

        from ..report.progress import print_warning
        from ..study.given import waiting_names
        from ..study.verdict import count_candidates
        from ..training.device import describe_device
        from ..training.stability import stability_warning

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
        self.warn()
        share = survey.feasible / survey.tried
        say(
            f"Space: {share:.1%} of {survey.tried:,} random draws fit the budget; "
            f"their median has {survey.median_params:,} parameters"
        )
        if share < RARE and setup.space.fill is None:
            say("Few draws fit: of the spaces 'default' and 'tiny' (--space) nearly every draw does")
        if names := waiting_names(study):
            is_full = count_candidates(study) >= setup.config.trials
            fate = "not tried: the study has its candidates (--trials N: for more)"
            say(f"Given, and {fate if is_full else 'tried first'}: {', '.join(names)}", markup=False)
        for given in setup.given:
            warning = stability_warning(given.architecture, given.recipe or setup.recipe)
            print_warning(self.console, warning and f"{given.name}: {warning}")
        say(f"n/{setup.config.trials} counts trained candidates; trial numbers also count rejected draws")

    def estimate(self, rows: Sequence[TrialRow], trainings: float) -> None:
        """Print how long the search will take, from its first candidates and the finalists' ``trainings``.

        A search that narrows its budget has smaller networks later, and takes less.
        """
        config, setup, train = self.setup.config, self.setup, self.data.split()[0]
        speed = sum(row.images for row in rows) / sum(row.seconds for row in rows)  # of one worker
        candidates = config.trials * (setup.images or len(train)) * setup.candidate_recipe.epochs
        after = trainings * (setup.final_images(len(train)) or len(train))
        after = setup.recipe.epochs * (after + (2.5 * len(self.data.train) if config.retrain else 0))
        minutes = (images / speed / setup.workers / 60 for images in (candidates, after))
        most = "at most " if config.narrows else ""
        first, last = (f"{max(one, 1):.0f}" if one else "" for one in minutes)
        finals = f", {last} for the finalists and their tests" if last else ""
        self.console.print(f"Estimated minutes: {most}{first} for all candidates{finals}")

    def _training(self, study: optuna.Study) -> str:
        """Epochs and images of candidates and finalists, in words."""
        from ..report.progress import counted
        from ..study.results import FINAL_IMAGES

        few, many = self.setup.candidate_recipe.epochs, self.setup.recipe.epochs
        epochs = counted(few, "epoch") + (f" (finalists: {many})" if few < many else "")
        if self.setup.images is None:
            return epochs
        images = study.user_attrs.get(FINAL_IMAGES)
        finalists = "all" if images is None else f"{images:,}"
        return f"{epochs} of {self.setup.images:,} images (finalists: {finalists})"

    def verdict(self, asked: Answer, tested: Mapping[str, float]) -> None:
        """Print the requirements, and whether the answer that was asked for meets them."""
        from ..report.tables import requirement_table
        from ..training.requirements import requirements

        architecture, say = Architecture.make(asked.architecture), self.console.print
        known = [name for name in zoo.names() if zoo.load(name).architecture.key == architecture.key]
        say(f"{asked.name}, key {architecture.key}{f', {known[0]!r} of the zoo' if known else ''}")
        usual = self.setup.recipe.model_dump(mode="json")
        changes = [f"{name} {value}" for name, value in asked.recipe.items() if value != usual.get(name)]
        if changes or self.setup.config.search_recipe:
            say(f"Its recipe differs in: {', '.join(changes) or 'nothing'}", markup=False)
        accuracy, budget = tested.get(asked.key), self.setup.budget
        target = self.setup.target if self.setup.config.narrows else None
        met = requirements(architecture, self.setup.recipe.epochs, accuracy, self.data.name, budget, target)
        scored_on = "the test images are unread" if accuracy is None else "test images, last epoch, one seed"
        say(requirement_table(met, f"The requirements ({scored_on})"))
        self.warn()

    def kept(self, study: optuna.Study) -> None:
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

    def warn(self) -> None:
        """Print a warning where the data are not the full set."""
        from ..report.progress import print_warning

        print_warning(self.console, self.data.note)
