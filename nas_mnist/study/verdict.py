"""How a trial ended, and which trials count."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum

import optuna
from optuna.trial import FrozenTrial, TrialState


class Verdict(StrEnum):
    """How a trial ended; stored as the user attribute ``verdict``."""

    TRAINED = "trained"  # to the last epoch
    STOPPED = "stopped early"  # by the pruner
    OVER_BUDGET = "over budget"
    IMPOSSIBLE = "impossible"  # the draws make no network
    DUPLICATE = "duplicate"  # the candidate was trained before
    FAILED = "failed"  # in training; the attribute ``reason`` says why
    INTERRUPTED = "interrupted"
    UNNEEDED = "not needed"  # other processes already train the last candidates

    @property
    def counts(self) -> bool:
        """Whether the trial is one of ``--trials``."""
        return self in (Verdict.TRAINED, Verdict.STOPPED, Verdict.FAILED)


def verdict_of(trial: FrozenTrial) -> Verdict | None:
    """The verdict of a trial; None while it waits or runs."""
    if trial.state == TrialState.FAIL:
        return Verdict.INTERRUPTED
    stored = trial.user_attrs.get("verdict")
    return Verdict(stored) if stored else None


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial has ended and is one of ``--trials``."""
    verdict = verdict_of(trial)
    return verdict is not None and verdict.counts


def count_verdicts(study: optuna.Study) -> Counter[Verdict]:
    """The number of ended trials by verdict."""
    verdicts = (verdict_of(trial) for trial in study.get_trials(deepcopy=False))
    return Counter(verdict for verdict in verdicts if verdict)


def count_candidates(study: optuna.Study) -> int:
    """The number of ended trials that are among ``--trials``."""
    return sum(counts(trial) for trial in study.get_trials(deepcopy=False))
