"""The private names of other libraries that this program needs, all in one place.

pyproject.toml has upper bounds for these libraries. Two more private names are methods that
`study.storage` overrides: `RDBStorage._get_trials` and `RDBStorage._get_stale_trial_ids`. A library is
imported when its first name is.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage
    from optuna.storages._rdb.models import TrialModel
    from optuna.storages.journal._file import BaseJournalFileLock
    from optuna.trial import FrozenTrial, Trial
    from optuna_dashboard._note import note_ver_key
    from torch import _foreach_add_ as foreach_add_
    from torch import _foreach_copy_ as foreach_copy_
    from torch import _foreach_zero_ as foreach_zero_

__all__ = [
    "BaseJournalFileLock",
    "TrialModel",
    "foreach_add_",
    "foreach_copy_",
    "foreach_zero_",
    "frozen",
    "matrix_units",
    "note_ver_key",
    "set_system_attr",
    "storage_of",
    "study_system_attrs",
    "trial_id",
]

_PLACES = {
    "BaseJournalFileLock": ("optuna.storages.journal._file", "BaseJournalFileLock"),
    "TrialModel": ("optuna.storages._rdb.models", "TrialModel"),
    "foreach_add_": ("torch", "_foreach_add_"),
    "foreach_copy_": ("torch", "_foreach_copy_"),
    "foreach_zero_": ("torch", "_foreach_zero_"),
    "note_ver_key": ("optuna_dashboard._note", "note_ver_key"),
}


def __getattr__(name: str) -> Any:
    """Import a name on its first use."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return globals().setdefault(name, getattr(import_module(module), attribute))


def trial_id(trial: Trial | FrozenTrial) -> int:
    """A trial's number in its storage, which is not its number in the study."""
    return trial._trial_id


def frozen(trial: Trial) -> FrozenTrial:
    """A running trial as the storage has it, with its system attributes."""
    return trial.storage.get_trial(trial._trial_id)


def set_system_attr(trial: Trial, name: str, value: Any) -> None:
    """Store a system attribute of a running trial."""
    trial.storage.set_trial_system_attr(trial._trial_id, name, value)


def storage_of(study: optuna.Study) -> BaseStorage:
    """The storage of a study."""
    return study._storage


def study_system_attrs(study: optuna.Study) -> dict[str, Any]:
    """The system attributes of a study."""
    return study._storage.get_study_system_attrs(study._study_id)


def matrix_units() -> dict[str, bool]:
    """Whether the processor has each unit that multiplies bfloat16."""
    import torch

    return {"AMX": torch.cpu._is_amx_tile_supported(), "AVX-512": torch.cpu._is_avx512_bf16_supported()}
