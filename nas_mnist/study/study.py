"""The study: where it is stored, what it was made with, who draws and who stops, and how it goes on."""

from __future__ import annotations

import random
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ..core.errors import InputError, NoResultError
from ..models.cost import COST_NAMES, Budget, cost_of, weighed_against
from ..space.sampling import Draws, RandomDraws
from ..space.space import SearchSpace, Survey
from .objective import Objective, Verdict, verdict_of
from .owner import OWNER
from .pruner import Halving
from .recovery import recover, requeue, requeue_once, running
from .storage import losing, open_storage, shown

DEFAULT_STUDY = "nas_mnist"
METRIC = "validation accuracy"
IDENTITY = "identity"  # user attribute of a study

SURVEY_DRAWS = 2_000  # random draws that are counted before a search begins
RESCUE_DRAWS = 20_000  # random draws among which one new candidate within the budget is looked for
MISSED_IN_A_ROW = 30  # rejected or duplicate draws; then such a candidate is put first in the queue
FAILED_IN_A_ROW = 5  # candidates, for the same reason; then the search gives up
ADVICE = {  # by the reason
    "loss not finite": "lower the recipe's learning_rate",
    "out of memory": "use fewer workers or smaller batches",
    "device failed": "see what the system says of it, or use --device cpu",
}
MAKING = 10  # seconds; a study that is not complete by then was left so by a process that died
POLL = 1.0  # seconds between two looks at what other processes train


@dataclass(frozen=True)
class Identity:
    """What a study is made with. A study goes on only with the same."""

    space: str  # digest
    recipe: str  # digest
    data: str  # kind and fingerprint of the training images
    split: str  # fingerprint of which of them choose
    max_params: int
    epochs: int
    search_recipe: bool | None = None  # True: every candidate has a recipe of its own
    max_macs: int | None = None
    max_memory: int | None = None
    objective: str | None = None  # one of `AIMS`; None: accuracy
    search_epochs: int | None = None  # of candidates; None: as many as of finalists and winner
    search_images: int | None = None  # that candidates are trained on, an epoch; None: as finalists

    @property
    def directions(self) -> list[StudyDirection]:
        """Of the study's aims."""
        return [StudyDirection.MAXIMIZE, *([StudyDirection.MINIMIZE] if self.objective else [])]

    def differences(self, stored: dict[str, Any]) -> list[str]:
        """In words, what ``stored`` (an earlier study's identity) has otherwise."""
        names = [name for name, value in vars(self).items() if stored.get(name) != value]
        if "epochs" in names and "recipe" in names:  # a recipe with other epochs is another recipe
            names.remove("recipe")
        return [
            _DIGESTS.get(name)
            or f"{name} {_in_words(name, stored.get(name))}, not {_in_words(name, getattr(self, name))}"
            for name in names
        ]


def _in_words(name: str, value: object) -> str:
    if value is None:
        return "all" if name == "search_images" else "none"
    return repr(value)


_DIGESTS = {
    "space": "another space",
    "recipe": "another recipe",
    "data": "other data",
    "split": "another split of the data",
}
LATER = {
    "split",
    "search_recipe",
    "max_macs",
    "max_memory",
    "objective",
    "search_epochs",
    "search_images",
}  # not in every study
_NO_IDENTITY = Identity("", "", "", "", 0, 0)


def stored_part(url: str, name: str, otherwise: int | None) -> int | None:
    """How many images the candidates of a study are trained on, an epoch; None: all.

    ``otherwise`` where there is no such study yet, or no storage that can be opened. Writes nothing.
    """
    try:
        storage = open_storage(url, create=False)
    except InputError:  # which whoever opens it to write will say
        return otherwise
    with losing(url):
        if name not in optuna.get_all_study_names(storage):
            return otherwise
        identity = optuna.load_study(study_name=name, storage=storage).user_attrs.get(IDENTITY)
    if not isinstance(identity, dict):  # another process makes it just now, or it is none of ours
        return otherwise
    part = identity.get("search_images")
    return part if isinstance(part, int) else None


def load_study(url: str, name: str) -> optuna.Study:
    """A study that exists, to read; raises `InputError`."""
    storage = open_storage(url, requeue_once, create=False)
    known = optuna.get_all_study_names(storage)
    if name not in known:
        others = " or ".join(f"--study {other}" for other in known) or "another --storage"
        raise InputError(f"study: {name!r} is not in {shown(url)} (use {others})")
    study = optuna.load_study(study_name=name, storage=storage)
    if not _is_ours(study):
        where = f"study: {name!r} in {shown(url)}"
        raise InputError(f"{where} was not made by this program (use another --study)")
    return study


