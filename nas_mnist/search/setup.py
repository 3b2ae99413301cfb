"""From the options of a search to what they mean on this machine and for this data set."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from ..core.errors import InputError
from ..core.process_pool import auto_workers
from ..models.cost import Budget
from ..recipes.recipe import Recipe, load_recipe
from ..space.space import SPACES, SearchSpace
from ..training.jobs import Source
from ..training.requirements import exact_budget, required_accuracy
from .config import SearchConfig
from .effort import EFFORTS
from .start import Given, given_networks

if TYPE_CHECKING:
    from ..data.dataset import DataSet, Images
    from ..study.config import StudyConfig

# Shares of the budget that packaged spaces draw in a search for a front: networks of all sizes.
FRONT_FILL = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


@dataclass(frozen=True)
class SearchSetup:
    """A validated search: plain data for the parent and its workers."""

    config: SearchConfig
    source: Source  # data set and device
    space: SearchSpace  # for the shape and the classes of the data
    recipe: Recipe  # of finalists and winner
    workers: int
    images: int | None  # of candidates, an epoch; None: the whole training split
    given: tuple[Given, ...] = ()  # networks to try first
    deadline: float | None = None  # in seconds of `time.monotonic`; no candidate begins later
    step_params: int | None = None  # the budget of a step of a search that narrows it
    step_trials: int | None = None  # the total of the study after that step
    tuning: bytes | None = None  # a pickled `Tuning`, from Python
    note: str = ""  # one line about the engine, for people

    @property
    def candidate_recipe(self) -> Recipe:
        """The recipe of candidates, which may have fewer epochs."""
        return self.recipe.with_epochs(self.config.search_epochs)

    @property
    def whole_budget(self) -> Budget:
        """The limits of the search, in every step."""
        return exact_budget(self.config.budget, self.source.dataset)

    @property
    def budget(self) -> Budget:
        """The limits of a drawn candidate's cost."""
        budget = self.whole_budget
        return budget if self.step_params is None else replace(budget, max_params=self.step_params)

    @property
    def trials(self) -> int:
        """Candidates that the study is to have."""
        return self.step_trials or self.config.trials

    def final_images(self, train_images: int) -> int | None:
        """Images of finalists, an epoch; None: all ``train_images`` of the training split.

        A search that narrows its budget holds finalists against its target, which is meant for all images.
        """
        images = None if self.config.narrows else EFFORTS[self.config.effort].final_images
        if self.images is None or images is None or max(images, self.images) >= train_images:
            return None
        return max(images, self.images)

    @property
    def target(self) -> float | None:
        """The accuracy (0 to 1) of the smallest answer; None: there is none."""
        if self.config.target is not None:
            return round(self.config.target / 100, 10)
        return required_accuracy(self.source.dataset)

    def study_config(self, data: DataSet) -> StudyConfig:
        """The settings that the study stores and with which alone it continues."""
        from ..study.config import StudyConfig

        config = self.config
        return StudyConfig(
            space=self.space.digest,
            recipe=self.recipe.digest,
            data=f"{data.name.partition(':')[0]} {data.fingerprint}",
            split=data.split_fingerprint,
            epochs=self.recipe.epochs,
            search_epochs=config.search_epochs,
            search_images=self.images,
            search_recipe=config.search_recipe or None,
            objective=config.objective if config.cost_metric else None,
            target=config.target if config.narrows else None,
            **asdict(config.budget),
        )


def prepare(config: SearchConfig) -> tuple[SearchSetup, DataSet]:
    """Load the data and fit space, recipe and device to them; writes nothing.

    Raises `InputError` for a device, data set or space that cannot be used.
    """
    from ..data.dataset import load
    from ..engine.backend import resolve_engine
    from ..study.study import stored_config
    from ..training.device import pick_device
    from ..training.loop import check_batches

    device = pick_device(config.device)
    engine, note = resolve_engine(config.engine, device)
    data = load(config.dataset, config.data_dir, config.quiet)
    stored = stored_config(config.storage, config.study)
    space, earlier = (_space(config, data, budget) for budget in (config.budget, None))
    if stored is not None and stored.space == earlier.digest:  # of an earlier version
        space = earlier
    recipe = load_recipe(config.recipe_name).with_epochs(config.epochs)
    train_data, _ = data.split()
    images = config.search_images or None
    given = given_networks(config.start, exact_budget(config.budget, data.name), data)
    normalises = space.normalises or any(one.architecture.normalises for one in given)
    check_batches(_checked_part(train_data, images, data.classes), recipe, normalises)
    if config.search_images is None:
        usual = _default_images(config, train_data, recipe, device.type)
        images = usual if stored is None else stored.search_images
    setup = SearchSetup(
        config=config,
        source=Source(data.name, config.data_dir, device.type, engine),
        space=space,
        recipe=recipe,
        workers=config.workers or auto_workers(device.type),
        images=images,
        given=given,
        deadline=None if config.timeout is None else time.monotonic() + 60 * config.timeout,
        note=note,
    )
    return setup, data


def _space(config: SearchConfig, data: DataSet, budget: Budget | None) -> SearchSpace:
    """The space for the data; for a search for a front a packaged one has networks of all sizes."""
    space = SearchSpace.load_for(config.space_name, data.shape, data.classes, data.name, budget)
    is_front = config.cost_metric and config.space_name in SPACES and space.fill
    return space.model_copy(update={"fill": FRONT_FILL}) if is_front else space


def _default_images(config: SearchConfig, train_data: Images, recipe: Recipe, device: str) -> int | None:
    """The images of candidates unless they are given: a part of many images."""
    usual = EFFORTS[config.effort].images
    enough = len(train_data) >= 2 * usual and recipe.scaled_to(usual).batch_size <= usual
    part = (
        device == "cpu" and enough and config.search_epochs is None and not _lacks_classes(train_data, usual)
    )
    return usual if part else None


def _checked_part(train_data: Images, images: int | None, classes: int) -> Images:
    """The images that candidates train on; raises `InputError` for too few, too many or a missing class."""
    if images is None:
        return train_data
    if not classes <= images < len(train_data):
        most = len(train_data) - 1
        raise InputError(
            f"--search-images: {images:,} (use all, or {classes:,} to {most:,}: {most + 1:,} train)"
        )
    if _lacks_classes(train_data, images):
        raise InputError(f"--search-images: {images:,} (use more: a class is not among so few)")
    return train_data.sample(images)


def _lacks_classes(train_data: Images, images: int) -> bool:
    return len(train_data.sample(images).labels.unique()) < len(train_data.labels.unique())
