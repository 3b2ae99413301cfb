"""Importances of the choices of a space, estimated from a study's trials."""

from __future__ import annotations

import warnings

import optuna

from .curve import curve_of
from .pruner import rung

MIN_TRIALS = 10  # with fewer, importances say nothing
MAX_TRIALS = 1_000  # of more, evenly spaced ones stand for all: the estimator needs a copy of each


def param_importances(study: optuna.Study, epochs: int) -> dict[str, float]:
    """The share of each parameter in the validation accuracy at the pruner's rung; shares add up to 1.

    Every candidate that does not fail comes as far. Optuna's default evaluator, PED-ANOVA
    (arxiv.org/abs/2304.10255). Empty below `MIN_TRIALS` candidates that were drawn.
    """
    epoch = rung(epochs) or 1
    trials = study.get_trials(deepcopy=False)
    known = [trial for trial in trials if trial.params and epoch in curve_of(trial)]
    known = known[:: -(-len(known) // MAX_TRIALS) or 1]
    if len(known) < MIN_TRIALS:
        return {}
    copy = optuna.create_study(direction="maximize")
    for trial in known:
        copy.add_trial(
            optuna.trial.create_trial(
                params=trial.params,
                distributions=trial.distributions,
                value=curve_of(trial)[epoch].accuracy,
            )
        )
    with warnings.catch_warnings(action="ignore"):  # of parameters that few candidates have
        return dict(optuna.importance.get_param_importances(copy))