def _is_ours(study: optuna.Study) -> bool:
    """Whether a study has what this program stores, so that it can be read without surprises."""
    facts, identity = study.user_attrs, study.user_attrs.get(IDENTITY)
    trials = study.get_trials(deepcopy=False)
    verdicts = {trial.user_attrs.get("verdict", Verdict.TRAINED) for trial in trials}
    return (
        isinstance(identity, dict)
        and set(vars(_NO_IDENTITY)) - LATER <= set(identity)
        and type(identity["max_params"]) is int
        and isinstance(identity["data"], str)
        and all(isinstance(facts.get(name), dict) for name in ("recipe", "space"))
        and all(isinstance(facts.get(name), str) for name in ("data", "data_note", "device"))
        and verdicts <= set(Verdict)
    )


def open_study(
    url: str,
    name: str,
    identity: Identity,
    facts: dict[str, Any],
    first: Draws | None,
) -> optuna.Study:
    """The study called ``name`` in the storage behind ``url``, made now or continued.

    A new study tries the draws ``first`` before anything else and stores ``facts`` for people to read.
    Raises `InputError` where the storage cannot be opened or has a study of that name that was made with
    something else.
    """
    storage = open_storage(url, requeue_once)
    try:
        study = optuna.create_study(study_name=name, storage=storage, directions=identity.directions)
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=storage)
        deadline = time.monotonic() + MAKING
        while IDENTITY not in study.user_attrs and time.monotonic() < deadline:
            time.sleep(POLL)  # another process makes it just now, or died while it did
    if not _may_be_ours(study, identity):
        raise InputError(
            f"study: {name!r} in {shown(url)} was not made by this program (use --study NEW_NAME)"
        )
    if IDENTITY not in study.user_attrs:
        _furnish(study, identity, facts, first)
    if differences := identity.differences(study.user_attrs[IDENTITY]):
        made = study.user_attrs.get("command")
        same = f"the same, as {made}," if isinstance(made, str) else "the same,"
        raise InputError(
            f"study: {name!r} was made with {'; '.join(differences)} (use {same} or --study NEW_NAME)"
        )
    return study


def _may_be_ours(study: optuna.Study, wanted: Identity) -> bool:
    """Whether a study is new, or has at least an identity as this program stores it."""
    identity = study.user_attrs.get(IDENTITY)
    if identity is None and study.directions != wanted.directions:
        return False
    waits = (TrialState.WAITING,)
    new = len(study.get_trials(deepcopy=False)) == len(study.get_trials(deepcopy=False, states=waits))
    return isinstance(identity, dict) or (identity is None and new)


