"""What a trial tries: an architecture and a recipe, drawn from a space."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

import optuna

from ..core.errors import InputError, NoResultError
from ..models.architecture import Architecture
from ..models.cost import Budget, cost_of
from ..recipes.recipe import Recipe
from ..space.recipe_space import draw_recipe
from ..space.sampling import RandomSampler, TrialLike
from ..space.space import SearchSpace, Survey

SURVEY_DRAWS = 2_000  # random draws that are counted before a search begins
RESCUE_DRAWS = 20_000  # random draws among which one new candidate within the budget is looked for
FILLED_SHARE = 0.1  # of these draws in a space with `fill`: to scale a width takes as long as twenty draws


class Candidate(NamedTuple):
    """An architecture, and how it is trained."""

    architecture: Architecture
    recipe: Recipe
    key: str  # equal exactly for equal candidates of one study


@dataclass(frozen=True)
class CandidateSpace:
    """Everything from which candidates are drawn."""

    space: SearchSpace
    budget: Budget
    recipe: Recipe
    vary_recipe: bool = False  # draw a few training choices around the recipe, too

    def given(self, architecture: Architecture, recipe: Recipe | None) -> Candidate:
        """A network that was not drawn, trained by its own recipe or else by the search's as it is."""
        own = self.recipe if recipe is None else recipe.with_epochs(self.recipe.epochs)
        return self._candidate(architecture, own)

    def draw(self, trial: TrialLike) -> Candidate:
        """Draw every choice; raises `InputError` afterwards where the draws make no network."""
        try:
            architecture = self.space.draw(trial, self.budget)
        finally:  # the sampler learns more from a trial with all draws
            recipe = draw_recipe(self.recipe, trial) if self.vary_recipe else self.recipe
        return self._candidate(architecture, recipe)

    def _candidate(self, architecture: Architecture, recipe: Recipe) -> Candidate:
        key = architecture.key + (f"-{recipe.digest[:8]}" if self.vary_recipe else "")
        return Candidate(architecture, recipe, key)


def check_space(space: SearchSpace, budget: Budget, seed: int) -> Survey:
    """The costs of random candidates of a space; raises `NoResultError` where none fits the budget."""
    for most in (SURVEY_DRAWS, RESCUE_DRAWS):
        survey = space.survey(budget, _tries(space, most), random.Random(seed))
        if survey.feasible:
            break
    if survey.feasible:
        return survey
    least = ", ".join(f"{count:,} {unit}" for unit, count in survey.least.items())
    raise NoResultError(
        f"no candidate of this space fits {budget}: the least that {survey.tried:,} draws have is {least} "
        "(raise the budget, or take another space)"
    )


def _tries(space: SearchSpace, most: int) -> int:
    return most if space.fill is None else int(FILLED_SHARE * most)


def enqueue_feasible(study: optuna.Study, candidates: CandidateSpace, rng: random.Random) -> None:
    """Queue a random candidate that fits the budget and that the study has not seen.

    Candidates are counted, never built. Raises `NoResultError` where `RESCUE_DRAWS` draws hold none.
    """
    seen = {trial.user_attrs.get("key") for trial in study.get_trials(deepcopy=False)}
    tries = _tries(candidates.space, RESCUE_DRAWS)
    for _ in range(tries):
        suggest = RandomSampler(rng)
        try:
            candidate = candidates.draw(suggest)
        except InputError:
            continue
        if candidate.key not in seen and candidates.budget.fits(cost_of(candidate.architecture)):
            study.enqueue_trial(suggest.params)
            return
    raise NoResultError(
        f"the space is exhausted: none of {tries:,} random draws is a new candidate within "
        f"{candidates.budget}"
    )
