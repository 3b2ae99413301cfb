"""Distillation: a network learns from a bigger one, too (Hinton et al. 2015, arxiv.org/abs/1503.02531).

The teacher is a network of the zoo, trained first, on the same images: it has seen no others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .architecture import Architecture
from .model import Network, build
from .recipe import Distillation, Recipe, load_recipe
from .scoring import forward_on
from .zoo import load

if TYPE_CHECKING:
    from .data import Images
    from .training import EpochResult

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
    from .training import train

    if (named := teacher_of(recipe)) is None:
        return None
    architecture, own = named
    model = build(architecture, SEED).to(learn.images.device)
    for result in train(model, learn, own, seed=SEED):
        on_epoch(f"teacher {recipe.distillation.teacher}", result)
    return Teacher(architecture, {name: one.cpu().numpy() for name, one in model.state_dict().items()})


class Lessons:
    """What a teacher adds to the loss."""

    def __init__(self, teacher: Network, how: Distillation, plain: bool = False) -> None:
        """``plain``: the teacher is run by torch's own modules."""
        self.how = how
        device = next(teacher.parameters()).device
        self.forward = teacher if plain else forward_on(teacher, device)

    def __call__(self, losses: Tensor, scores: Tensor, images: Tensor) -> Tensor:
        """The losses (N,) with the teacher's share: of scores (N, classes) for images (N, C, H, W).

        That share is the cross-entropy of both networks' softmax at a temperature, times its square, which
        keeps the gradients' size (section 2 of the paper).
        """
        share, temperature = self.how.share, self.how.temperature
        with torch.no_grad():
            wanted = (self.forward(images).float() / temperature).softmax(1)
        taught = F.cross_entropy(scores / temperature, wanted, reduction="none") * temperature**2
        return losses.lerp(taught, share)
