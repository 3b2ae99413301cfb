"""From a study to typed rows and a pandas table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial

from .objective import Verdict, verdict_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One trial as people and programs read it. The field names are stable: they head the CSV columns."""

    trial: int  # number in the study
    verdict: Verdict
    reason: str
    n_params: int | None  # None where the draws made no network
    excess: int | None  # parameters over the budget; 0 or less: it fits
    macs: int | None  # multiply-adds for one image
    peak_memory: int | None  # bytes of activations for one image, float32
    epochs: int  # finished
    images: int  # trained on
    validation_accuracy: float | None  # after the last of them, 0 to 1
    validation_loss: float | None  # nats an image
    seconds: float  # of training
    key: str | None  # of the architecture
    architecture: dict[str, Any] | None


def trial_row(trial: FrozenTrial) -> TrialRow | None:
    """One trial as a row; None while it waits or runs."""
    verdict = verdict_of(trial)
    if verdict is None:
        return None
    attrs = trial.user_attrs
    last = trial.last_step
    return TrialRow(
        trial=trial.number,
        verdict=verdict,
        reason=attrs.get("reason", ""),
        n_params=attrs.get("n_params"),
        excess=attrs.get("excess"),
        macs=attrs.get("macs"),
        peak_memory=attrs.get("peak_memory"),
        epochs=attrs.get("epochs", 0),
        images=attrs.get("images", 0),
        validation_accuracy=None if last is None else trial.intermediate_values[last],
        validation_loss=attrs.get("validation_loss"),
        seconds=attrs.get("seconds", 0.0),
        key=attrs.get("key"),
        architecture=attrs.get("architecture"),
    )


def trial_rows(study: optuna.Study) -> list[TrialRow]:
    """Every trial that has ended, in the order of their numbers."""
    rows = (trial_row(trial) for trial in study.get_trials(deepcopy=False))
    return [row for row in rows if row is not None]


def best_rows(rows: list[TrialRow], count: int) -> list[TrialRow]:
    """The ``count`` best candidates that were trained to the end; of equals the smaller comes first."""
    trained = [row for row in rows if row.verdict is Verdict.TRAINED]
    return sorted(trained, key=lambda row: (-(row.validation_accuracy or 0), row.n_params or 0))[:count]


def to_frame(rows: list[TrialRow]) -> pd.DataFrame:
    """The rows as a table, one column a field, without the architectures."""
    import pandas as pd

    names = [name for name in TrialRow.__slots__ if name != "architecture"]
    return pd.DataFrame([asdict(row) for row in rows], columns=names)
