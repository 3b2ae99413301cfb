"""A search from Python: the same as the command, with its answers as objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.defaults import ANSWERS
from ..core.errors import InputError, NoResultError
from ..models.architecture import Architecture
from ..models.cost import Cost, cost_of
from .config import SearchConfig

if TYPE_CHECKING:
    import optuna
    import pandas as pd
    from torch import nn

    from ..study.results import StudyResults
    from ..study.samplers import Tuning
    from ..training.classifier import Classifier


@dataclass(frozen=True)
class FoundNetwork:
    """One network of a search: an answer, or a candidate of its front."""

    name: str  # "trial-12", or "trial-12-9870" for a narrowed copy
    trial: int  # its number in the study
    architecture: Architecture
    recipe: Mapping[str, Any]  # that it was trained with
    accuracy: float  # of the validation images, 0 to 1; of an answer the mean over its fresh seeds
    test_accuracy: float | None  # after training on all training images; None: the test images are unread
    weights: Path | None  # the safetensors file of that training

    @property
    def cost(self) -> Cost:
        """Parameters, multiply-adds and memory, counted exactly."""
        return cost_of(self.architecture)

    def classifier(self) -> Classifier:
        """The trained network with its preprocessing: uint8 images in, probabilities out.

        Raises `NoResultError` if it was not trained on all training images.
        """
        from ..training.classifier import Classifier

        return Classifier.load(self._trained())

    def module(self) -> nn.Module:
        """The trained network as a torch module: pixels (N, C, H, W) from 0 to 255 in, class scores out.

        Raises `NoResultError` as `classifier` does.
        """
        from ..training.classifier import WithPreprocessing

        return WithPreprocessing(self.classifier()).eval()

    def export(self, to: str, output: str | Path | None = None, **options: Any) -> None:
        """Write the trained network as ``python -m nas_mnist.export --to`` does; options as there.

        An ``output`` without a suffix gets that of the format.
        """
        from ..export.__main__ import FORMATS, export

        if output is not None and not Path(output).suffix and to in FORMATS:
            output = f"{output}{FORMATS[to][0]}"
        export(str(self._trained()), to, output=None if output is None else str(output), **options)

    def __repr__(self) -> str:
        """The name, the size and the accuracy."""
        return f"<{self.name}: {self.cost.params:,} parameters, {self.accuracy:.2%}>"

    def _trained(self) -> Path:
        if self.weights is None or not self.weights.is_file():
            raise NoResultError(f"{self.name} has no weights (search with retrain=True; a front has none)")
        return self.weights


@dataclass(frozen=True, repr=False)
class Found:
    """The result of a search; returned by `run_search`."""

    study: optuna.Study
    config: SearchConfig

    @cached_property
    def results(self) -> StudyResults:
        """Everything that a report says."""
        from ..study.results import StudyResults

        return StudyResults.read(self.study)

    @property
    def winner(self) -> FoundNetwork:
        """The best answer, of the lowest validation loss; raises `NoResultError` without any."""
        if (found := self._answer("best")) is None:
            raise NoResultError("no candidate was trained to the last epoch")
        return found

    @property
    def smaller(self) -> FoundNetwork | None:
        """A smaller answer that is as good, which may be the winner; None: the finals had one network."""
        return self._answer("smaller")

    @property
    def smallest(self) -> FoundNetwork | None:
        """The smallest answer that meets the target; None: there is no target, or none meets it."""
        return self._answer("smallest")

    @property
    def front(self) -> list[FoundNetwork]:
        """The candidates that no other one beats in both accuracy and cost, the cheapest first.

        The cost is the objective's, and parameters with the objective accuracy.
        """
        from ..study.results import pareto_front

        rows = pareto_front(self.results.rows, self.config.cost_metric or "n_params")
        return [
            FoundNetwork(
                name=f"trial-{row.trial}",
                trial=row.trial,
                architecture=Architecture.make(row.architecture or {}),
                recipe=row.recipe or {},
                accuracy=row.validation_accuracy or 0.0,
                test_accuracy=None,
                weights=None,
            )
            for row in rows
        ]

    @property
    def trials(self) -> pd.DataFrame:
        """One row a finished trial; the columns are those of ``trials.csv`` (reports/README.md)."""
        from ..study.results import to_frame

        return to_frame(self.results.rows)

    def report(self) -> Path:
        """Write the report's files again; returns the page, ``report.html``."""
        from ..core.defaults import REPORTS
        from ..report.items import item_of_study
        from ..report.sections import sections_of
        from ..report.write import study_folder, write_report

        folder = study_folder(REPORTS, self.study)
        return write_report(folder, sections_of([item_of_study(self.study, self.config.data_dir)]))

    def __repr__(self) -> str:
        """The study and its answers."""
        answers = ", ".join(f"{name} {one.name}" for name, one in self.results.answers.items())
        return f"<study {self.study.study_name!r}: {answers or 'no answer'}>"

    def _answer(self, word: str) -> FoundNetwork | None:
        from ..lookup import resolve
        from ..study.results import retrained_of

        answer = self.results.answers.get(ANSWERS[word])
        if answer is None:
            return None
        retrained = retrained_of(self.results.metadata, answer.key)
        return FoundNetwork(
            name=answer.name,
            trial=answer.trial,
            architecture=Architecture.make(answer.architecture),
            recipe=answer.recipe,
            accuracy=answer.validation_accuracy,
            test_accuracy=float(retrained["test_accuracy"]) if retrained else None,
            weights=resolve(word, self.config.study, self.config.storage).weights,
        )


