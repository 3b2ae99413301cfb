"""A network's parameters and statistics in one tensor, so that one operation works on all of them."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ..core.compat import foreach_copy_
from ..models.network import Network

ALIGNMENT = 32  # every tensor begins at a multiple of this many numbers: kernels read several at once


class FlatParameters:
    """Views of one tensor: what is trained, its gradient, and what is trained with weight decay.

    The order is convolution weights, other parameters, statistics of normalisations. Gaps are zeros.
    """

    def __init__(self, network: Network) -> None:
        """Move the network's parameters and statistics to memory of this object's own."""
        self.parameters = sorted(network.parameters(), key=lambda one: one.dim() == 1)
        statistics = [one for one in network.buffers() if one.is_floating_point()]
        tensors = [*self.parameters, *statistics]
        sizes = [-(-one.numel() // ALIGNMENT) * ALIGNMENT for one in tensors]
        starts = [0, *itertools.accumulate(sizes)]
        self.all = torch.zeros(starts[-1], device=tensors[0].device, dtype=tensors[0].dtype)
        for one, start in zip(tensors, starts, strict=False):
            view = self.all.as_strided(one.shape, one.stride(), start)
            view.copy_(one.detach())
            one.data = view
        trained = starts[len(self.parameters)]
        self.trained, self.gradient = self.all[:trained], torch.zeros_like(self.all[:trained])
        weights = starts[sum(one.dim() > 1 for one in self.parameters)]
        # Convolution weights, which decay; then biases, and factors and shifts of normalisations.
        self.weights, self.weight_gradient = self.all[:weights], self.gradient[:weights]
        self.others, self.other_gradient = self.trained[weights:], self.gradient[weights:]
        self.gradients: dict[Tensor, Tensor] = {  # views of `gradient`, by parameter
            one: self.gradient.as_strided(one.shape, one.stride(), start)
            for one, start in zip(self.parameters, starts, strict=False)
        }

    def zero_grad(self) -> None:
        """Forget autograd's gradients, before a backward pass."""
        for one in self.parameters:
            one.grad = None

    def collect_gradients(self) -> None:
        """Copy the gradients that autograd found to `gradient`; the others stay as they are."""
        found = [(view, one.grad) for one, view in self.gradients.items() if one.grad is not None]
        foreach_copy_([view for view, _ in found], [gradient for _, gradient in found])
