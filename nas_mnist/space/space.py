"""The search space: read from a TOML file, and drawn from.

A space draws through `suggest_int` and `suggest_categorical` alone. A live Optuna trial, fixed parameters and
a random draw therefore run the same code.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from importlib import resources
from statistics import median_low
from typing import NamedTuple

from pydantic import Field, ValidationError, model_validator

from ..core.defaults import MAX_PARAMS
from ..core.digest import digest
from ..core.errors import InputError, choices, explain
from ..core.fileio import expand_user, parse_toml, read_text
from ..models.architecture import Architecture
from ..models.blocks import Block, Classes, Frozen, InputShape
from ..models.cost import Budget, cost_of
from ..models.width import fit_width_multiplier
from .options import (
    BLOCK_NAMES,
    Activations,
    BlockName,
    BlockNames,
    ChannelCounts,
    Counts,
    Downsamples,
    Expansions,
    Flags,
    HeadOrders,
    Kernels,
    MultiplyAdds,
    Norms,
    Paddings,
    Rates,
    Shares,
    Transitions,
)
from .own_blocks import OwnBlock
from .sampling import Params, RandomSampler, TrialLike, suggest
from .stages import stage_blocks

SPACES = ("default", "tiny", "strided", "classic")  # in the package


class NetworkSpace(Frozen):
    """The defaults of all stages; one value of each key is drawn for the whole network."""

    bias: Flags = (False,)
    norm: Norms = ("before",)
    activation: Activations = ("relu",)
    dropout: Rates = (0.0,)
    middle: Flags = (False,)  # separable blocks: normalisation and activation after the depthwise part too

    @property
    def drawn_keys(self) -> tuple[str, ...]:
        """The keys with one value a network."""
        return tuple(NetworkSpace.model_fields)


class StageSpace(Frozen):
    """An optional 1x1 transition, some blocks of one kind, repeats, an optional down-sampling by two.

    The ``repeats`` have as many channels as their input. They share the weights of the last block before them
    if that block reads as many channels as it writes; else the first has its own weights and the others
    share those.
    """

    transition: Transitions = (0,)
    blocks: Counts
    block: BlockNames = ("conv",)  # of `BLOCK_NAMES`, or own blocks of the space
    expansion: Expansions = Field((3,), exclude_if=(3,).__eq__)  # of inverted blocks; excluded as `repeats`
    channels: ChannelCounts  # drawn for every block
    repeats: Counts = Field((0,), exclude_if=(0,).__eq__)  # excluded: older spaces keep their digests
    kernel: Kernels = (3,)
    padding: Paddings = ("same",)
    downsample: Downsamples = ("none",)
    bias: Flags | None = None
    norm: Norms | None = None
    activation: Activations | None = None
    dropout: Rates | None = None
    middle: Flags | None = None

    @property
    def drawn_keys(self) -> tuple[str, ...]:
        """The keys with one value a stage; a key of `NetworkSpace` that is None has the network's value."""
        own = [name for name in NetworkSpace.model_fields if getattr(self, name) is not None]
        return ("transition", "blocks", "repeats", "block", "kernel", "padding", "downsample", *own)


class HeadSpace(Frozen):
    """From feature maps to class scores; kernel and padding are drawn for ``conv_then_pool`` only."""

    order: HeadOrders = ("conv_then_pool",)
    kernel: Kernels = (1,)
    padding: Paddings = ("valid",)
    bias: Flags = (True,)
    norm: Flags = (False,)


class Survey(NamedTuple):
    """The costs of plain random draws from a space."""

    tried: int
    feasible: int  # draws that fit the budget
    median_params: int  # of these; 0: there is none
    least: dict[str, int]  # the lowest cost among all draws, by the name of the limit


