"""The learning curve of a trial: validation accuracy and loss by epoch.

It is a system attribute, because Optuna takes no intermediate values with two objectives.
"""

from __future__ import annotations

from typing import NamedTuple

from optuna.trial import FrozenTrial, Trial

from ..core.compat import frozen, set_system_attr

CURVE = "nas_mnist:curve"  # system attribute: [[epoch, accuracy, loss], ...]


class Point(NamedTuple):
    """A score on the validation images."""

    accuracy: float  # 0 to 1
    loss: float | None  # nats an image; None in studies of earlier versions


Curve = dict[int, Point]  # by epoch, from 1


def curve_of(trial: FrozenTrial) -> Curve:
    """The curve as far as the trial was evaluated."""
    if CURVE in trial.system_attrs:
        return {epoch: Point(accuracy, loss) for epoch, accuracy, loss in trial.system_attrs[CURVE]}
    loss = trial.user_attrs.get("validation_loss")  # an earlier version kept the last one only
    return {
        epoch: Point(accuracy, loss if epoch == trial.last_step else None)
        for epoch, accuracy in sorted(trial.intermediate_values.items())
    }


def store_point(trial: Trial, epoch: int, point: Point) -> None:
    """Add an epoch to a running trial's curve; Optuna gets its accuracy where it takes it."""
    stored = frozen(trial).system_attrs.get(CURVE, [])
    set_system_attr(trial, CURVE, [*stored, [epoch, *point]])
    trial.set_user_attr("validation_loss", point.loss)
    if len(trial.study.directions) == 1:
        trial.report(point.accuracy, epoch)
