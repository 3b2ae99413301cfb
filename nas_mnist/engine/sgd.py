"""Stochastic gradient descent on flat parameters: few operations, and none that waits for the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..recipes.recipe import Recipe
from .flat_parameters import FlatParameters


class StepTables(NamedTuple):
    """Numbers that change from step to step, as tensors on the device."""

    step_index: Tensor  # (1,) int64: steps done
    lr_table: Tensor  # (steps of the whole training,) float32: learning rates
    ema_alphas: Tensor  # (steps of the whole training,) float32: weight of the newest parameters in the EMA

    def lr(self) -> Tensor:
        """The learning rate of the next step, a 0-d tensor."""
        return self.lr_table.index_select(0, self.step_index)[0]  # a 0-d index would wait for the device

    def ema_update(self, ema: Tensor | None, newest: Tensor) -> None:
        """Move the exponential moving average towards the newest parameters, in place."""
        if ema is not None:
            ema.lerp_(newest, self.ema_alphas.index_select(0, self.step_index)[0])


class SGD:
    """`torch.optim.SGD` with momentum in four operations, then the EMA of the parameters."""

    def __init__(
        self, parameters: FlatParameters, recipe: Recipe, tables: StepTables, ema: Tensor | None = None
    ) -> None:
        """``ema``: the flat parameters of the averaged network, updated after every step."""
        self.parameters, self.recipe, self.tables, self.ema = parameters, recipe, tables, ema
        self.momentum_buffer = torch.zeros_like(parameters.gradient)

    @torch.no_grad()
    def step(self) -> None:
        """Take one step; the gradient is used up. Weight decay applies to convolution weights only."""
        flat, momentum, weight_decay = self.parameters, self.recipe.momentum, self.recipe.weight_decay
        if weight_decay:
            flat.weight_gradient.add_(flat.weights, alpha=weight_decay)
        self.momentum_buffer.mul_(momentum).add_(flat.gradient)
        update = self.momentum_buffer
        if self.recipe.nesterov:
            update = flat.gradient.add_(self.momentum_buffer, alpha=momentum)
        flat.trained.addcmul_(update, self.tables.lr(), value=-1)
        self.tables.ema_update(self.ema, flat.all)
