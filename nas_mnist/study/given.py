"""Networks that a search is given: tried first, as candidates like any others.

A given network is a waiting trial that carries its architecture instead of values of the search space. It may
bring a recipe of its own: the networks of the zoo do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from ..models.architecture import Architecture
from ..recipes.recipe import Recipe, stored_recipe

GIVEN = "nas_mnist:given"  # system attribute of a trial: architecture and recipe (or null) as data
ORIGIN = "origin"  # user attribute: `FOUND`, or "given: NAME"
FOUND = "found"


def enqueue_given(study: optuna.Study, given: Sequence[tuple[str, Architecture, Recipe | None]]) -> None:
    """Queue the networks (name, architecture, own recipe or None) that the study does not have."""
    trials = study.get_trials(deepcopy=False)
    known = [trial.system_attrs.get(GIVEN) for trial in trials]
    keys = {trial.user_attrs.get("key") for trial in trials}
    for name, architecture, recipe in given:
        data = {
            "architecture": architecture.model_dump(mode="json"),
            "recipe": recipe and recipe.model_dump(mode="json"),
        }
        if data not in known and architecture.key not in keys:
            known.append(data)
            add_waiting(study, data, {ORIGIN: f"given: {name}"})


def waiting_names(study: optuna.Study) -> list[str]:
    """The names of the given networks that are not tried yet."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    origins = (str(trial.user_attrs.get(ORIGIN, "")) for trial in trials)
    return [origin.removeprefix("given: ") for origin in origins if origin.startswith("given: ")]


def add_waiting(study: optuna.Study, given: dict[str, Any], user_attrs: dict[str, Any]) -> None:
    """Queue a trial that trains what it is given: the content of `GIVEN`."""
    study.add_trial(
        create_trial(
            state=TrialState.WAITING,
            system_attrs={"fixed_params": {}, GIVEN: given},
            user_attrs=user_attrs,
        )
    )


def given_to(trial: FrozenTrial) -> tuple[Architecture, Recipe | None] | None:
    """What a trial was given; None for one that draws its candidate."""
    stored = trial.system_attrs.get(GIVEN)
    if stored is None:
        return None
    recipe = stored["recipe"]
    return Architecture.make(stored["architecture"]), recipe and stored_recipe(recipe, "recipe")
