"""A training step on CUDA as launches of kernels of our own: what `step.Step` does there.

torch's operations for small numbers take longer to launch than to run, and there would be about 60 of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...recipes.recipe import Recipe
from ...training.optim import Numbers
from ..warp import Warp
from . import kernels
from .launch import Launch, run
from .network import GpuNetwork
from .writer import WARP


class Learner:
    """Makes a step's images, runs the network forward, finds the loss, and runs it back."""

    def __init__(self, network: GpuNetwork, warp: Warp, count: int, smoothing: float) -> None:
        """``count``: images a step for every network side by side."""
        self.body = body = network.body(count, learns=True)
        copies, kind, device = body.copies, body.kind, body.kind.device
        channels, height, width = body.plan.image.shape
        classes = body.scores.shape[0]
        self.picked = torch.zeros((1, copies * count), dtype=torch.long, device=device)  # positions of images
        self.lines = warp.unchanged(copies * count)[None]  # how they are mapped, as `Warp.lines` says
        self.labels = torch.zeros(copies * count, dtype=torch.long, device=device)
        self.losses = kind.zeros((body.groups, 1))
        normal = torch.tensor(warp.normal, device=device)
        asked = [smoothing / classes, 1 - smoothing, 1 / count]
        numbers = kind.zeros((3,))
        numbers.copy_(torch.tensor(asked))
        self.memory = warp, normal, numbers
        target = body.outcomes[body.plan.image].maps
        data = [one.data_ptr() for one in (warp.images, self.picked, self.lines, normal)]
        arguments = [*target.arguments, *data, channels, height, width, count]
        self.pictures = [
            Launch(kind, kernels.pictures(kind), arguments, channels, body.groups, body.rows(height), copies)
        ]
        losses = [self.losses.data_ptr(), self.losses.element_size()]
        data = [self.labels.data_ptr(), classes, count, numbers.data_ptr(), body.there.data_ptr()]
        arguments = [*body.scores.arguments, *body.out_gradient.arguments, *data, *losses]
        self.loss = [Launch(kind, kernels.cross_entropy(kind), arguments, 1, body.groups, 1, copies)]

    def __call__(self) -> Tensor:
        """The mean losses (copies,) of the images that are ``picked``; gradients are where they belong."""
        run(self.pictures)
        self.body.run_forward()
        run(self.loss)
        self.body.run_backward()
        return self.losses.view(self.body.copies, -1).sum(1)


class Descent:
    """`optimizers.SGD`, and the average of weights; the learning rates are those of all steps."""

    def __init__(
        self, network: GpuNetwork, numbers: Numbers, recipe: Recipe, rates: Tensor, done: Tensor
    ) -> None:
        kind = network.kind
        self.average = torch.zeros_like(numbers.gradient)  # of gradients
        decay, momentum = torch.zeros_like(numbers.gradient), kind.zeros((1,)).fill_(recipe.momentum)
        decay[: len(numbers.weights)] = recipe.weight_decay
        parts = (numbers.trained, numbers.gradient, self.average, decay, momentum, rates, done)
        self.kind, self.done = kind, done
        self.memory: tuple[Tensor, ...] = parts
        arguments = [*(one.data_ptr() for one in parts), len(numbers.gradient) // WARP]
        kernel = kernels.descend(recipe.nesterov, kind)
        self.launches = [Launch(kind, kernel, arguments, arguments[-1], 1)]

    def follow(self, averaged: Tensor, newest: Tensor, shares: Tensor) -> None:
        """After every step, move averaged numbers towards the newest ones by their share in that step."""
        self.memory = *self.memory, averaged, newest, shares
        parts = (averaged, newest, shares, self.done)
        arguments = [*(one.data_ptr() for one in parts), len(newest) // WARP]
        self.launches.append(Launch(self.kind, kernels.follow(self.kind), arguments, arguments[-1], 1))

    def step(self) -> None:
        """Take one step."""
        run(self.launches)
