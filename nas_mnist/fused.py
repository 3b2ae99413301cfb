"""The pass that is fast on a CPU, in training and in scoring; it computes what torch's modules do.

The layers before the head are programs of compiled kernels (`engine`); the head, which is small, and the
loss are torch's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .engine import Body, Plan, threads
from .model import Network
from .stages import UnknownLayerError, stages_of


class FusedNetwork:
    """A network's forward pass; shares the network's weights and mode.

    Memory is kept from call to call: a backward pass must come before the next forward pass.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        before, head = network.layers[: network.head_starts], network.layers[network.head_starts :]
        self.parameters = list(before.parameters())
        self.convolution = next(layer for layer in head if isinstance(layer, nn.Conv2d))
        normalised = any(isinstance(layer, nn.BatchNorm2d) for layer in head)
        # The mean of a 1x1 convolution is the 1x1 convolution of the mean.
        averaged = self.convolution.kernel_size == (1, 1) and not normalised
        try:
            self.plan: Plan | None = Plan(*stages_of(network), averaged)
        except UnknownLayerError:
            self.plan = None  # torch's modules have to do
        self.tensors = [*before.parameters(), *before.buffers()]
        self.places: list[int] = []  # of these, where bodies know them
        self.bodies: dict[tuple[Any, ...], Body] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Class scores (N, classes) of normalised images (N, C, H, W), float32 or float64."""
        if self.plan is None:
            return self.network(images)  # type: ignore[no-any-return]
        maps: Tensor = _Fused.apply(images, self, self.plan, *self.parameters)
        if not self.plan.averaged:
            return self.network.head(maps)
        return F.linear(maps.flatten(1), self.convolution.weight.flatten(1), self.convolution.bias)

    def body(self, plan: Plan, images: Tensor) -> Body:
        """The programs for as many images."""
        places = [tensor.data_ptr() for tensor in self.tensors]
        if places != self.places:
            self.bodies.clear()
            self.places = places
        kind = np.dtype(np.float64 if images.dtype == torch.float64 else np.float32)
        key = (len(images), kind, threads())
        if key not in self.bodies:
            self.bodies[key] = Body(plan, *key)
        return self.bodies[key]


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, fused: FusedNetwork, plan: Plan, *_: Tensor) -> Tensor:
        body = fused.body(plan, images)
        body.passes += 1
        ctx.parameters, ctx.body, ctx.passes = fused.parameters, body, body.passes
        return torch.from_numpy(body.forward(images.detach().numpy(), fused.network.training))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        if ctx.passes != ctx.body.passes:
            raise AssertionError("a forward pass came between a forward pass and its way back")
        found = ctx.body.backward(gradients[0].numpy())
        return None, None, None, *(torch.from_numpy(found[parameter]) for parameter in ctx.parameters)
