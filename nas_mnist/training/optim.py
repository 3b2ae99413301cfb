"""A network's numbers in one piece, and optimisers that train all of them in a few operations.

They wait for nothing that the device computes.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.network import Network

# x -> a x + b x^3 + c x^5 brings singular values between 0 and 1 to about 1 in so many turns (see `Muon`).
_TURNS = 5
_A, _B, _C = 3.4445, -4.7750, 2.0315
ALIGNED = 32  # every tensor begins at a multiple of so many numbers: kernels read several at once
# A step's root mean square where the learning rate is 1: so what suits the others, by SGD, suits weights.
_STEP = 0.04


class Matrix(NamedTuple):
    """A convolution's weights, as they lie among all weights."""

    start: int
    rows: int
    columns: int


class Numbers:
    """All weights and statistics of a network in one piece of memory, for few operations on all of them."""

    def __init__(self, model: Network) -> None:
        """Moves them there."""
        self.parameters = sorted(model.parameters(), key=lambda one: one.dim() == 1)
        statistics = [one for one in model.buffers() if one.is_floating_point()]
        moved = [*self.parameters, *statistics]
        sizes = [-(-one.numel() // ALIGNED) * ALIGNED for one in moved]
        starts = [0, *itertools.accumulate(sizes)]
        self.all = torch.zeros(starts[-1], device=moved[0].device, dtype=moved[0].dtype)
        for one, start in zip(moved, starts, strict=False):
            place = self.all.as_strided(one.shape, one.stride(), start)
            place.copy_(one.detach())
            one.data = place
        count = starts[len(self.parameters)]
        self.trained, self.gradient = self.all[:count], torch.zeros_like(self.all[:count])
        # Of convolutions; the others are biases, and factors and shifts of normalisations.
        weights = starts[sum(one.dim() > 1 for one in self.parameters)]
        self.weights, self.weight_gradient = self.all[:weights], self.gradient[:weights]
        self.others, self.other_gradient = self.trained[weights:], self.gradient[weights:]
        self.gradients: dict[Tensor, Tensor] = {  # by parameter
            one: self.gradient.as_strided(one.shape, one.stride(), start)
            for one, start in zip(self.parameters, starts, strict=False)
        }
        # The weights as matrices, an output map a row; copies side by side have one each.
        self.matrices = [
            Matrix(start + copy * one.numel() // model.copies, len(one) // model.copies, one[0].numel())
            for one, start in zip(self.parameters, starts, strict=False)
            if one.dim() > 1
            for copy in range(model.copies)
        ]

    def forget_gradients(self) -> None:
        """Before a way back by autograd."""
        for one in self.parameters:
            one.grad = None

    def collect_gradients(self) -> None:
        """After it: from the parameters to ``gradient``."""
        found = [(place, one.grad) for one, place in self.gradients.items() if one.grad is not None]
        if found:  # else they were written there
            assert len(found) == len(self.gradients)
            torch._foreach_copy_([place for place, _ in found], [one for _, one in found])


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices (N, rows, columns), rows <= columns, with their singular values brought to about one.

    These lie between 0.5 and 1.2 where they were more than a hundredth of the largest; rows and columns of
    zeros stay what they are.
    """
    x: Tensor = matrices / (torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_TURNS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=_B, alpha=_C), x, beta=_A)
    return x


class SGD:
    """Stochastic gradient descent with momentum, as `torch.optim.SGD`, in four operations."""

    def __init__(
        self, numbers: Numbers, rate: Tensor, momentum: float, nesterov: bool, weight_decay: float
    ) -> None:
        """``rate`` is the learning rate, a tensor that may change; ``weight_decay`` is that of weights."""
        self.numbers, self.rate = numbers, rate
        self.momentum, self.nesterov, self.weight_decay = momentum, nesterov, weight_decay
        self.average = torch.zeros_like(numbers.gradient)  # of gradients

    @torch.no_grad()
    def step(self) -> None:
        """Take one step; what `numbers` has as the gradient is used up."""
        numbers, ahead = self.numbers, self.numbers.gradient
        if self.weight_decay:
            numbers.weight_gradient.add_(numbers.weights, alpha=self.weight_decay)
        self.average.mul_(self.momentum).add_(ahead)
        ahead = ahead.add_(self.average, alpha=self.momentum) if self.nesterov else self.average
        numbers.trained.addcmul_(ahead, self.rate, value=-1)


class Muon(SGD):
    """SGD whose steps are orthogonal matrices (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    A convolution's weights are a matrix, a row an output map (of a depthwise one, a row a filter). Its
    gradient, averaged by momentum, is replaced by the nearest matrix whose singular values are all about
    one: so the directions that gradients rarely take are learned, too. Biases, and factors and shifts of
    normalisations, are trained as by `SGD`.
    """

    def __init__(
        self, numbers: Numbers, rate: Tensor, momentum: float, nesterov: bool, weight_decay: float
    ) -> None:
        """As `SGD`, but that ``weight_decay`` shrinks weights by its product with the rate."""
        super().__init__(numbers, rate, momentum, nesterov, weight_decay)
        shapes = [one[1:] for one in numbers.matrices]
        # All matrices, lying, in the corners of equal ones, so that a few operations do for all of them.
        short, long = max(map(min, shapes)), max(map(max, shapes))
        self.padded = (len(shapes), short, long)
        weights, places, sizes = [], [], []
        for number, (start, rows, columns) in enumerate(numbers.matrices):
            row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            at = row * long + column if rows <= columns else column * long + row
            places.append(number * short * long + at.flatten())
            weights.append(start + torch.arange(rows * columns))
            sizes.append(torch.full((rows * columns,), _STEP * max(rows, columns) ** 0.5))
        # Of every weight: where it lies, where in the padded matrices, and how large its steps are.
        self.weights, self.places = torch.cat(weights).to(rate.device), torch.cat(places).to(rate.device)
        self.sizes = torch.cat(sizes).to(rate)

    @torch.no_grad()
    def step(self) -> None:
        """Take one step; what `numbers` has as the gradient is used up."""
        numbers, ahead = self.numbers, self.numbers.gradient
        self.average.mul_(self.momentum).add_(ahead)
        if self.nesterov:
            ahead.add_(self.average, alpha=self.momentum)
        else:
            ahead.copy_(self.average)
        padded = ahead.new_zeros(self.padded)
        padded.view(-1)[self.places] = numbers.weight_gradient[self.weights]
        numbers.weight_gradient[self.weights] = orthogonal(padded).flatten()[self.places] * self.sizes
        if self.weight_decay:
            numbers.weights.mul_(1 - self.rate * self.weight_decay)
        numbers.trained.addcmul_(ahead, self.rate, value=-1)
