"""How a candidate is trained: frozen data like the architecture, read from TOML."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ..core.errors import InputError, explain
from ..core.fileio import read_text
from ..models.architecture import digest
from ..models.zoo import names

if TYPE_CHECKING:
    from ..space.sampling import Suggest

MAX_EPOCHS = 20  # the exercise allows no more
RECIPES = ("default", "seed", "small", "tiny")


class Augmentation(BaseModel):
    """A random map for every image of a batch; all zeros: off."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rotate: float = Field(0.0, ge=0, le=180)  # degrees either way
    translate: float = Field(0.0, ge=0, le=1)  # share of the image's size either way
    scale: float = Field(0.0, ge=0, lt=1)  # share of the image's size, larger or smaller
    shear: float = Field(0.0, ge=0, le=60)  # degrees either way

    @property
    def off(self) -> bool:
        """Whether images pass unchanged."""
        return not (self.rotate or self.translate or self.scale or self.shear)


class Distillation(BaseModel):
    """A bigger network from which this one learns as well; no ``teacher``: off."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    teacher: str = ""  # of the zoo; it is trained first, on the same images, by its own recipe
    share: float = Field(0.7, gt=0, le=1)  # of the loss that the teacher decides, not the labels
    temperature: float = Field(3.0, gt=0, le=100)  # that both networks' scores are divided by for that

    @field_validator("teacher")
    @classmethod
    def _known(cls, teacher: str) -> str:
        if teacher and teacher not in names():
            raise ValueError(f"use {', '.join(names())}")
        return teacher

    @property
    def off(self) -> bool:
        """Whether there is no teacher."""
        return not self.teacher


class Recipe(BaseModel):
    """Everything that decides how weights are learned, apart from the data, the seed and the device."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(MAX_EPOCHS, ge=1, le=MAX_EPOCHS, strict=True)
    batch_size: int = Field(128, ge=1, le=8192, strict=True)  # images a step; an epoch's remainder is dropped
    min_steps: int = Field(1, ge=1, le=1000, strict=True)  # an epoch; see `fitted`
    optimizer: Literal["sgd", "muon", "adamw"] = "sgd"
    learning_rate: float = Field(0.1, gt=0, le=100)  # at its peak
    momentum: float = Field(0.9, ge=0, lt=1)  # of SGD and Muon; AdamW's beta1
    nesterov: bool = False  # SGD and Muon only
    weight_decay: float = Field(0.0, ge=0, le=1)  # of convolution weights only
    schedule: Literal["constant", "cosine", "linear"] = "cosine"  # how the rate falls, to zero, after warm-up
    warmup: float = Field(0.0, ge=0, lt=1)  # share of all steps in which the rate rises from zero
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    average: float = Field(0.0, ge=0, lt=1)  # decay of the running average of weights, per step; 0: off
    augmentation: Augmentation = Augmentation()
    distillation: Distillation = Field(  # absent from what is stored where it is off: older digests stay
        Distillation(), exclude_if=lambda distillation: distillation.off
    )

    @model_validator(mode="after")
    def _fits_the_optimizer(self) -> Recipe:
        if self.nesterov and (self.optimizer == "adamw" or not self.momentum):
            raise ValueError("nesterov: true needs optimizer 'sgd' or 'muon' and a momentum above 0")
        return self

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that are equal exactly when the recipes are."""
        return digest(self)

    def fitted(self, images: int) -> Recipe:
        """The recipe for a data set of some size.

        Where an epoch would have fewer than `min_steps` steps, batches are smaller, and so is the learning
        rate, in proportion (the linear scaling rule, Goyal et al. 2017, arxiv.org/abs/1706.02677).
        """
        if self.min_steps == 1 or self.batch_size * self.min_steps <= images:
            return self
        batch_size = max(1, images // self.min_steps)
        rate = self.learning_rate * batch_size / self.batch_size
        return Recipe.model_validate(
            {**self.model_dump(), "batch_size": batch_size, "learning_rate": rate, "min_steps": 1}
        )

    def with_epochs(self, epochs: int) -> Recipe:
        """The same recipe, its schedule stretched over another number of epochs."""
        return Recipe.model_validate({**self.model_dump(), "epochs": epochs})


FACTORS = {  # by the draw's name: what a recipe's own value is multiplied with
    "recipe.learning_rate": (0.5, 1.0, 2.0),
    "recipe.augmentation": (0.0, 0.5, 1.0, 1.5),  # of every part; of `_MILD` where the recipe has none
}
VALUES = {  # by the draw's name: what stands beside a recipe's own value
    "recipe.label_smoothing": (0.0, 0.05, 0.1),
    "recipe.average": (0.0, 0.99, 0.997),
}
_MILD = Augmentation(rotate=10.0, translate=0.1, scale=0.1)
_MOST = {"rotate": 180.0, "translate": 1.0, "scale": 0.99, "shear": 60.0}


def vary(recipe: Recipe, suggest: Suggest) -> Recipe:
    """Draw a few training choices around a recipe: peak learning rate, augmentation, smoothing, averaging."""
    own = unvaried(recipe)
    factor = {name: suggest.suggest_categorical(name, factors) for name, factors in FACTORS.items()}
    value = {
        name: suggest.suggest_categorical(name, sorted({own[name], *values}))
        for name, values in VALUES.items()
    }
    parts = (_MILD if recipe.augmentation.off else recipe.augmentation).model_dump()
    drawn = {
        "learning_rate": min(recipe.learning_rate * factor["recipe.learning_rate"], 100.0),
        "augmentation": {
            name: min(part * factor["recipe.augmentation"], _MOST[name]) for name, part in parts.items()
        },
        "label_smoothing": value["recipe.label_smoothing"],
        "average": value["recipe.average"],
    }
    return Recipe.model_validate(recipe.model_dump() | drawn)


def unvaried(recipe: Recipe) -> dict[str, float]:
    """The draws with which `vary` changes nothing."""
    return {
        "recipe.learning_rate": 1.0,
        "recipe.augmentation": 0.0 if recipe.augmentation.off else 1.0,
        "recipe.label_smoothing": recipe.label_smoothing,
        "recipe.average": recipe.average,
    }


def make_recipe(data: Any, where: str) -> Recipe:
    """Validate plain data; raises `InputError` naming the file, the field, the value and what is allowed."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{where}: {explain(error)}") from None


