"""How a candidate is trained: frozen data like the architecture, read from TOML."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..core.defaults import MAX_EPOCHS
from ..core.digest import digest
from ..core.errors import InputError, choices, explain
from ..core.fileio import parse_toml, read_text

RECIPES = ("default", "small", "tiny", "published")  # in the package
ALIASES = {"seed": "published"}  # older names, still accepted


class Augmentation(BaseModel):
    """A random affine map for every image of a batch; outside its nearest pixel. All zeros: off."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rotate: float = Field(0.0, ge=0, le=180)  # degrees either way
    translate: float = Field(0.0, ge=0, le=1)  # share of the image's size either way
    scale: float = Field(0.0, ge=0, lt=1)  # share of the image's size, larger or smaller
    shear: float = Field(0.0, ge=0, le=60)  # degrees either way

    @property
    def off(self) -> bool:
        """Whether images pass unchanged."""
        return not (self.rotate or self.translate or self.scale or self.shear)


class Recipe(BaseModel):
    """All training choices apart from the data, the seed and the device."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(MAX_EPOCHS, ge=1, le=MAX_EPOCHS, strict=True)
    batch_size: int = Field(128, ge=1, le=8192, strict=True)  # images a step; an epoch's remainder is dropped
    min_steps: int = Field(1, ge=1, le=1000, strict=True)  # an epoch; see `scaled_to`
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(0.1, gt=0, le=100)  # peak
    momentum: float = Field(0.9, ge=0, lt=1)  # of SGD; AdamW's beta1
    nesterov: bool = False  # SGD only
    weight_decay: float = Field(0.0, ge=0, le=1)  # of convolution weights only
    schedule: Literal["constant", "cosine", "linear"] = "cosine"  # after warm-up; the last two fall to zero
    warmup: float = Field(0.0, ge=0, lt=1)  # share of all steps in which the learning rate rises from zero
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    average: float = Field(0.0, ge=0, lt=1)  # decay of the weights' running average, per step; 0: off
    augmentation: Augmentation = Augmentation()

    @model_validator(mode="after")
    def _check_nesterov(self) -> Recipe:
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            raise ValueError("nesterov: true needs optimizer 'sgd' and a momentum above 0")
        return self

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that are equal exactly when the recipes are."""
        return digest(self)

    def scaled_to(self, images: int) -> Recipe:
        """The recipe for an epoch of ``images`` images.

        If they give fewer than `min_steps` steps, the batch size shrinks, and the learning rate with it (the
        linear scaling rule, Goyal et al. 2017, arxiv.org/abs/1706.02677). It stays at two or more, because
        batch normalisation needs the variance of a batch.
        """
        batch_size = max(2, images // self.min_steps)
        if self.min_steps == 1 or self.batch_size <= batch_size:
            return self
        learning_rate = self.learning_rate * batch_size / self.batch_size
        return Recipe.model_validate(
            {**self.model_dump(), "batch_size": batch_size, "learning_rate": learning_rate, "min_steps": 1}
        )

    def with_epochs(self, epochs: int | None) -> Recipe:
        """The same recipe, its schedule stretched over another number of epochs; None: unchanged."""
        if epochs is None:
            return self
        return Recipe.model_validate({**self.model_dump(), "epochs": epochs})


def make_recipe(data: Any, where: str) -> Recipe:
    """Check plain data; raises `InputError` with ``where``, the field, the value and what is allowed."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{where}: {explain(error, Recipe)}") from None


def stored_recipe(data: Any, where: str) -> Recipe:
    """A recipe from a study or a result of this or an earlier version; raises `InputError`.

    Earlier versions stored a ``distillation`` without a teacher, which did nothing.
    """
    if isinstance(data, dict) and not (data.get("distillation") or {}).get("teacher"):
        data = {name: value for name, value in data.items() if name != "distillation"}
    return make_recipe(data, where)


def load_recipe(name: str) -> Recipe:
    """The packaged recipe called ``name``, or the one in a TOML file; raises `InputError`.

    Changed fields may follow a colon: ``tiny:learning_rate=0.1,augmentation.rotate=0``.
    """
    base, _, changes = name.rpartition(":")
    if not base or "=" not in changes:
        base, changes = name, ""
    base = current_name(base)
    if base in RECIPES:
        text = resources.files("nas_mnist.recipes").joinpath(f"{base}.toml").read_text()
    elif base.endswith(".toml"):
        text = read_text(Path(base), "recipe")
    else:
        advice = choices(base, RECIPES, " or a file ending in .toml")
        raise InputError(f"recipe: {base!r} is not known {advice}")
    recipe = make_recipe(parse_toml(text, base), base)
    return _with_changes(recipe, changes, base) if changes else recipe


def current_name(name: str) -> str:
    """The name of a recipe today, for one that results of earlier versions may store."""
    return ALIASES.get(name, name)


def _with_changes(recipe: Recipe, changes: str, where: str) -> Recipe:
    """The recipe with ``field=value,field=value``; raises `InputError`."""
    fields = recipe.model_dump()
    for change in changes.split(","):
        path, sign, value = (part.strip() for part in change.partition("="))
        *outer, field = path.split(".")
        parent: Any = fields
        for name in outer:
            parent = parent.get(name) if isinstance(parent, dict) else None
        if not sign:
            raise InputError(f"{where}: {change!r} changes nothing (use field=value,field=value)")
        if not isinstance(parent, dict) or field not in parent:
            known = parent if isinstance(parent, dict) else fields
            raise InputError(f"{where}: {path!r} is not known {choices(field, known)}")
        parent[field] = _parse_value(value)
    return make_recipe(fields, f"{where}:{changes}")


def _parse_value(text: str) -> Any:
    """A value in TOML's notation; a word needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
