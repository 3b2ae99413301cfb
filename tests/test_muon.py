"""Muon: what it does to a gradient, and that all matrices at once are as one after the other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_mnist.model import build, side_by_side
from nas_mnist.muon import Muon, orthogonal
from nas_mnist.step import Numbers
from nas_mnist.zoo import load

SHAPES = [(3, 9), (9, 3), (4, 4), (1, 5), (5, 1), (1, 1)]
COUNT = sum(rows * columns for rows, columns in SHAPES)


def numbers(count: int, seed: int) -> torch.Tensor:
    """Weights, with a gradient."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(count, generator=generator, dtype=torch.float64)
    made.grad = torch.randn(count, generator=generator, dtype=torch.float64)
    return made


def make(weights: torch.Tensor, others: torch.Tensor, **changes: float) -> Muon:
    how = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.0, "rate": 0.1} | changes
    rate = torch.tensor(how.pop("rate"), dtype=torch.float64)
    return Muon(weights, others, SHAPES, rate, **how)  # type: ignore[arg-type]


def matrices(flat: torch.Tensor) -> list[torch.Tensor]:
    parts = flat.split([rows * columns for rows, columns in SHAPES])
    return [part.view(shape) for part, shape in zip(parts, SHAPES, strict=True)]


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(0, 20), st.floats(1e-3, 1e3), st.integers(0, 1000))
def test_singular_values_are_brought_to_about_one(rows: int, more: int, size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, rows + more, generator=generator, dtype=torch.float64) * size
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    made = orthogonal(matrix[None])[0]
    found = left.T @ made @ right.T
    torch.testing.assert_close(found, found.diagonal().diag(), rtol=0, atol=1e-3)  # the same directions
    seen = values > 0.01 * torch.linalg.vector_norm(values)
    assert found.diagonal()[seen].min() > 0.5
    assert found.diagonal().max() < 1.25


def test_zeros_stay_zeros() -> None:
    assert torch.equal(orthogonal(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))
    padded = torch.zeros(1, 5, 8)
    padded[0, :3, :4] = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    made = orthogonal(padded)
    torch.testing.assert_close(made[:, :3, :4], orthogonal(padded[:, :3, :4]))
    assert int(made.count_nonzero()) == 12


@pytest.mark.parametrize("nesterov", [True, False])
def test_all_matrices_at_once_are_as_one_after_the_other(nesterov: bool) -> None:
    weights, others = numbers(COUNT, 0), numbers(7, 1)
    expected = [one.clone() for one in matrices(weights)]
    averages = [torch.zeros_like(one) for one in expected]
    optimizer = make(weights, others, nesterov=nesterov, weight_decay=0.3)
    for turn in range(3):
        weights.grad = numbers(COUNT, turn + 2)
        for one, average, gradient in zip(expected, averages, matrices(weights.grad), strict=True):
            average.mul_(0.9).add_(gradient)
            ahead = gradient + 0.9 * average if nesterov else average
            lying = ahead if ahead.shape[0] <= ahead.shape[1] else ahead.T
            made = orthogonal(lying[None])[0]
            made = made if lying is ahead else made.T
            one.mul_(1 - 0.1 * 0.3).sub_(made * 0.1 * 0.04 * max(ahead.shape) ** 0.5)
        optimizer.step()
        for one, ours in zip(expected, matrices(weights), strict=True):
            torch.testing.assert_close(ours, one)


@pytest.mark.parametrize("nesterov", [True, False])
def test_the_others_are_trained_as_by_sgd(nesterov: bool) -> None:
    weights, others = numbers(COUNT, 0), numbers(7, 1)
    expected = others.clone().requires_grad_()
    sgd = torch.optim.SGD([expected], lr=0.1, momentum=0.9, nesterov=nesterov)
    optimizer = make(weights, others, nesterov=nesterov, weight_decay=0.3)  # which is for weights alone
    for turn in range(3):
        others.grad = numbers(7, turn + 2)
        expected.grad = others.grad.clone()
        optimizer.step()
        sgd.step()
    torch.testing.assert_close(others, expected.detach())


@pytest.mark.parametrize("shape", [(20, 30), (30, 20)])
def test_a_matrix_takes_the_step_that_torchs_muon_takes(shape: tuple[int, int]) -> None:
    count = shape[0] * shape[1]
    weights, others = numbers(count, 0).float(), numbers(1, 1).float()
    theirs = torch.nn.Parameter(weights.clone().view(shape))
    gradient = numbers(count, 3).float()
    weights.grad, others.grad, theirs.grad = gradient, others.clone(), gradient.clone().view(shape)
    before = weights.clone()
    Muon(weights, others, [shape], torch.tensor(0.1), 0.9, True, 0.0).step()
    # Its learning rate is for steps of 0.2 in the root mean square, as AdamW's are.
    how = {"lr": 0.1 * 0.04 / 0.2, "weight_decay": 0.0, "momentum": 0.9, "adjust_lr_fn": "match_rms_adamw"}
    torch.optim.Muon([theirs], **how).step()  # type: ignore[arg-type]
    ours, torchs = weights - before, theirs.detach().flatten() - before
    assert (ours - torchs).norm() < 0.03 * torchs.norm()  # which computes in bfloat16


def test_copies_side_by_side_have_matrices_of_their_own() -> None:
    networks = [build(load("mnist-500").architecture, seed) for seed in range(3)]
    alone, together = Numbers(networks[0]).matrices, Numbers(side_by_side(networks)).matrices
    assert together == [shape for shape in alone for _ in range(3)]
    assert sum(rows * columns for rows, columns in alone) == len(Numbers(networks[1]).weights)
