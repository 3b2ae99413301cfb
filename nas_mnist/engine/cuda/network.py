"""A network that runs on CUDA by kernels of our own."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...models.network import Network
from ..stages import UnknownLayerError, stages_of
from .body import Body, Plan
from .launch import Warps

_SCORING_BYTES = 2e9  # that the maps of images may take that are scored at once


class GpuNetwork:
    """A network's forward pass; shares the network's weights and mode.

    Memory is kept from call to call: a backward pass must come before the next forward pass.
    """

    def __init__(
        self, network: Network, device: torch.device, gradients: Mapping[Tensor, Tensor] | None = None
    ) -> None:
        """``gradients``: where the parameters' are put by a backward pass.

        Raises `UnknownLayerError` where there are no kernels for a layer.
        """
        self.network, self.gradients = network, gradients
        wide = next(network.parameters()).dtype == torch.float64
        self.kind = Warps(np.dtype(np.float64 if wide else np.float32), device)
        at = network.head_starts
        head = list(zip(network.architecture.layers, network.layers, strict=True))[at:]
        if any(isinstance(module, nn.BatchNorm2d) for _, module in head):
            raise UnknownLayerError("a normalisation of scores")
        ((layer, module),) = [(of, one) for of, one in head if isinstance(one, nn.Conv2d)]
        # The mean of a 1x1 convolution is the 1x1 convolution of the mean.
        self.plan = Plan(*stages_of(network, wide=True), layer.kernel == (1, 1), (layer, module))
        self.bodies: dict[tuple[int, bool], Body] = {}
        self.places: list[int] = []  # of what the network holds, where bodies know it
        self.anchor = torch.zeros((), device=device, requires_grad=True)  # what autograd goes back to

    def __call__(self, images: Tensor) -> Tensor:
        """Class scores (copies * N, classes) of normalised float32 images (copies * N, C, H, W).

        A network side by side with others has images of its own: the first N are those of the first one.
        """
        learns = torch.is_grad_enabled() and self.gradients is not None
        if learns != self.network.training:
            raise AssertionError("a network learns in training mode, and is scored in the other")
        body = self.body(len(images) // self.network.copies, learns)
        if learns:
            return _Pass.apply(self.anchor, images, body)  # type: ignore[no-any-return]
        return body.forward(images)

    @property
    def batch(self) -> int:
        """Images that are scored at once, at most."""
        stored = (self.plan.image, *(stage.target for stage in self.plan.stages))
        numbers = sum(prod(one.shape) + prod(one.read_shape) for one in stored) * self.network.copies
        return max(1, int(_SCORING_BYTES / (numbers * self.kind.number.itemsize)))

    def body(self, count: int, learns: bool) -> Body:
        """The launches for as many images a network."""
        places = [one.data_ptr() for one in (*self.network.parameters(), *self.network.buffers())]
        if places != self.places:  # weights are elsewhere than launches expect them
            self.bodies.clear()
            self.places = places
        if (count, learns) not in self.bodies:
            gradients = self.gradients if learns else None
            made = Body(self.plan, count, self.network.copies, self.kind, gradients)
            self.bodies[count, learns] = made
        return self.bodies[count, learns]


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _: Tensor, images: Tensor, body: Body) -> Tensor:
        scores = body.forward(images)
        ctx.body, ctx.passes = body, body.passes
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        if ctx.passes != ctx.body.passes:
            raise AssertionError("a forward pass came between a forward pass and its way back")
        ctx.body.backward(gradients[0])
        return None, None, None
