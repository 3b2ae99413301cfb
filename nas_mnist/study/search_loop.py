"""The loop of a search: draw and train candidates until the study has its total."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState

from ..core.defaults import SAMPLERS
from ..core.errors import NoResultError
from .candidate import enqueue_feasible
from .objective import Objective, Values
from .owner import OWNER
from .pruner import LateMedianPruner
from .recovery import recover, requeue, running_trials
from .samplers import make_sampler
from .verdict import Verdict, count_candidates, counts, verdict_of

MAX_REJECTED = 30  # rejected or duplicate draws in a row; then a candidate that fits is queued
MAX_FAILED = 5  # candidates in a row that fail for the same reason; then the search gives up
POLL_INTERVAL = 1.0  # seconds; how often the trials of other processes are read
ADVICE = {  # by the reason of failures
    "loss not finite": "lower the recipe's learning_rate",
    "out of memory": "use fewer workers or smaller batches",
    "device failed": "see the system's log, or use --device cpu",
}


def _ignore(_: object) -> None:
    pass


def search(
    study: optuna.Study,
    objective: Objective,
    total: int,
    *,
    seed: str,
    sampler: str | BaseSampler | type[BaseSampler] = SAMPLERS[0],
    pruner: BasePruner | None = None,
    deadline: float | None = None,
    on_trial_end: Callable[[FrozenTrial], None] = _ignore,
    on_idle: Callable[[bool], None] = _ignore,
) -> None:
    """Train candidates until the study has ``total`` that count (`Verdict.counts`), of all processes.

    Rejected and duplicate draws do not count. Where other processes already train the missing candidates,
    this one waits, because they may die; ``on_idle`` is called with whether it waits.

    Args:
        seed: decides the draws together with the number of trials so far. With the seed alone a continued
            study would repeat its first draws.
        sampler: as `make_sampler` takes it.
        pruner: instead of the search's own; it sees accuracies at the epochs of `eval_epochs`.
        deadline: in seconds of `time.monotonic`; no trial begins later.
        on_trial_end: called with every trial of this process.

    Raises:
        NoResultError: the space has no further candidate within the budget, or the newest `MAX_FAILED`
            candidates failed for the same reason.
    """
    drawn = len(study.get_trials(deepcopy=False))
    rng = random.Random(f"{seed}-{drawn}")
    study.sampler = make_sampler(sampler, rng.randrange(2**31))
    own = LateMedianPruner(objective.candidates.recipe.epochs, objective.compare_by)
    study.pruner = own if pruner is None else pruner
    while deadline is None or time.monotonic() < deadline:
        recover(study)
        missing, running = total - count_candidates(study), running_trials(study)
        if missing <= 0 and all(OWNER in trial.user_attrs for trial in running):
            return
        is_idle = missing <= len(running)
        on_idle(is_idle)
        if is_idle:
            time.sleep(POLL_INTERVAL)
            continue
        _train_one(study, objective, rng, on_trial_end)
        _check_failures(study)


def _train_one(
    study: optuna.Study,
    objective: Objective,
    rng: random.Random,
    on_trial_end: Callable[[FrozenTrial], None],
) -> None:
    """Run trials until one counts, was interrupted, or is not needed any more."""
    rejected = 0
    while True:
        trial = _run_trial(study, objective)
        on_trial_end(trial)
        if verdict_of(trial) in (None, Verdict.INTERRUPTED, Verdict.UNNEEDED) or counts(trial):
            return
        rejected += 1
        if rejected % MAX_REJECTED == 0:
            enqueue_feasible(study, objective.candidates, rng)


def _run_trial(study: optuna.Study, objective: Objective) -> FrozenTrial:
    """Run one trial; Ctrl-C puts its draws back into the queue."""
    numbers: list[int] = []

    def run(trial: Trial) -> Values:
        numbers.append(trial.number)
        return objective(trial)

    def stored() -> list[FrozenTrial]:
        return [trial for trial in study.get_trials(deepcopy=False) if trial.number in numbers]

    try:
        study.optimize(run, n_trials=1)
    except KeyboardInterrupt:
        for trial in stored():
            if trial.state == TrialState.FAIL:
                requeue(study, trial)
        raise
    except ValueError as error:
        # Optuna refuses the value where another process has ended the trial: this one slept for too long.
        if not str(error).startswith("Cannot tell"):
            raise
    if objective.interrupted:  # while the trial ended, which was completed first
        raise KeyboardInterrupt
    return stored()[0]


def _check_failures(study: optuna.Study) -> None:
    """Raise `NoResultError` with advice where the newest candidates failed for the same reason."""
    ended = [
        (trial.datetime_complete, trial)
        for trial in study.get_trials(deepcopy=False)
        if counts(trial) and trial.datetime_complete
    ]
    newest = [trial for _, trial in sorted(ended, key=lambda pair: pair[0])[-MAX_FAILED:]]
    reasons = {_failure(trial) for trial in newest}
    if len(newest) == MAX_FAILED and len(reasons) == 1 and (reason := reasons.pop()):
        advice = ADVICE.get(reason, "see the report")
        raise NoResultError(f"{MAX_FAILED} candidates in a row failed: {reason} ({advice})")


def _failure(trial: FrozenTrial) -> str:
    """The reason of a failed candidate without its epoch; empty for any other candidate."""
    failed = verdict_of(trial) is Verdict.FAILED
    return str(trial.user_attrs.get("reason", "")).partition(" in epoch")[0] if failed else ""