def load_recipe(name: str) -> Recipe:
    """The recipe called ``name`` in the package, or the one in a TOML file; raises `InputError`.

    Behind a colon there may be fields that differ: ``tiny:learning_rate=0.1,augmentation.rotate=0``.
    """
    before, _, changes = name.rpartition(":")
    if "=" in changes and before:
        name = before
    else:
        changes = ""
    if name in RECIPES:
        text, where = resources.files("nas_mnist.recipes").joinpath(f"{name}.toml").read_text(), name
    elif name.endswith(".toml"):
        text, where = read_text(Path(name), "recipe"), name
    else:
        raise InputError(
            f"recipe: {name!r} is not known (use {', '.join(RECIPES)} or a file ending in .toml)"
        )
    recipe = make_recipe(parse_toml(text, where), where)
    return _changed(recipe, changes, where) if changes else recipe


def _changed(recipe: Recipe, changes: str, where: str) -> Recipe:
    """The recipe with ``field=value,field=value``."""
    fields = recipe.model_dump() | {"distillation": recipe.distillation.model_dump()}
    for change in changes.split(","):
        path, sign, value = (part.strip() for part in change.partition("="))
        *outer, field = path.split(".")
        place: Any = fields
        for name in outer:
            place = place.get(name) if isinstance(place, dict) else None
        if not sign:
            raise InputError(f"{where}: {change!r} changes nothing (use field=value,field=value)")
        if not isinstance(place, dict) or field not in place:
            known = ", ".join(place if isinstance(place, dict) else fields)
            raise InputError(f"{where}: {path!r} is not known (use {known})")
        place[field] = _value(value)
    return make_recipe(fields, f"{where}:{changes}")


def _value(text: str) -> Any:
    """A value as TOML writes it; a word needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def check_untaught(recipe: Recipe) -> None:
    """Raise `InputError` for a recipe with a teacher: many candidates are trained without one."""
    if not recipe.distillation.off:
        raise InputError(
            f"recipe: distillation.teacher {recipe.distillation.teacher!r} (use none for candidates; "
            "'reproduce' trains with a teacher)"
        )


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """A TOML document as a dictionary; raises `InputError` naming the file and the line."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError also of a number with thousands of digits
        raise InputError(f"{where}: not TOML ({str(error)[0].lower()}{str(error)[1:]})") from None