class SearchSpace(Frozen):
    """All architectures that a search may draw.

    With ``fill``, ``channels`` and ``transition`` are relative widths: each candidate gets the largest width
    multiplier that keeps it within a drawn share of the budget and ``max_macs``. Nearly every draw then fits.
    """

    input_shape: InputShape = (1, 28, 28)
    classes: Classes = 10
    fill: Shares | None = None  # shares of the budget
    max_macs: MultiplyAdds | None = Field(None, exclude_if=lambda macs: macs is None)  # of a draw with `fill`
    blocks: dict[BlockName, OwnBlock] = Field({}, max_length=32, exclude_if={}.__eq__)  # own ones, by name
    network: NetworkSpace = NetworkSpace()
    stages: tuple[StageSpace, ...] = Field(min_length=1, max_length=12)
    head: HeadSpace = HeadSpace()

    @model_validator(mode="after")
    def _check_max_macs(self) -> SearchSpace:
        if self.max_macs is not None and self.fill is None:
            raise ValueError(f"max_macs: {self.max_macs} (only with fill: it limits relative widths)")
        return self

    @model_validator(mode="after")
    def _check_blocks(self) -> SearchSpace:
        for name in self.blocks:
            if name in BLOCK_NAMES:
                raise ValueError(f"blocks.{name}: this name is taken (use another)")
        known = (*BLOCK_NAMES, *self.blocks)
        for number, stage in enumerate(self.stages):
            for name in stage.block:
                if name not in known:
                    raise ValueError(f"stages[{number}].block: {name!r} {choices(name, known)}")
        return self

    @classmethod
    def make(cls, data: object, where: str = "space") -> SearchSpace:
        """Check the content of a TOML document; raises `InputError` with file, key and value."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise InputError(f"{where}: {explain(error, cls)}") from None

    @classmethod
    def from_toml(cls, text: str, where: str = "space") -> SearchSpace:
        """Parse and check a TOML document; raises `InputError` with file, key and value."""
        return cls.make(parse_toml(text, where), where)

    @classmethod
    def load(cls, name: str = "default") -> SearchSpace:
        """The preset called ``name``, or the space in a TOML file; raises `InputError`."""
        if name in SPACES:
            presets = resources.files("nas_mnist.space.presets")
            return cls.from_toml(presets.joinpath(f"{name}.toml").read_text())
        path = expand_user(name, "space")
        if not name.endswith(".toml") and not os.path.lexists(path):
            advice = choices(name, SPACES, " or a file ending in .toml")
            raise InputError(f"space: {name!r} is not known {advice}")
        return cls.from_toml(read_text(path, "space"), name)

    @classmethod
    def load_for(
        cls, name: str, input_shape: tuple[int, int, int], classes: int, dataset: str, budget: Budget | None
    ) -> SearchSpace:
        """A space for a data set and a budget: a preset is fitted to them, a file must already fit.

        Without a budget ``max_macs`` stays as it is, as in earlier versions.
        Raises `InputError` naming ``dataset`` where a file does not fit.
        """
        space = cls.load(name)
        if name in SPACES:
            space = space.model_copy(update={"input_shape": input_shape, "classes": classes})
            return space if budget is None else space._with_max_macs_for(budget)
        found, wanted = list(space.input_shape), list(input_shape)
        if found != wanted:
            raise InputError(f"space: input_shape {found} does not fit {dataset} (use {wanted})")
        if space.classes != classes:
            raise InputError(f"space: classes {space.classes} does not fit {dataset} (use {classes})")
        return space

    def _with_max_macs_for(self, budget: Budget) -> SearchSpace:
        """A preset whose ``max_macs``, meant for 28 x 28 images and 20,000 parameters, leaves room for more.

        It grows with the area of the images and with the budget. A higher limit of the budget replaces it.
        """
        if self.max_macs is None:
            return self
        area = self.input_shape[1] * self.input_shape[2] / 28**2
        macs = round(self.max_macs * max(area, 1) * max(budget.max_params / MAX_PARAMS, 1))
        is_replaced = budget.max_macs is not None and budget.max_macs >= macs
        return self.model_copy(update={"max_macs": None if is_replaced else macs})

    @property
    def normalises(self) -> bool:
        """Whether a draw may have batch normalisation."""
        drawn = {norm for stage in self.stages for norm in stage.norm or self.network.norm}
        own = {layer.norm for block in self.blocks.values() for layer in block.layers}
        return any(self.head.norm) or not drawn | own <= {"none", None}

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that are equal exactly when the spaces are."""
        return digest(self)

    def draw(self, trial: TrialLike, budget: Budget) -> Architecture:
        """Draw all parameters, then make the candidate; ``budget`` matters only with ``fill``.

        Raises `InputError` where the parameters make no valid network (a map that shrinks below one pixel).
        All parameters have been drawn by then, so that a sampler learns from the complete draw.
        """
        share = None if self.fill is None else suggest(trial, "fill", self.fill)
        network = _draw(trial, "network", self.network, self.network.drawn_keys)
        blocks: list[Block] = []
        for number, stage in enumerate(self.stages, 1):
            prefix = f"stage{number}"
            params = _draw(trial, prefix, stage, stage.drawn_keys)
            if params["block"] == "inverted":
                params |= _draw(trial, prefix, stage, ("expansion",))
            widths = [
                suggest(trial, f"{prefix}.channels{place}", stage.channels)
                for place in range(1, int(params["blocks"]) + 1)
            ]
            blocks += stage_blocks(network | params, widths, blocks, self.input_shape[0], self.blocks)
        architecture = Architecture.make(
            {
                "input_shape": self.input_shape,
                "classes": self.classes,
                "blocks": blocks,
                "head": _draw_head(trial, self.head),
            }
        )
        if share is None:
            return architecture
        return fit_width_multiplier(architecture, budget.with_share(share).with_max_macs(self.max_macs))

    def survey(self, budget: Budget, tries: int, rng: random.Random) -> Survey:
        """Count the costs of random draws, without building a network."""
        least: dict[str, int] = {}
        fitting: list[int] = []  # parameters
        for _ in range(tries):
            try:
                cost = cost_of(self.draw(RandomSampler(rng), budget))
            except InputError:
                continue
            for name, value in budget.usage(cost).items():
                least[name] = min(least.get(name, value), value)
            if budget.fits(cost):
                fitting.append(cost.params)
        return Survey(tries, len(fitting), median_low(fitting) if fitting else 0, least)


def _draw(trial: TrialLike, prefix: str, keys: Frozen, names: Sequence[str]) -> Params:
    """One value for each named key of a part of the space, drawn as ``prefix.name``."""
    return {name: suggest(trial, f"{prefix}.{name}", getattr(keys, name)) for name in names}


def _draw_head(trial: TrialLike, head: HeadSpace) -> Params:
    order = _draw(trial, "head", head, ("order",))
    conv_first = order["order"] == "conv_then_pool"
    shape = _draw(trial, "head", head, ("kernel", "padding")) if conv_first else {}
    return order | shape | _draw(trial, "head", head, ("bias", "norm"))
