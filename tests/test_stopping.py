"""Early stopping: one look at half of the schedule, by validation loss."""

from __future__ import annotations

from statistics import median

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState

from nas_mnist.study.curve import Point, curve_of, store_point
from nas_mnist.study.pruner import MIN_OTHERS, TOLERANCE, LateMedianPruner, eval_epochs, rung

EPOCHS = 20
RUNG = 10


def stops(study: optuna.Study, loss: float, epoch: int = RUNG, **attrs: int) -> bool:
    """Whether a trial with this loss after an epoch is stopped; it stays in the study."""
    trial = study.ask()
    for name, value in attrs.items():
        trial.set_user_attr(name, value)
    store_point(trial, epoch, Point(0.5, loss))
    return bool(study.pruner.prune(study, study.trials[-1]))


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(direction="maximize", pruner=LateMedianPruner(EPOCHS))


def test_candidates_are_scored_at_the_rung_at_the_end_and_for_their_curve() -> None:
    assert [rung(epochs) for epochs in (20, 10, 5, 2, 1)] == [10, 5, 2, 1, 0]
    assert sorted(eval_epochs(20)) == [4, 8, 10, 12, 16, 20]
    for epochs in range(1, 21):
        assert {epochs} <= eval_epochs(epochs) <= set(range(1, epochs + 1))
        assert epochs == 1 or rung(epochs) in eval_epochs(epochs) - {epochs}


@given(st.lists(st.floats(0.01, 3), min_size=1, max_size=30))
def test_only_those_clearly_above_the_median_of_the_others_stop(losses: list[float]) -> None:
    study = optuna.create_study(direction="maximize", pruner=LateMedianPruner(EPOCHS))
    for position, loss in enumerate(losses):
        others = losses[:position]
        stopped = len(others) >= MIN_OTHERS and loss > TOLERANCE * median(others)
        assert stops(study, loss) == stopped


@pytest.mark.parametrize("epoch", [1, 4, 8, 12, 16, 20])
def test_no_trial_is_stopped_at_another_epoch(study: optuna.Study, epoch: int) -> None:
    assert not any(stops(study, loss, epoch) for loss in (0.1, 0.1, 0.1, 0.1, 0.1, 9.0))


def test_an_interrupted_trial_does_not_count(study: optuna.Study) -> None:
    assert not any(stops(study, 0.1) for _ in range(MIN_OTHERS))
    study.tell(0, state=TrialState.FAIL)
    assert not stops(study, 9.0)
    assert stops(study, 9.0)


def test_trials_of_earlier_versions_have_no_loss_to_compare(study: optuna.Study) -> None:
    for _ in range(6):
        study.ask().report(0.9, RUNG)
    assert not stops(study, 9.0)
    assert curve_of(study.trials[0]) == {RUNG: Point(0.9, None)}


def test_with_a_cost_metric_a_trial_is_compared_with_those_that_cost_no_more() -> None:
    study = optuna.create_study(
        directions=["maximize", "minimize"], pruner=LateMedianPruner(EPOCHS, "n_params")
    )
    for _ in range(MIN_OTHERS):
        assert not stops(study, 0.1, n_params=500)
    assert not stops(study, 9.0, n_params=400)
    assert stops(study, 9.0, n_params=500)
    assert stops(study, 9.0, n_params=1000)


def test_a_curve_holds_accuracy_and_loss_of_every_evaluation(study: optuna.Study) -> None:
    trial = study.ask()
    for epoch in (1, 3):
        store_point(trial, epoch, Point(epoch / 10, 1 / epoch))
    (frozen,) = study.trials
    assert curve_of(frozen) == {1: Point(0.1, 1.0), 3: Point(0.3, 1 / 3)}
    assert frozen.intermediate_values == {1: 0.1, 3: 0.3}
    assert frozen.user_attrs["validation_loss"] == 1 / 3
