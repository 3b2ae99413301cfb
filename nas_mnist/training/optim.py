"""The choice of the optimiser, and AdamW on flat parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..engine.backend import Optimizer, Trainer
from ..engine.flat_parameters import FlatParameters
from ..engine.sgd import StepTables
from ..recipes.recipe import Recipe


def create_optimizer(
    trainer: Trainer, parameters: FlatParameters, recipe: Recipe, tables: StepTables, ema: Tensor | None
) -> Optimizer:
    """The recipe's optimiser; ``ema``: the averaged network's flat parameters, if the recipe averages."""
    if recipe.optimizer == "adamw":
        return AdamW(parameters, recipe, tables, ema)
    return trainer.sgd(recipe, tables, ema)


class AdamW:
    """`torch.optim.AdamW` on flat parameters, then the EMA of the parameters.

    Weight decay applies to convolution weights, not to biases and normalisation.
    """

    def __init__(
        self, parameters: FlatParameters, recipe: Recipe, tables: StepTables, ema: Tensor | None
    ) -> None:
        self.flat, self.tables, self.ema = parameters, tables, ema
        self.lr = torch.zeros((), device=parameters.all.device)  # read by the optimiser at every step
        self.flat.weights.grad, self.flat.others.grad = self.flat.weight_gradient, self.flat.other_gradient
        groups: list[dict[str, Any]] = [
            {"params": [self.flat.weights], "weight_decay": recipe.weight_decay},
            {"params": [self.flat.others], "weight_decay": 0.0},
        ]
        betas, on_cuda = (recipe.momentum, 0.999), self.lr.device.type == "cuda"
        self.adamw = torch.optim.AdamW(groups, lr=self.lr, betas=betas, fused=True, capturable=on_cuda)

    def step(self) -> None:
        """Take one step."""
        self.lr.copy_(self.tables.lr())
        self.adamw.step()
        self.tables.ema_update(self.ema, self.flat.all)