def _furnish(study: optuna.Study, identity: Identity, facts: dict[str, Any], first: Draws | None) -> None:
    """Make a new study complete; its identity comes last and says that it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        against = weighed_against(identity.objective)
        study.set_metric_names([METRIC, *([COST_NAMES[against]] if against else [])])
    for key, value in facts.items():
        study.set_user_attr(key, value)
    if first is not None:
        study.enqueue_trial(first)
    study.set_user_attr(IDENTITY, vars(identity))


def counted(study: optuna.Study) -> int:
    """How many candidates of ``--trials`` are done."""
    return sum(number for verdict, number in count_verdicts(study).items() if verdict.counts)


def count_verdicts(study: optuna.Study) -> Counter[Verdict]:
    """How many trials ended in which way."""
    verdicts = (verdict_of(trial) for trial in study.get_trials(deepcopy=False))
    return Counter(verdict for verdict in verdicts if verdict)


def check_space(space: SearchSpace, budget: Budget, seed: int) -> Survey:
    """What random candidates of the space cost; raises `NoResultError` where not one of many fits."""
    survey = space.survey(budget, SURVEY_DRAWS, random.Random(seed))
    if not survey.feasible:
        survey = space.survey(budget, RESCUE_DRAWS, random.Random(seed))
    if survey.feasible:
        return survey
    least = ", ".join(f"{count:,} {what}" for what, count in survey.least.items())
    raise NoResultError(
        f"no candidate of this space fits {budget}: the least that {survey.tried:,} draws have is {least} "
        "(raise the budget, or take another space)"
    )


def search(
    study: optuna.Study,
    objective: Objective,
    total: int,
    *,
    seed: str,
    deadline: float | None = None,
    after_trial: Callable[[FrozenTrial], None] = lambda _: None,
    waiting: Callable[[bool], None] = lambda _: None,
) -> None:
    """Train candidates until the study has ``total`` that count (`Verdict.counts`), whoever trained them.

    Where other processes already train the missing ones, wait: one of them might die; ``waiting`` hears
    whether that is so. For every candidate draws are made until one counts: rejected and duplicate draws
    use up nothing. ``deadline``, in seconds of `time.monotonic`, ends the search after the trial in which
    it passes. ``seed`` decides the draws together with the number of trials so far, for the same seed on a
    continued study would repeat its first draws. Raises `NoResultError` where the space has no further
    candidate within the budget, and where `FAILED_IN_A_ROW` candidates fail for the same reason.
    """
    drawn = len(study.get_trials(deepcopy=False))
    rng = random.Random(f"{seed}-{drawn}")
    study.sampler = optuna.samplers.TPESampler(seed=rng.randrange(2**31))
    study.pruner = Halving(objective.recipe.epochs, objective.against)
    while deadline is None or time.monotonic() < deadline:
        recover(study)
        missing, others = total - counted(study), running(study)
        if missing <= 0 and all(OWNER in trial.user_attrs for trial in others):
            return
        waiting(missing <= len(others))
        if missing <= len(others):
            time.sleep(POLL)
            continue
        _until_one_counts(study, objective, rng, after_trial)
        _check_failures(study)


def _until_one_counts(
    study: optuna.Study, objective: Objective, rng: random.Random, after_trial: Callable[[FrozenTrial], None]
) -> None:
    """Trials until one is trained, stopped or failed, or is not needed any more."""
    missed = 0
    while True:
        trial = _optimize_one(study, objective)
        verdict = verdict_of(trial)
        after_trial(trial)
        if verdict is None or verdict.counts or verdict is Verdict.INTERRUPTED:
            return
        missed += 1
        if missed % MISSED_IN_A_ROW == 0:
            _enqueue_new(study, objective, rng)


def _check_failures(study: optuna.Study) -> None:
    """Raise `NoResultError` with advice where the newest candidates failed for the same reason."""
    counted = [
        (trial.datetime_complete, trial)
        for trial in study.get_trials(deepcopy=False)
        if (verdict := verdict_of(trial)) and verdict.counts and trial.datetime_complete
    ]
    newest = [trial for _, trial in sorted(counted, key=lambda pair: pair[0])[-FAILED_IN_A_ROW:]]
    reasons = {_failure(trial) for trial in newest}
    if len(newest) == FAILED_IN_A_ROW and len(reasons) == 1 and (reason := reasons.pop()):
        advice = ADVICE.get(reason, "see the report")
        raise NoResultError(f"{FAILED_IN_A_ROW} candidates in a row failed: {reason} ({advice})")


def _failure(trial: FrozenTrial) -> str:
    """Why a candidate failed, without the epoch in which it did; empty for one that did not."""
    failed = verdict_of(trial) is Verdict.FAILED
    return str(trial.user_attrs.get("reason", "")).partition(" in epoch")[0] if failed else ""


def _optimize_one(study: optuna.Study, objective: Objective) -> FrozenTrial:
    """One trial; interrupted, its draws are put back into the queue. It may be ended by others meanwhile."""
    ended: list[FrozenTrial] = []
    try:
        study.optimize(objective, n_trials=1, callbacks=[lambda _, trial: ended.append(trial)])
    except KeyboardInterrupt:
        mine = [trial for trial in study.get_trials(deepcopy=False) if trial.number == objective.running]
        if mine and mine[0].state == TrialState.FAIL:
            requeue(study, mine[0])
        raise
    except ValueError as error:
        if not str(error).startswith("Cannot tell"):
            raise
        # This process was away for so long that another one has ended its trial.
        return next(trial for trial in study.get_trials() if trial.number == objective.running)
    if objective.interrupted:  # while the trial ended, and its end came first
        raise KeyboardInterrupt
    return ended[0]


def _enqueue_new(study: optuna.Study, objective: Objective, rng: random.Random) -> None:
    """Put a candidate within the budget that the study has not seen, found by counting, into the queue."""
    seen = {trial.user_attrs.get("key") for trial in study.get_trials(deepcopy=False)}
    for _ in range(RESCUE_DRAWS):
        draws = RandomDraws(rng)
        try:
            candidate = objective.draw(draws)
        except InputError:
            continue
        if candidate.key not in seen and objective.budget.fits(cost_of(candidate.architecture)):
            study.enqueue_trial(draws.draws)
            return
    raise NoResultError(
        f"the space is exhausted: none of {RESCUE_DRAWS:,} random draws is a new candidate within "
        f"{objective.budget}"
    )
