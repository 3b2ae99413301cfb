"""Importances of the choices of a space, estimated from a study's trials."""

from __future__ import annotations

import warnings

import optuna

from .pruner import rungs

MIN_TRIALS = 10  # with fewer, importances say nothing


def param_importances(study: optuna.Study, epochs: int) -> dict[str, float]:
    """The share of each parameter in the accuracy at the second rung; shares add up to 1.

    Half of the candidates come as far (of 20 ``epochs``, two), and earlier accuracies say little. Optuna's
    default evaluator, PED-ANOVA (arxiv.org/abs/2304.10255). Empty below `MIN_TRIALS` candidates.
    """
    epoch = rungs(epochs)[:2][-1]
    known = [trial for trial in study.get_trials(deepcopy=False) if epoch in trial.intermediate_values]
    if len(known) < MIN_TRIALS:
        return {}
    copy = optuna.create_study(direction="maximize")
    for trial in known:
        copy.add_trial(
            optuna.trial.create_trial(
                params=trial.params,
                distributions=trial.distributions,
                value=trial.intermediate_values[epoch],
            )
        )
    with warnings.catch_warnings(action="ignore"):  # of parameters that few candidates have
        return dict(optuna.importance.get_param_importances(copy))
