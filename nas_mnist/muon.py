"""Muon: stochastic gradient descent whose steps are orthogonal matrices (Jordan et al. 2024,
kellerjordan.github.io/posts/muon).

A convolution's weights are a matrix, a row an output map (of a depthwise one, a row a filter). Its gradient,
averaged by momentum, is replaced by the nearest matrix whose singular values are all about one: so the
directions that gradients rarely take are learned, too. Biases, and factors and shifts of normalisations,
are trained as by SGD.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# x -> a x + b x^3 + c x^5 brings singular values between 0 and 1 to about 1 in so many turns (ibid.).
_TURNS = 5
_A, _B, _C = 3.4445, -4.7750, 2.0315
# A step's root mean square where the learning rate is 1: so what suits the others, by SGD, suits weights.
_STEP = 0.04


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


class Muon:
    """The optimiser, of all numbers at once; it waits for nothing that the device computes."""

    def __init__(
        self,
        weights: Tensor,
        others: Tensor,
        shapes: Sequence[tuple[int, int]],
        rate: Tensor,
        momentum: float,
        nesterov: bool,
        weight_decay: float,
    ) -> None:
        """``weights`` (W,) are matrices of ``shapes``, row by row, one behind the other; ``others`` (V,).

        Both have their gradient as ``grad``. ``rate`` is the learning rate, a tensor that may change;
        ``weight_decay`` shrinks weights by its product with the rate.
        """
        self.weights, self.others, self.rate = weights, others, rate
        self.momentum, self.nesterov, self.weight_decay = momentum, nesterov, weight_decay
        self.averages = [torch.zeros_like(weights), torch.zeros_like(others)]  # of gradients
        # All matrices, lying, in the corners of equal ones, so that a few operations do for all of them.
        short, long = max(map(min, shapes)), max(map(max, shapes))
        self.padded = (len(shapes), short, long)
        places = []
        for number, (rows, columns) in enumerate(shapes):
            row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            at = row * long + column if rows <= columns else column * long + row
            places.append(number * short * long + at.flatten())
        self.places = torch.cat(places).to(weights.device)  # of every weight in the padded matrices
        sizes = [(_STEP * max(shape) ** 0.5, shape[0] * shape[1]) for shape in shapes]
        self.sizes = torch.cat([torch.full((count,), size) for size, count in sizes]).to(weights)

    @torch.no_grad()
    def step(self) -> None:
        """Take one step."""
        for numbers, average in zip((self.weights, self.others), self.averages, strict=True):
            gradient = numbers.grad
            assert gradient is not None
            average.mul_(self.momentum).add_(gradient)
            ahead = gradient.add(average, alpha=self.momentum) if self.nesterov else average
            if numbers is self.weights:
                padded = ahead.new_zeros(self.padded)
                padded.view(-1)[self.places] = ahead
                ahead = orthogonal(padded).flatten()[self.places] * self.sizes
                if self.weight_decay:
                    numbers.mul_(1 - self.rate * self.weight_decay)
            numbers.sub_(ahead * self.rate)
