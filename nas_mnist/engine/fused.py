"""The pass that is fast on a CPU, in training and in scoring; it computes what torch's modules do.

The layers before the head are programs of compiled kernels (`body`). The head and the loss, which are
small, are torch's, or in training, where they are simple enough to do without autograd, numpy's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..models.network import Network
from .body import Body, Plan
from .maps import Array
from .stages import UnknownLayerError, stages_of
from .threads import own_threads, threads


class FusedNetwork:
    """A network's forward pass; shares the network's weights and mode.

    Memory is kept from call to call: a backward pass must come before the next forward pass.
    """

    def __init__(self, network: Network, gradients: Mapping[Tensor, Tensor] | None = None) -> None:
        """``gradients``: where the parameters' are written by `learn`, of their type and shape."""
        self.network, self.gradients = network, gradients
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
        self.places: list[tuple[int, int]] = []  # of what they hold, where bodies know it
        self.bodies: dict[tuple[Any, ...], Body] = {}

    @property
    def learns(self) -> bool:
        """Whether `learn` is for this network."""
        whole = self.plan is not None and self.plan.averaged and self.network.copies == 1
        return whole and self.gradients is not None

    @torch.no_grad()
    @np.errstate(over="ignore", invalid="ignore")  # a loss that is not finite says so itself
    def learn(self, images: Tensor, labels: Tensor, smoothing: float) -> float:
        """The mean cross-entropy of normalised images (N, C, H, W) with labels (N,), smoothed.

        Its gradient is put into ``gradients``. This is what autograd does, without its cost: of a step of
        a small network, that is a quarter to a third (reports/bench).
        """
        assert self.plan is not None and self.gradients is not None
        weight, bias = self.convolution.weight, self.convolution.bias
        body = self._body(self.plan, images, back=True)
        maps, weights = body.forward(images.numpy())[:, :, 0, 0], weight.numpy()[:, :, 0, 0]
        scores = maps @ weights.T  # (N, classes); numpy is quicker than torch with so few numbers
        if bias is not None:
            scores += bias.numpy()
        loss, gradient = _cross_entropy(scores, labels.numpy(), smoothing)
        np.matmul(gradient.T, maps, out=self.gradients[weight].numpy()[:, :, 0, 0])
        if bias is not None:
            gradient.sum(0, out=self.gradients[bias].numpy())
        body.backward((gradient @ weights)[..., None, None])
        return loss

    def __call__(self, images: Tensor) -> Tensor:
        """Class scores (N, classes) of normalised images (N, C, H, W), of the weights' type.

        Raises `ValueError` for images of another type or shape.
        """
        if self.plan is None or images.requires_grad:
            return self.network(images)  # type: ignore[no-any-return]
        body = self._body(self.plan, images, torch.is_grad_enabled())
        maps: Tensor = _Fused.apply(images, body, *body.parameters)
        if not self.plan.averaged:
            return self.network.head(maps)
        return F.linear(maps.flatten(1), self.convolution.weight.flatten(1), self.convolution.bias)

    def _body(self, plan: Plan, images: Tensor, back: bool) -> Body:
        """The programs for as many images; raises `ValueError` for those of another type or shape."""
        if images.shape[1:] != plan.image.shape or images.dtype != self.convolution.weight.dtype:
            raise ValueError(f"images are {images.dtype} {list(images.shape)}, of another type or shape")
        parameters = _held(self.parameters)
        places = [(id(one), one.data_ptr()) for one in (*parameters, *_held(self.buffers))]
        if places != self.places:
            self.bodies.clear()
            self.places = places
        kind = np.dtype(np.float64 if images.dtype == torch.float64 else np.float32)
        key = (len(images), kind, threads(), back)
        if key not in self.bodies:
            given = None if self.gradients is None else [self.gradients[one].numpy() for one in parameters]
            self.bodies[key] = Body(plan, parameters, *key, given)
        return self.bodies[key]


def _held(tables: Sequence[Mapping[str, Tensor | None]]) -> list[Tensor]:
    """What they hold, each one once: a repeated block's convolutions come more often."""
    held = {id(tensor): tensor for table in tables for tensor in table.values() if tensor is not None}
    return list(held.values())


def _cross_entropy(scores: Array, labels: Array, smoothing: float) -> tuple[float, Array]:
    """What `F.cross_entropy` gives for scores (N, classes) and labels (N,), and its gradient (N, classes)."""
    scores = scores - scores.max(1, keepdims=True)
    shares = np.exp(scores)
    sums = shares.sum(1, keepdims=True)
    wanted = _wanted(scores.shape[1], smoothing, scores.dtype)[labels]
    loss = (np.log(sums).sum() - np.vdot(scores, wanted)) / len(scores)
    return float(loss), (shares / sums - wanted) / len(scores)


@cache
def _wanted(classes: int, smoothing: float, kind: np.dtype[Any]) -> Array:
    """The share of every class that a label asks for: (classes, classes)."""
    return (np.eye(classes) * (1 - smoothing) + smoothing / classes).astype(kind)


def lending(forward: object) -> AbstractContextManager[None]:
    """While ``forward`` runs: torch's threads are its kernels', where it has some."""
    has_kernels = isinstance(forward, FusedNetwork) and forward.plan is not None
    return own_threads() if has_kernels else nullcontext()


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, body: Body, *_: Tensor) -> Tensor:
        maps = torch.from_numpy(body.forward(images.detach().numpy()))
        ctx.body, ctx.passes = body, body.passes
        return maps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        if ctx.passes != ctx.body.passes:
            raise AssertionError("a forward pass came between a forward pass and its way back")
        ctx.body.backward(gradients[0].numpy())
        return None, None, *(torch.from_numpy(one.copy()) for one in ctx.body.gradients)
