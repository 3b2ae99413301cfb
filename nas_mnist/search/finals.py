"""The end of a search: finalists race with fresh seeds, and the answers are chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from ..core.process_pool import Handlers, run_here, run_workers
from ..models.architecture import Architecture
from ..recipes.recipe import Recipe, stored_recipe
from ..study.given import FOUND
from ..study.race import ANSWERS, COPIES, RACE, Answer, Finalist, FinalScores
from ..study.results import FINAL_IMAGES, StudyResults, TrialRow, best_rows, trial_rows
from ..training.jobs import ValidateJob, Validation
from .narrow import between, narrow
from .setup import SearchSetup

if TYPE_CHECKING:
    import numpy as np
    import optuna
    from rich.console import Console

    from ..data.dataset import DataSet

MOST_ACCURATE, SMALLER, SMALLEST = "most_accurate", "smaller", "smallest"
DIVISORS = (2, 4, 8)  # of the winner's parameters, for the two smaller answers
AT_ONCE = 4  # finalists of a step of a search that narrows its budget, at most
BISECTIONS = 2  # at most, between a size that is good enough for an answer and one that is not


@dataclass(frozen=True)
class Finals:
    """Chooses the answers of a search."""

    setup: SearchSetup
    data: DataSet
    console: Console

    def choose(self, study: optuna.Study) -> dict[str, Answer]:
        """The answers by name, stored in the study; empty if no candidate was trained to the end."""
        from ..report.tables import best_table, candidates_table

        count, results = self.setup.config.finalist_count, StudyResults.read(study)
        rows = self._candidates(results.rows)
        if not rows:
            return {}
        self.console.print(best_table(rows))
        scores = self._scores(study)
        raced = [row for row in rows if scores.seeds(row.key or "")]  # by an earlier command
        if self.setup.config.cost_metric:
            self.console.print(candidates_table(results.front, "Pareto front"))
            rows = self._candidates(results.front)
        if count == 1 and rows[0] not in raced:
            return self._stored(study, {MOST_ACCURATE: self._untried(rows[0])})
        best = rows[:1] if count == 1 else _with_a_found_one(rows, count)
        finalists = {one.key: one for one in map(self._finalist, [*best, *self._cheapest(rows), *raced])}
        return self._stored(study, self._race(study, scores, list(finalists.values())))

    def _cheapest(self, front: Sequence[TrialRow]) -> list[TrialRow]:
        """The smallest candidate of a front that meets the target by its own score."""
        target = self.setup.target
        if target is None or not self.setup.config.cost_metric:
            return []
        enough = [row for row in front if (row.validation_accuracy or 0.0) >= target]
        return sorted(enough, key=lambda row: row.n_params or 0)[:1]

    def _candidates(self, rows: Sequence[TrialRow]) -> list[TrialRow]:
        """The trained candidates, the best first; without those that an earlier version let pass."""
        most = self.setup.budget.max_params
        return [row for row in best_rows(list(rows), len(rows)) if (row.n_params or 0) <= most]

    def _stored(self, study: optuna.Study, answers: dict[str, Answer]) -> dict[str, Answer]:
        study.set_user_attr(ANSWERS, {name: answer.to_json() for name, answer in answers.items()})
        return answers

    def _finalist(self, row: TrialRow) -> Finalist:
        return Finalist(
            name=f"trial-{row.trial}",
            key=row.key or "",
            architecture=Architecture.make(row.architecture),
            recipe=self.recipe_of(row),
            origin=row.origin,
            trial=row.trial,
        )

    def _untried(self, row: TrialRow) -> Answer:
        """The answer of a search without finalists: the best candidate by its own score."""
        accuracy, loss = row.validation_accuracy or 0.0, row.validation_loss or 0.0
        return Answer.of(self._finalist(row), accuracy, loss, seeds=0, images=self._images)

    @property
    def _images(self) -> int:
        """The number of validation images."""
        return len(self.data.split()[1])

    def _race(self, study: optuna.Study, scores: FinalScores, finalists: list[Finalist]) -> dict[str, Answer]:
        """Train finalists with fresh seeds until one is ahead or the effort is spent, then narrow it."""
        from ..report.progress import counted
        from ..report.tables import race_table

        first, most = self.setup.config.seed + 1, self.setup.config.final_seeds
        seeds_each = counted(most, "fresh seed")
        self.console.print(f"Training {len(finalists)} candidates again, each with at most {seeds_each}")
        left = finalists
        for seed in range(first, first + most):
            self._train(study, scores, left, [seed])
            so_far = scores.only(range(first, seed + 1))  # as if later seeds were not trained yet
            best = min(left, key=lambda one: so_far.loss(one.key))
            left = [one for one in left if one is best or not so_far.is_worse(one.key, best.key)]
            if len(left) == 1:
                break
        if scores.has_failed(best.key):  # so have all
            return {}
        seeds = sorted(scores.seeds(best.key))
        copies = {one.key: one for one in self._earlier_copies(study, scores)}
        copies |= {one.key: one for one in self._narrow(study, scores, best, seeds)}
        close = [*left, *(one for one in copies.values() if scores.seeds(one.key) >= set(seeds))]
        best = min(close, key=lambda one: scores.loss(one.key))  # a copy may be ahead
        tried = [*finalists, *copies.values()]
        self.console.print(race_table(tried, scores, best, close))
        return self._answers(scores, best, close, tried)

    def _scores(self, study: optuna.Study) -> FinalScores:
        from ..study.storage import artifact_folder

        storage, identity = self.setup.config.storage, study.user_attrs["identity"]
        told_apart = sha256(f"{storage} {identity}".encode()).hexdigest()[:8]  # studies of one name
        folder = artifact_folder(storage) / "finals" / f"{study.study_name}-{told_apart}"
        return FinalScores(study.user_attrs.get(RACE, {}), folder)

    def meets_target(self, study: optuna.Study, params: int) -> int | None:
        """The parameters of the smallest of the best candidates of at most ``params`` that meets the target.

        They are trained as finalists, with one seed: as many as there are workers, up to `AT_ONCE`. None
        if no candidate meets it, or there is none.
        """
        rows = [row for row in trial_rows(study) if (row.n_params or 0) <= params]
        best = self._candidates(rows)[: min(self.setup.workers, AT_ONCE)]
        target, scores = self.setup.target or 0.0, self._scores(study)
        finalists = [self._finalist(row) for row in best]
        self._train(study, scores, finalists, [self.setup.config.seed + 1])
        for one in finalists:
            accuracy = f"{scores.accuracy(one.key):.2%} of the validation images"
            got = "the training failed" if scores.has_failed(one.key) else accuracy
            said = f"{one.name}, {one.params:,} parameters, trained again: {got}, the target is {target:.2%}"
            self.console.print(said)
        return min((one.params for one in finalists if scores.accuracy(one.key) >= target), default=None)

    def choose_smallest(self, study: optuna.Study) -> dict[str, Answer]:
        """The answers of a search that narrowed its budget: of those trained as finalists, and of copies.

        The copies are of the smallest that meets the target.
        """
        from ..report.tables import race_table

        scores, target = self._scores(study), self.setup.target or 0.0
        rows = self._candidates(trial_rows(study))
        tried = [self._finalist(row) for row in rows if scores.seeds(row.key or "")]
        if all(scores.has_failed(one.key) for one in tried):
            return {}
        first, most = self.setup.config.seed + 1, self.setup.config.final_seeds
        seeds = range(first, first + most)

        def meets(one: Finalist) -> bool:
            return scores.accuracy(one.key) >= target

        copies = self._earlier_copies(study, scores)
        for one in sorted(tried, key=lambda one: one.params):
            if meets(one):
                self._train(study, scores, [one], seeds)
                if meets(one):
                    copies += self._bisect(study, scores, [one, *tried], meets, seeds)
                    break
        tried += {copy.key: copy for copy in copies}.values()
        best = min(tried, key=lambda one: scores.loss(one.key))
        self.console.print(race_table(tried, scores, best, tried))
        return self._stored(study, self._answers(scores, best, tried, tried))

    def _narrow(
        self, study: optuna.Study, scores: FinalScores, best: Finalist, seeds: Sequence[int]
    ) -> list[Finalist]:
        """Copies of the best finalist with fewer channels, trained with the same seeds.

        They have a half, a quarter and an eighth of its parameters, until one is neither as good as
        the best nor meets the target. Bisections look for the smallest that is as good, and for the smallest
        that meets the target.
        """
        target = self.setup.target
        wishes: list[Callable[[Finalist], bool]] = [lambda one: scores.is_as_good(one.key, best.key)]
        if target is not None:
            wishes.append(lambda one: scores.accuracy(one.key) >= target)
        copies: list[Finalist] = []
        for divisor in DIVISORS:
            copy = narrow(best, best.params // divisor)
            if copy is None or copy.key in {one.key for one in copies}:
                break
            copies.append(copy)
            self._train_copy(study, scores, copy, seeds)
            if not any(meets(copy) for meets in wishes):
                break
        for meets in wishes:
            copies += self._bisect(study, scores, [best, *copies], meets, seeds)
        return copies

    def _bisect(
        self,
        study: optuna.Study,
        scores: FinalScores,
        sizes: Sequence[Finalist],
        meets: Callable[[Finalist], bool],
        seeds: Sequence[int],
    ) -> list[Finalist]:
        """New copies of the first of ``sizes``, to find the smallest that meets a wish."""
        copies: list[Finalist] = []
        for _ in range(BISECTIONS):
            if (copy := between([*sizes, *copies], meets)) is None:
                break
            copies.append(copy)
            self._train_copy(study, scores, copy, seeds)
        return copies

    def _train_copy(
        self, study: optuna.Study, scores: FinalScores, copy: Finalist, seeds: Sequence[int]
    ) -> None:
        known = study.user_attrs.get(COPIES, {})
        study.set_user_attr(COPIES, known | {copy.key: [copy.trial, copy.params]})
        self._train(study, scores, [copy], seeds)

    def _earlier_copies(self, study: optuna.Study, scores: FinalScores) -> list[Finalist]:
        """The copies that an earlier command trained: they may be of another candidate."""
        answers = study.user_attrs.get(ANSWERS, {}).values()  # earlier versions stored no other copies
        known = {one["key"]: (one["trial"], one["n_params"]) for one in answers} | study.user_attrs.get(
            COPIES, {}
        )
        rows = {row.trial: row for row in self._candidates(trial_rows(study))}
        copies = [
            narrow(self._finalist(rows[trial]), params)
            for key, (trial, params) in known.items()
            if trial in rows and rows[trial].key != key
        ]
        return [one for one in copies if one is not None and one.key in known and scores.seeds(one.key)]

    def _train(
        self, study: optuna.Study, scores: FinalScores, finalists: Sequence[Finalist], seeds: Sequence[int]
    ) -> None:
        """Train finalists with the seeds that they lack, and store the scores."""
        from ..report.epoch_log import EpochLog

        trainings = [
            Validation(f"{one.name}, seed {seed}", one.key, one.architecture, one.recipe, seed)
            for one in finalists
            for seed in seeds
            if seed not in scores.seeds(one.key)
        ]

        names = {one.key: one.name for one in finalists}

        def on_score(key: str, seed: int, accuracy: float, losses: np.ndarray | None) -> None:
            scores.add(key, seed, accuracy, losses)
            study.set_user_attr(RACE, scores.to_json(study.user_attrs.get(RACE, {})))
            got = "the training failed" if losses is None else f"{accuracy:.2%}"
            self.console.print(f"  {names[key]}, seed {seed}: {got}")

        if trainings:
            job = ValidateJob(trainings, self.setup.source, study.user_attrs.get(FINAL_IMAGES))
            with EpochLog(self.console, self.setup.recipe.epochs, len(trainings), lines=False) as log:
                handlers: Handlers = {"epoch": log, "score": on_score}
                if min(self.setup.workers, len(trainings)) == 1:
                    run_here(job, len(trainings), handlers)
                else:
                    run_workers(job, self.setup.workers, len(trainings), handlers)

    def _answers(
        self, scores: FinalScores, best: Finalist, close: Sequence[Finalist], tried: Sequence[Finalist]
    ) -> dict[str, Answer]:
        """The three answers; ``close``: those that may be as good as the best."""

        def answer(one: Finalist, margin: float | None = None) -> Answer:
            accuracy, loss = scores.accuracy(one.key), scores.loss(one.key)
            return Answer.of(one, accuracy, loss, len(scores.seeds(one.key)), self._images, margin)

        as_good = [one for one in close if one is best or scores.is_as_good(one.key, best.key)]
        answers = {
            MOST_ACCURATE: answer(best),
            SMALLER: answer(min(as_good, key=lambda one: one.params)),
        }
        target = self.setup.target
        if target is not None:
            enough = [one for one in tried if scores.accuracy(one.key) >= target]
            if enough:
                smallest = min(enough, key=lambda one: one.params)
                answers[SMALLEST] = answer(smallest, scores.accuracy(smallest.key) - target)
        return answers

    def recipe_of(self, row: TrialRow) -> Recipe:
        """The recipe of a candidate as finalist and winner."""
        if row.recipe is None:
            return self.setup.recipe
        own = stored_recipe(row.recipe, f"trial {row.trial}: recipe")
        return own.with_epochs(self.setup.recipe.epochs)


def _with_a_found_one(rows: Sequence[TrialRow], count: int) -> list[TrialRow]:
    """The first of the best candidates, with the best one that was found among them."""
    chosen = list(rows[:count])
    found = next((row for row in rows if row.origin == FOUND), None)
    if found is not None and found not in chosen:
        chosen[count - 1 :] = [found]
    return chosen