def run_search(
    config: SearchConfig | None = None, *, sampler: Any = None, pruner: Any = None, **options: Any
) -> Found:
    """Run or continue a search, as ``python -m nas_mnist.search`` does, and return what it found.

    Args:
        config: all options; or give them by name, as `SearchConfig` has them:
            ``run_search(max_params=5_000, trials=20, dataset="mnist", study="small")``. They are those of
            ``python -m nas_mnist.search --help``.
        sampler: a name as ``--sampler`` takes it, an Optuna sampler, or a class of one, which gets ``seed=``.
        pruner: an Optuna pruner instead of the search's own.

    Worker processes get sampler and pruner by pickle, and need no ``if __name__ == "__main__"``. The same
    call continues a study up to the same total. Raises `InputError` for options that cannot be used, and
    `NoResultError` for a search that ends without a winner.
    """
    if isinstance(sampler, str):
        options["sampler"], sampler = sampler, None
    if config is None:
        config = SearchConfig.make(**options)
    elif not isinstance(config, SearchConfig):
        raise InputError(f"config: {config!r:.40} (use a SearchConfig, or options by name)")
    elif options:
        raise InputError(f"{min(options)}: given beside a config (use config.model_copy, or options alone)")

    from ..study.samplers import Tuning
    from .pipeline import run_search as run

    own = Tuning(sampler, pruner) if sampler is not None or pruner is not None else None
    call = _call(config, own)
    if own and own.sampler_name:
        config = config.model_copy(update={"sampler": own.sampler_name})  # it need not be importable
    return Found(run(config, call, own), config)


def _call(config: SearchConfig, tuning: Tuning | None) -> str:
    """The call that continues a search; own objects by the names of their classes."""
    from ..study.storage import hide_password

    fields = type(config).model_fields
    given = {name: value for name in fields if (value := getattr(config, name)) != fields[name].default}
    given = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    if "storage" in given:
        given["storage"] = hide_password(config.storage)
    words = [f"{name}={value!r}" for name, value in given.items() if name not in ("quiet", "json_file")]
    own = tuning._asdict() if tuning else {}
    words += [
        f"{name}={one.__name__ if isinstance(one, type) else f'{type(one).__name__}(...)'}"
        for name, one in own.items()
        if one is not None
    ]
    return f"nm.run_search({', '.join(words)})"
