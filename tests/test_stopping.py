"""Early stopping: which trials go on at which rung."""

from __future__ import annotations

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState

from nas_mnist.study.pruner import AsyncSuccessiveHalvingPruner, eval_epochs, rungs


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(direction="maximize", pruner=AsyncSuccessiveHalvingPruner(20))


def stops_after(study: optuna.Study, epoch: int, accuracy: float) -> bool:
    trial = study.ask()
    for earlier in range(1, epoch):
        trial.report(0.5, earlier)
    trial.report(accuracy, epoch)
    return trial.should_prune()


def test_candidates_are_scored_at_rungs_at_the_end_and_for_their_curve() -> None:
    assert (rungs(20), rungs(10), rungs(5), rungs(1)) == ([1, 2, 4, 8], [1, 2, 4], [1, 2], [1])
    assert sorted(eval_epochs(20)) == [1, 2, 4, 8, 12, 16, 20]
    assert sorted(eval_epochs(5)) == [1, 2, 3, 4, 5]
    for epochs in range(1, 21):
        assert {*rungs(epochs), epochs} <= eval_epochs(epochs) <= set(range(1, epochs + 1))


def test_a_trial_that_was_better_after_fewer_epochs_counts(study: optuna.Study) -> None:
    ahead = study.ask()
    ahead.report(0.97, 1)
    ahead.report(0.96, 2)
    assert not stops_after(study, 4, 0.98)
    assert stops_after(study, 4, 0.965)  # the first had more after one epoch
    worse = study.ask()
    worse.report(0.1, 1)  # a trial that is behind and has not come as far does not count
    assert not stops_after(study, 8, 0.985)


@pytest.mark.parametrize("epoch", [3, 5, 7, 12, 16])
def test_between_rungs_no_trial_is_stopped(study: optuna.Study, epoch: int) -> None:
    assert not any(stops_after(study, epoch, accuracy) for accuracy in (0.9, 0.8, 0.1, 0.5))


def test_an_interrupted_trial_does_not_count(study: optuna.Study) -> None:
    assert not stops_after(study, 2, 0.9)
    study.tell(0, state=TrialState.FAIL)
    assert not stops_after(study, 2, 0.8)  # the same candidate again
    assert stops_after(study, 2, 0.7)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.sampled_from(rungs(20)))
def test_after_a_rungs_epoch_the_better_half_so_far_goes_on(values: list[float], epoch: int) -> None:
    study = optuna.create_study(direction="maximize", pruner=AsyncSuccessiveHalvingPruner(20))
    for position, value in enumerate(values):
        so_far = values[: position + 1]
        better = sum(other > value for other in so_far)
        stopped = stops_after(study, epoch, value)
        assert not (stopped and value == max(so_far))
        assert stopped == (better >= max(len(so_far) // 2, 1))


def test_with_a_cost_metric_a_trial_is_compared_with_those_that_cost_no_more() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    pruner = AsyncSuccessiveHalvingPruner(20, "n_params")

    def stops(params: int, accuracy: float) -> bool:
        trial = study.ask()
        trial.set_user_attr("n_params", params)
        study._storage.set_trial_intermediate_value(trial._trial_id, 2, accuracy)
        return pruner.prune(study, study.trials[-1])

    assert not stops(500, 0.9)
    assert stops(500, 0.8)  # no cheaper than one that is better
    assert not stops(400, 0.7)  # cheaper than all others
    assert stops(1000, 0.75)  # dearer than two that are better
    assert not stops(1000, 0.95)
