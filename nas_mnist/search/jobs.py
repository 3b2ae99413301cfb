"""The job of a search's worker process: train candidates of the study up to its total."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ..core.errors import InputError, NoResultError
from ..core.process_pool import WorkerContext
from ..models.cost import Cost
from .setup import SearchSetup

if TYPE_CHECKING:
    from ..training.loop import EpochResult


@dataclass(frozen=True)
class SearchJob:
    """Train candidates; torch and Optuna are imported only in the worker.

    Sends ``candidate`` (trial number, `Cost`), ``epoch`` (trial number, `EpochResult`) and ``ended``
    (`TrialRow`).
    """

    setup: SearchSetup

    def __call__(self, context: WorkerContext) -> None:
        """Search until the study has its total."""
        import torch

        from ..report.notes import attach_curve
        from ..study.candidate import CandidateSpace
        from ..study.objective import Callbacks, Objective
        from ..study.results import trial_row
        from ..study.samplers import Tuning, own_failure
        from ..study.search_loop import search
        from ..study.storage import artifact_folder, storage_guard
        from ..study.study import load_study
        from ..training.jobs import load_split

        setup, config = self.setup, self.setup.config
        train_data, val_data = load_split(context, setup.source)
        train_data = train_data if setup.images is None else train_data.sample(setup.images)

        def on_epoch(trial: int, result: EpochResult) -> None:
            torch.set_num_threads(context.available_threads())  # more while another worker is idle
            context.send("epoch", trial, result)

        def on_candidate(trial: int, cost: Cost) -> None:
            torch.set_num_threads(context.available_threads())
            context.send("candidate", trial, cost)

        attach = partial(attach_curve, artifacts=artifact_folder(config.storage))
        objective = Objective(
            CandidateSpace(setup.space, setup.budget, setup.candidate_recipe, config.search_recipe),
            train_data,
            val_data,
            config.seed,
            Callbacks(on_candidate, on_epoch, attach),
            total=setup.trials,
            given_budget=setup.whole_budget,
            cost_metric=config.cost_metric,
            compare_by="n_params" if config.narrows else config.cost_metric,
            engine=setup.source.engine,
        )
        tuning = Tuning() if setup.tuning is None else pickle.loads(setup.tuning)
        try:
            with storage_guard(config.storage):
                search(
                    load_study(config.storage, config.study),
                    objective,
                    setup.trials,
                    seed=f"{config.seed}-{context.number}",
                    sampler=tuning.sampler or config.sampler,
                    pruner=tuning.pruner,
                    deadline=setup.deadline,
                    on_trial_end=lambda trial: context.send("ended", trial_row(trial)),
                    on_idle=context.set_idle,
                )
        except (InputError, NoResultError):
            raise
        except Exception as error:
            is_own = setup.tuning is not None or ":" in config.sampler
            if is_own and (failure := own_failure(error)):
                raise NoResultError(failure) from error
            raise
