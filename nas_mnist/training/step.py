"""One training step: gather, augment, normalise, forward, backward, optimise, average.

`plain_step` is the same in ordinary torch. Everything that changes from step to step is a tensor on the
device, at an address that stays: the step index, the order of the images, the augmentation maps, the learning
rates. So a step never waits for the host, and CUDA can record one step and replay it
(pytorch.org/docs/stable/notes/cuda.html#cuda-graphs). For a network this small, launching a step's kernels
one by one takes longer than running them.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

import torch

from ..core.defaults import Engine
from ..data.dataset import Images
from ..data.normalize import Normalizer
from ..engine.backend import create_backend
from ..engine.batches import Batches
from ..engine.flat_parameters import FlatParameters
from ..engine.sgd import StepTables
from ..models.network import Network
from ..recipes.recipe import Recipe
from .augment import draw_affine_maps
from .optim import create_optimizer
from .schedule import ema_alphas, lr_table

EAGER_STEPS = 3  # before CUDA records one: by then the optimiser has its state


class TrainStep:
    """A network in training; a call trains on one batch.

    Networks side by side are trained on batches of their own, in an order and with augmentation from a
    generator each.
    """

    def __init__(
        self,
        model: Network,
        data: Images,
        recipe: Recipe,
        generators: Sequence[torch.Generator],
        engine: Engine | None = None,
    ) -> None:
        """The model's weights move to memory of the step's own; ``generators``: one a network."""
        device = data.images.device
        self.model, self.data, self.recipe, self.generators = model, data, recipe, generators
        self.steps = len(data) // recipe.batch_size  # an epoch; the remainder of the images is left out
        self.parameters = FlatParameters(model)
        self.normalize = Normalizer.of(data.images)
        self.backend = create_backend(model, device, engine)
        self.trainer = self.backend.trainer(self.parameters, data, self.normalize, recipe)
        self.ema = copy.deepcopy(model) if recipe.average else None
        self.ema_parameters = None if self.ema is None else FlatParameters(self.ema).all
        self.tables = StepTables(
            torch.zeros(1, dtype=torch.long, device=device),
            torch.tensor(lr_table(recipe, self.steps), device=device),
            torch.tensor(ema_alphas(recipe, self.steps), device=device),
        )
        self.optimizer = create_optimizer(
            self.trainer, self.parameters, recipe, self.tables, self.ema_parameters
        )
        shape = self.steps, model.copies * recipe.batch_size  # of a step: one network after the other
        order = torch.zeros(shape, dtype=torch.long, device=device)
        maps = torch.zeros((*shape, *self.trainer.map_shape), device=device)
        self.batches = Batches(order, None if recipe.augmentation.off else maps)
        self.loss = torch.zeros(model.copies, device=device)  # sums over the batches of the epoch so far
        self.calls = 0
        self.recordable = self.backend.recordable
        self.graph: torch.cuda.CUDAGraph | None = None

    @property
    def result(self) -> Network:
        """The network that is scored: the averaged one if the recipe averages."""
        return self.model if self.ema is None else self.ema

    @property
    def lr(self) -> float:
        """The learning rate of the newest step."""
        return float(self.tables.lr_table[self.tables.step_index - 1])

    def begin_epoch(self) -> None:
        """Shuffle the images, draw how each is augmented, and set the loss to zero."""
        self.loss.zero_()
        recipe, batches = self.recipe, self.batches
        for copy_index, generator in enumerate(self.generators):
            part = slice(copy_index * recipe.batch_size, (copy_index + 1) * recipe.batch_size)
            shuffled = torch.randperm(len(self.data), generator=generator, device=generator.device)
            picked = shuffled[: self.steps * recipe.batch_size]
            batches.order[:, part] = picked.view(self.steps, -1)
            if batches.maps is not None:
                maps = draw_affine_maps(recipe.augmentation, len(picked), generator)
                batches.maps[:, part] = self.trainer.prepare_maps(maps).unflatten(0, (self.steps, -1))

    def run(self, steps: int) -> None:
        """Train on the next batches, at most to the end of the epoch."""
        self.model.train()
        with self.backend.reserve_threads():
            for _ in range(steps):
                if self.recordable and self.calls == EAGER_STEPS:
                    self.graph = _record(self)
                if self.graph is None:
                    self()
                else:
                    self.graph.replay()

    def __call__(self) -> None:
        """Train on the next batch."""
        self.calls += 1
        self.loss += self.trainer.losses(self.batches, self.tables.step_index % self.steps)
        self.optimizer.step()
        self.tables.step_index.add_(1)


def _record(step: TrainStep) -> torch.cuda.CUDAGraph | None:
    """A step as a CUDA graph; recording does not train. None, with a warning, if it cannot be recorded."""
    try:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            step()
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        warnings.warn(f"steps are launched one by one, as recording one failed: {reason}", stacklevel=2)
        return None
    return graph
