"""Distillation: a network learns from a bigger one, too (Hinton et al. 2015, arxiv.org/abs/1503.02531).

The teacher is a network of the zoo, trained first, on the same images: it has seen no others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..data.dataset import Images
from ..models.architecture import Architecture
from ..models.network import Network, build
from ..models.zoo import load
from ..recipes.recipe import Distillation, Recipe, load_recipe
from .loop import EpochResult, train

SEED = 0  # of a teacher's training


@dataclass(frozen=True)
class Teacher:
    """A trained network as plain data, for other processes."""

    architecture: Architecture
    weights: Mapping[str, Any]  # numpy arrays

    def network(self, device: torch.device) -> Network:
        """The network on a device, as it scores."""
        network = Network(self.architecture)
        network.load_state_dict({name: torch.from_numpy(array) for name, array in self.weights.items()})
        return network.to(device).eval()


def teacher_of(recipe: Recipe) -> tuple[Architecture, Recipe] | None:
    """The teacher that a recipe names, and how it is trained: by its own recipe, for as many epochs."""
    if recipe.distillation.off:
        return None
    entry = load(recipe.distillation.teacher)
    own = load_recipe(entry.recipe).model_copy(update={"distillation": Distillation()})
    return entry.architecture, own.with_epochs(recipe.epochs)


def train_teacher(
    recipe: Recipe, learn: Images, on_epoch: Callable[[str, EpochResult], None] = lambda *_: None
) -> Teacher | None:
    """The teacher that a recipe names, trained on these images; None where it names none.

    ``on_epoch`` hears of its epochs under its name. Raises what `training.train` raises.
    """
    if (named := teacher_of(recipe)) is None:
        return None
    architecture, own = named
    model = build(architecture, SEED).to(learn.images.device)
    for result in train(model, learn, own, seed=SEED):
        on_epoch(f"teacher {recipe.distillation.teacher}", result)
    return Teacher(architecture, {name: one.cpu().numpy() for name, one in model.state_dict().items()})
