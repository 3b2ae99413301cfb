"""A network's numbers in one piece, and optimisers that train all of them in a few operations.

They wait for nothing that the device computes.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .model import Network

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


class Corners:
    """A network's matrices in the corners of equal ones, so that a few operations do for all of them."""

    def __init__(self, numbers: Numbers, lying: bool) -> None:
        """``lying``: those with more rows than columns are transposed."""
        sides = [(one.rows, one.columns) for one in numbers.matrices]
        turned = [lying and rows > columns for rows, columns in sides]
        sides = [side[::-1] if turn else side for side, turn in zip(sides, turned, strict=True)]
        self.shape = height, width = max(side[0] for side in sides), max(side[1] for side in sides)
        self.count = len(sides)
        weights, places = [], []  # of every weight: where it lies, and where in the matrices
        for number, ((start, rows, columns), turn) in enumerate(zip(numbers.matrices, turned, strict=True)):
            row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            at = column * width + row if turn else row * width + column
            places.append(number * height * width + at.flatten())
            weights.append(start + torch.arange(rows * columns))
        device = numbers.weights.device
        self.weights, self.places = torch.cat(weights).to(device), torch.cat(places).to(device)

    def gather(self, weights: Tensor) -> Tensor:
        """From what lies as all weights do to the matrices (count, rows, columns)."""
        matrices = weights.new_zeros(self.count, *self.shape)
        matrices.view(-1)[self.places] = weights[self.weights]
        return matrices

    def scatter(self, matrices: Tensor, weights: Tensor) -> None:
        """The other way round."""
        weights[self.weights] = matrices.reshape(-1)[self.places]


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


class Trained(Protocol):
    """What `SGD` trains: weights, which may decay, before others."""

    trained: Tensor
    gradient: Tensor
    weights: Tensor
    weight_gradient: Tensor


class SGD:
    """Stochastic gradient descent with momentum, as `torch.optim.SGD`, in four operations."""

    def __init__(
        self, numbers: Trained, rate: Tensor, momentum: float, nesterov: bool, weight_decay: float
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
        self.corners = Corners(numbers, lying=True)
        sizes = [_STEP * max(one.rows, one.columns) ** 0.5 for one in numbers.matrices]  # of steps
        self.sizes = torch.tensor(sizes).view(-1, 1, 1).to(rate)

    @torch.no_grad()
    def step(self) -> None:
        """Take one step; what `numbers` has as the gradient is used up."""
        numbers, ahead = self.numbers, self.numbers.gradient
        self.average.mul_(self.momentum).add_(ahead)
        if self.nesterov:
            ahead.add_(self.average, alpha=self.momentum)
        else:
            ahead.copy_(self.average)
        matrices = self.corners.gather(numbers.weight_gradient)
        self.corners.scatter(orthogonal(matrices) * self.sizes, numbers.weight_gradient)
        if self.weight_decay:
            numbers.weights.mul_(1 - self.rate * self.weight_decay)
        numbers.trained.addcmul_(ahead, self.rate, value=-1)


class Factored(SGD):
    """SGD on two factors of every convolution: its weights, a row an output map, are their product.

    The first factor is square and begins as the identity, the second begins as the weights. The network
    that is trained is the same one, with their product as its weights; but the same gradient takes another
    step with them, longer in the directions in which weights are large already (Arora, Cohen and Hazan 2018,
    "On the optimization of deep networks: implicit acceleration by overparameterization",
    arxiv.org/abs/1802.06509; for small convolutional networks Guo et al. 2020, arxiv.org/abs/1811.10495).
    Weights decay as their factors do. Biases, and factors and shifts of normalisations, are trained as by
    `SGD`.
    """

    def __init__(
        self, numbers: Numbers, rate: Tensor, momentum: float, nesterov: bool, weight_decay: float
    ) -> None:
        """As `SGD`."""
        self.whole, self.corners = numbers, Corners(numbers, lying=False)
        self.factors = _Factors(self.corners.gather(numbers.weights), numbers.others)
        super().__init__(self.factors, rate, momentum, nesterov, weight_decay)

    @torch.no_grad()
    def step(self) -> None:
        """Take one step; what `numbers` has as the gradient is used up."""
        factors, numbers = self.factors, self.whole
        gradient = self.corners.gather(numbers.weight_gradient)
        torch.bmm(gradient, factors.second.mT, out=factors.first_gradient)
        torch.bmm(factors.first.mT, gradient, out=factors.second_gradient)
        factors.other_gradient.copy_(numbers.other_gradient)
        super().step()
        self.corners.scatter(factors.first @ factors.second, numbers.weights)
        numbers.others.copy_(factors.others)


class _Factors:
    """The two factors of matrices (N, rows, columns), and the other numbers, in one piece of memory."""

    def __init__(self, matrices: Tensor, others: Tensor) -> None:
        count, rows = matrices.shape[:2]
        one = torch.eye(rows).to(matrices).expand(count, rows, rows)
        self.trained = torch.cat([one.flatten(), matrices.flatten(), others])
        self.gradient = torch.zeros_like(self.trained)
        sizes = one.numel(), matrices.numel(), others.numel()
        weights = sizes[0] + sizes[1]
        self.weights, self.weight_gradient = self.trained[:weights], self.gradient[:weights]
        (first, second, self.others), (first_gradient, second_gradient, self.other_gradient) = (
            one.split(sizes) for one in (self.trained, self.gradient)
        )
        self.first, self.first_gradient = (one.view(count, rows, rows) for one in (first, first_gradient))
        self.second, self.second_gradient = (one.view_as(matrices) for one in (second, second_gradient))
