"""The pass that is fast on a CPU, in training and in scoring; it computes what torch's modules do.

The layers before the head are programs of compiled kernels (`engine`); the head, which is small, and the
loss are torch's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .engine import Body, Plan
from .model import Network
from .stages import UnknownLayerError, stages_of
from .threads import own_threads, threads


class FusedNetwork:
    """A network's forward pass; shares the network's weights and mode.

    Memory is kept from call to call: a backward pass must come before the next forward pass.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        before, head = network.layers[: network.head_starts], network.layers[network.head_starts :]
        self.convolution = next(layer for layer in head if isinstance(layer, nn.Conv2d))
        normalised = any(isinstance(layer, nn.BatchNorm2d) for layer in head)
        # The mean of a 1x1 convolution is the 1x1 convolution of the mean.
        averaged = self.convolution.kernel_size == (1, 1) and not normalised
        try:
            self.plan: Plan | None = Plan(*stages_of(network), averaged)
        except UnknownLayerError:
            self.plan = None  # torch's modules have to do
        # Looked into at every call, for what they hold may be replaced.
        self.parameters = [layer._parameters for layer in before]
        self.buffers = [layer._buffers for layer in before]
        self.places: list[int] = []  # of what they hold, where bodies know it
        self.bodies: dict[tuple[Any, ...], Body] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Class scores (N, classes) of normalised images (N, C, H, W), of the weights' type.

        Raises `ValueError` for images of another type or shape.
        """
        if self.plan is None or images.requires_grad:
            return self.network(images)  # type: ignore[no-any-return]
        if images.shape[1:] != self.plan.image.shape or images.dtype != self.convolution.weight.dtype:
            raise ValueError(f"images are {images.dtype} {list(images.shape)}, of another type or shape")
        parameters = _held(self.parameters)
        maps: Tensor = _Fused.apply(images, self.body(self.plan, parameters, images), *parameters)
        if not self.plan.averaged:
            return self.network.head(maps)
        return F.linear(maps.flatten(1), self.convolution.weight.flatten(1), self.convolution.bias)

    def body(self, plan: Plan, parameters: Sequence[Tensor], images: Tensor) -> Body:
        """The programs for as many images."""
        places = [tensor.data_ptr() for tensor in (*parameters, *_held(self.buffers))]
        if places != self.places:
            self.bodies.clear()
            self.places = places
        kind = np.dtype(np.float64 if images.dtype == torch.float64 else np.float32)
        key = (len(images), kind, threads(), torch.is_grad_enabled())
        if key not in self.bodies:
            self.bodies[key] = Body(plan, parameters, *key)
        return self.bodies[key]


def _held(tables: Sequence[Mapping[str, Tensor | None]]) -> list[Tensor]:
    """What they hold, each one once: a repeated block's convolutions come more often."""
    held = (tensor for table in tables for tensor in table.values() if tensor is not None)
    return list(dict.fromkeys(held))


def lending(forward: object) -> AbstractContextManager[None]:
    """While ``forward`` runs: torch's threads are its kernels', where it has some."""
    has_kernels = isinstance(forward, FusedNetwork) and forward.plan is not None
    return own_threads() if has_kernels else nullcontext()


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, body: Body, *parameters: Tensor) -> Tensor:
        body.passes += 1
        ctx.shapes, ctx.body, ctx.passes = [one.shape for one in parameters], body, body.passes
        return torch.from_numpy(body.forward(images.detach().numpy()))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        if ctx.passes != ctx.body.passes:
            raise AssertionError("a forward pass came between a forward pass and its way back")
        found = ctx.body.backward(gradients[0].numpy())
        return (
            None,
            None,
            *(torch.from_numpy(one).view(of) for one, of in zip(found, ctx.shapes, strict=True)),
        )
