"""Everything that a search can be asked for, in one frozen model.

The command and Python programs make a `SearchConfig`, workers get it, and the settings that a study stores
are derived from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ..core.cli import check_data_dir, check_in_use, check_name
from ..core.defaults import (
    DEFAULT_STORAGE,
    DEFAULT_STUDY,
    MAX_EPOCHS,
    MAX_PARAMS,
    MAX_SEED,
    REPORTS,
    SAMPLERS,
    Engine,
)
from ..core.errors import InputError, choices, explain
from ..core.fileio import check_new, check_writable
from ..core.process_pool import MAX_WORKERS
from ..models.cost import OBJECTIVES, OLD_OBJECTIVES, Budget, cost_metric_of
from ..recipes.recipe import load_recipe
from ..space.space import SearchSpace
from .effort import DEFAULT_EFFORT, EFFORTS

MAX_IMAGES = 10**9
# Parameters. Up to here the space and the recipe `tiny` are the defaults: the first stage of the space
# `default` gets too narrow, and the best networks of the zoo were found with `tiny` (reports/trainings).
SMALL_BUDGET = 5_000
SMALL_RAM = 16 << 10  # bytes; up to here a first convolution of the whole image takes most of it


class SearchConfig(BaseModel):
    """The options of a search, validated once. The field names are those of the options.

    Raises `InputError` through `make`, pydantic's `ValidationError` through the constructor; both name the
    option, its value and what is allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    trials: int = Field(50, ge=1, le=100_000)  # candidates to train
    max_params: int = Field(MAX_PARAMS, ge=1, le=10**9)
    max_macs: int | None = Field(None, ge=1, le=10**12)  # multiply-adds for one image
    max_flash: int | None = Field(None, ge=1, le=10**12)  # bytes of the int8 network's tables
    max_ram: int | None = Field(None, ge=1, le=10**12)  # bytes of the int8 network's buffer
    max_memory: int | None = Field(None, ge=1, le=10**12)  # bytes, float32; of studies of earlier versions
    objective: str = "accuracy"  # one of `OBJECTIVES`
    target: float | None = Field(None, gt=0, lt=100)  # percent, of the smallest answer; None: the exercise's
    space: str | None = None  # a preset or a TOML file; None: `space_name`
    start: tuple[str, ...] = ()  # networks to try first: of the zoo, files, or "zoo" for all of the zoo

    effort: str = DEFAULT_EFFORT  # one of `EFFORTS`: the defaults of images, finalists and their seeds
    sampler: str = SAMPLERS[0]  # one of `SAMPLERS`, or MODULE:CLASS; that of an object, too
    recipe: str | None = (
        None  # packaged, or a TOML file; fields that differ behind a colon; None: see `recipe_name`
    )
    epochs: int | None = Field(None, ge=1, le=MAX_EPOCHS)  # None: the recipe's
    search_recipe: bool = False  # draw some training choices for every candidate, around the recipe
    search_epochs: int | None = Field(None, ge=1, le=MAX_EPOCHS - 1)  # of candidates; None: as finalists
    search_images: int | None = Field(None, ge=0, le=MAX_IMAGES)  # an epoch; 0: all; None: the effort's
    finalists: int | None = Field(None, ge=1, le=100)  # trained again with fresh seeds; None: the effort's
    finalist_seeds: int | None = Field(None, ge=1, le=100)  # most seeds of each; None: the effort's
    retrain: bool = True  # train the answers on all images and read the test images
    seed: int = Field(0, ge=0, le=MAX_SEED)  # of draws, weights and order
    timeout: float | None = Field(None, gt=0, le=1e6)  # minutes; no candidate begins later

    dataset: str = "mnist"
    data_dir: Path | None = None
    study: str = DEFAULT_STUDY
    storage: str = DEFAULT_STORAGE
    device: str = "auto"
    engine: Engine | None = None  # None: NAS_MNIST_ENGINE, else auto
    workers: int | None = Field(None, ge=1, le=MAX_WORKERS)  # None: one a core on a CPU, else one

    quiet: bool = False
    json_file: Path | None = None  # a copy of the summary

    @classmethod
    def make(cls, **options: Any) -> Self:
        """Validate options; raises `InputError` with one line."""
        try:
            return cls(**options)
        except ValidationError as error:
            message = explain(error, cls)
            field = message.partition(":")[0]
            if field in cls.model_fields:
                message = f"--{field.replace('_', '-')}{message.removeprefix(field)}"
            raise InputError(message) from None

    @field_validator("objective", "effort")
    @classmethod
    def _known_name(cls, name: str, info: ValidationInfo) -> str:
        is_effort = info.field_name == "effort"
        known, old = (EFFORTS, ()) if is_effort else (OBJECTIVES, OLD_OBJECTIVES)
        if name not in known and name not in old:
            raise ValueError(choices(name, known)[1:-1])
        return name

    @field_validator("sampler")
    @classmethod
    def _known_sampler(cls, name: str) -> str:
        if ":" in name:
            from ..study.samplers import sampler_factory

            sampler_factory(name)
        elif name not in SAMPLERS:
            raise ValueError(choices(name, SAMPLERS, " or MODULE:CLASS")[1:-1])
        return name

    @model_validator(mode="after")
    def _options_fit_together(self) -> Self:
        check_name("--study", self.study)
        check_data_dir(str(self.data_dir) if self.data_dir else None, self.dataset)
        if self.finalist_count == 1:
            many = "with --finalists of 2 and more"
            check_in_use("--finalist-seeds", self.finalist_seeds, None, False, many)
            check_in_use("--target", self.target, None, False, many)
        directly = "without --objective params --target: a step trains a finalist a worker"
        check_in_use("--finalists", self.finalists, None, not self.narrows, directly)
        SearchSpace.load(self.space_name)
        epochs = self.epochs or load_recipe(self.recipe_name).epochs
        if self.search_epochs is not None and self.search_epochs >= epochs:
            raise ValueError(
                f"--search-epochs: {self.search_epochs} (use up to {epochs - 1}: finalists have {epochs})"
            )
        check_writable(REPORTS, "reports")
        if self.json_file is not None:
            check_new(self.json_file, "--json")
        return self

    @property
    def space_name(self) -> str:
        """The search space: that of small networks for a small budget, and for the smallest network."""
        if self.space is not None:
            return self.space
        if self.max_ram is not None and self.max_ram <= SMALL_RAM:
            return "strided"
        return "tiny" if self._is_small else "default"

    @property
    def recipe_name(self) -> str:
        """The recipe of all candidates, likewise."""
        if self.recipe is not None:
            return self.recipe
        return "tiny" if self._is_small else "small"

    @property
    def _is_small(self) -> bool:
        return self.narrows or self.max_params <= SMALL_BUDGET

    @property
    def budget(self) -> Budget:
        """The limits as they were asked for; `SearchSetup.budget` is what candidates are held against."""
        limits = self.max_params, self.max_macs, self.max_flash, self.max_ram, self.max_memory
        return Budget(*limits)

    @property
    def cost_metric(self) -> str | None:
        """The cost that is minimised beside the accuracy; None: accuracy alone."""
        return None if self.narrows else cost_metric_of(self.objective)

    @property
    def narrows(self) -> bool:
        """Whether the search narrows its budget to the smallest network that meets the target."""
        return self.objective == "params" and self.target is not None

    @property
    def finalist_count(self) -> int:
        """The candidates that are trained again; 1: none is."""
        return self.finalists or EFFORTS[self.effort].finalists

    @property
    def final_seeds(self) -> int:
        """The most fresh seeds of a finalist."""
        return self.finalist_seeds or EFFORTS[self.effort].seeds
