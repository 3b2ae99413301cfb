"""A network's numbers in one piece, and optimisers that train all of them in a few operations.

They wait for nothing that the device computes.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from .model import Network

# x -> a x + b x^3 + c x^5 brings singular values between 0 and 1 to about 1 in so many turns (see `Muon`).
_TURNS = 5
_A, _B, _C = 3.4445, -4.7750, 2.0315
# A step's root mean square where the learning rate is 1: so what suits the others, by SGD, suits weights.
_STEP = 0.04


class Numbers:
    """All weights and statistics of a network in one piece of memory, for few operations on all of them."""

    def __init__(self, model: Network) -> None:
        """Moves them there."""
        self.parameters = sorted(model.parameters(), key=lambda one: one.dim() == 1)
        statistics = [one for one in model.buffers() if one.is_floating_point()]
        moved = [*self.parameters, *statistics]
        self.all = torch.cat([_flat(one.detach()) for one in moved])
        ends = list(itertools.accumulate(one.numel() for one in moved))
        for one, end in zip(moved, ends, strict=True):
            one.data = self.all.as_strided(one.shape, one.stride(), end - one.numel())
        count = ends[len(self.parameters) - 1]
        self.trained, self.gradient = self.all[:count], torch.zeros_like(self.all[:count])
        # Of convolutions; the others are biases, and factors and shifts of normalisations.
        weights = sum(one.numel() for one in self.parameters if one.dim() > 1)
        self.weights, self.weight_gradient = self.all[:weights], self.gradient[:weights]
        self.others, self.other_gradient = self.trained[weights:], self.gradient[weights:]
        self.gradients: dict[Tensor, Tensor] = {  # by parameter
            one: self.gradient.as_strided(one.shape, one.stride(), end - one.numel())
            for one, end in zip(self.parameters, ends, strict=False)
        }
        # The weights' shapes as matrices, an output map a row; copies side by side have one each.
        self.matrices = [
            (len(one) // model.copies, one[0].numel())
            for one in self.parameters
            if one.dim() > 1
            for _ in range(model.copies)
        ]

    def forget_gradients(self) -> None:
        """Before a way back by autograd."""
        for one in self.parameters:
            one.grad = None

    def collect_gradients(self) -> None:
        """After it: from the parameters to ``gradient``."""
        torch.cat([_flat(one.grad) for one in self.parameters if one.grad is not None], out=self.gradient)


def _flat(tensor: Tensor) -> Tensor:
    """A tensor's numbers as they lie in memory, without gaps."""
    return tensor.as_strided((tensor.numel(),), (1,))


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
        shapes = numbers.matrices
        # All matrices, lying, in the corners of equal ones, so that a few operations do for all of them.
        short, long = max(map(min, shapes)), max(map(max, shapes))
        self.padded = (len(shapes), short, long)
        places = []
        for number, (rows, columns) in enumerate(shapes):
            row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            at = row * long + column if rows <= columns else column * long + row
            places.append(number * short * long + at.flatten())
        self.places = torch.cat(places).to(rate.device)  # of every weight in the padded matrices
        sizes = [(_STEP * max(shape) ** 0.5, shape[0] * shape[1]) for shape in shapes]
        self.sizes = torch.cat([torch.full((count,), size) for size, count in sizes]).to(rate)

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
        padded.view(-1)[self.places] = numbers.weight_gradient
        torch.mul(orthogonal(padded).flatten()[self.places], self.sizes, out=numbers.weight_gradient)
        if self.weight_decay:
            numbers.weights.mul_(1 - self.rate * self.weight_decay)
        numbers.trained.addcmul_(ahead, self.rate, value=-1)
