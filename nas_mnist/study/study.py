"""Opening a study: a new one, one to continue, or one to read."""

from __future__ import annotations

import time
import warnings
from typing import Any

import optuna
from optuna.trial import TrialState
from pydantic import ValidationError

from ..core.errors import InputError, closest
from ..models.cost import COST_NAMES
from .config import IDENTITY, StudyConfig
from .recovery import requeue_once
from .storage import hide_password, open_storage, storage_guard
from .verdict import Verdict

METRIC = "validation accuracy"
INITIALISE_TIMEOUT = 10  # seconds; then the process that made an incomplete study has died


def load_study(url: str, name: str) -> optuna.Study:
    """An existing study, to read; raises `InputError`, and `StorageLostError` where the storage fails."""
    storage = open_storage(url, requeue_once, create=False)
    with storage_guard(url):
        known = optuna.get_all_study_names(storage)
        if name not in known:
            others = " or ".join(f"--study {other}" for other in known) or "another --storage"
            advice = f"({closest(name, known)}use {others})"
            raise InputError(f"study: {name!r} is not in {hide_password(url)} {advice}")
        study = optuna.load_study(study_name=name, storage=storage)
        if not _is_readable(study):
            raise InputError(_not_ours(url, name, "another --study, or restore the storage from a copy"))
    return study


def open_study(url: str, name: str, config: StudyConfig, metadata: dict[str, Any]) -> optuna.Study:
    """The study ``name`` in a storage, made now or continued.

    A new study gets ``metadata`` as user attributes, for people to read. Raises `InputError` where the
    storage cannot be opened, or where it has a study of that name that was made with other settings.
    """
    storage = open_storage(url, requeue_once)
    try:
        study = optuna.create_study(study_name=name, storage=storage, directions=config.directions)
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=storage)
        _wait_until_initialised(study)
    stored = _stored_config(study, config)
    if stored is None:
        raise InputError(_not_ours(url, name, "--study NEW_NAME"))
    if IDENTITY not in study.user_attrs:
        _initialise(study, config, metadata)
    if stored.target is None and _narrowed_without_saying(study):
        stored = stored.model_copy(update={"target": config.target})
    if differences := config.differences(stored):
        command = study.user_attrs.get("command")
        made = f", as {command} had them" if isinstance(command, str) else ""
        raise InputError(
            f"study: {name!r} was made with {'; '.join(differences)} "
            f"(use --study NEW_NAME, or those settings{made})"
        )
    return study


def stored_config(url: str, name: str) -> StudyConfig | None:
    """The settings of an existing study; None where there is none yet. Writes nothing."""
    try:
        storage = open_storage(url, create=False)
    except InputError:  # `open_study` will raise it
        return None
    with storage_guard(url):
        if name not in optuna.get_all_study_names(storage):
            return None
        metadata = optuna.load_study(study_name=name, storage=storage).user_attrs
    try:
        return StudyConfig.from_metadata(metadata)
    except ValidationError:  # another program's, or another process initialises it now
        return None


def _narrowed_without_saying(study: optuna.Study) -> bool:
    """Whether a study of an earlier version, which stored no target, looks for the smallest network."""
    command = str(study.user_attrs.get("command"))
    return "target" not in study.user_attrs[IDENTITY] and "objective" in command and "target" in command


def _is_readable(study: optuna.Study) -> bool:
    """Whether a study has all that this program stores, with the right types."""
    metadata = study.user_attrs
    verdicts = {
        trial.user_attrs.get("verdict", Verdict.TRAINED) for trial in study.get_trials(deepcopy=False)
    }
    try:
        StudyConfig.from_metadata(metadata)
    except ValidationError:
        return False
    return (
        all(isinstance(metadata.get(name), dict) for name in ("recipe", "space"))
        and all(isinstance(metadata.get(name), str) for name in ("data", "data_note", "device"))
        and verdicts <= set(Verdict)
    )


def _not_ours(url: str, name: str, advice: str) -> str:
    return f"study: {name!r} in {hide_password(url)} was not made by this program (use {advice})"


def _wait_until_initialised(study: optuna.Study) -> None:
    """Wait while another process initialises the study, unless it has died meanwhile."""
    deadline = time.monotonic() + INITIALISE_TIMEOUT
    while IDENTITY not in study.user_attrs and time.monotonic() < deadline:
        time.sleep(0.5)


def _stored_config(study: optuna.Study, wanted: StudyConfig) -> StudyConfig | None:
    """The settings that a study has or, if it has no trial yet, will get; None: another program made it."""
    if IDENTITY in study.user_attrs:
        try:
            return StudyConfig.from_metadata(study.user_attrs)
        except ValidationError:
            return None
    trials = study.get_trials(deepcopy=False)
    is_new = all(trial.state == TrialState.WAITING for trial in trials)
    return wanted if is_new and study.directions == wanted.directions else None


def _initialise(study: optuna.Study, config: StudyConfig, metadata: dict[str, Any]) -> None:
    """Complete a new study; its settings are stored last, and say that it is complete."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        cost_metric = config.cost_metric
        study.set_metric_names([METRIC, *([COST_NAMES[cost_metric]] if cost_metric else [])])
    for name, value in metadata.items():
        study.set_user_attr(name, value)
    study.set_user_attr(IDENTITY, config.model_dump())
