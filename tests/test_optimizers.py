"""Optimisers: what they do to a gradient, and that all numbers at once are as one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_mnist.models.network import build, stack_models
from nas_mnist.models.zoo import load
from nas_mnist.training.optim import SGD, Matrix, Muon, Numbers, orthogonal

SHAPES = [(3, 9), (9, 3), (4, 4), (1, 5), (5, 1), (1, 1)]
COUNT = sum(rows * columns for rows, columns in SHAPES)


class Some(Numbers):
    """Numbers of no network: weights of these shapes, and seven others."""

    def __init__(self, shapes: Sequence[tuple[int, int]], kind: torch.dtype = torch.float64) -> None:
        count = sum(rows * columns for rows, columns in shapes)
        self.trained = drawn(count + 7, 0).to(kind)
        ends = itertools.accumulate(rows * columns for rows, columns in shapes)
        self.matrices = [
            Matrix(end - rows * columns, rows, columns)
            for end, (rows, columns) in zip(ends, shapes, strict=True)
        ]
        self.gradient = torch.zeros_like(self.trained)
        self.weights, self.others = self.trained[:count], self.trained[count:]
        self.weight_gradient, self.other_gradient = self.gradient[:count], self.gradient[count:]


def drawn(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rate(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


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
    numbers = Some(SHAPES)
    expected = [one.clone() for one in matrices(numbers.weights)]
    averages = [torch.zeros_like(one) for one in expected]
    optimizer = Muon(numbers, rate(0.1), 0.9, nesterov, 0.3)
    for turn in range(3):
        numbers.gradient[:] = drawn(COUNT + 7, turn + 2)
        for one, average, gradient in zip(
            expected, averages, matrices(numbers.weight_gradient.clone()), strict=True
        ):
            average.mul_(0.9).add_(gradient)
            ahead = gradient + 0.9 * average if nesterov else average
            lying = ahead if ahead.shape[0] <= ahead.shape[1] else ahead.T
            made = orthogonal(lying[None])[0]
            made = made if lying is ahead else made.T
            one.mul_(1 - 0.1 * 0.3).sub_(made * 0.1 * 0.04 * max(ahead.shape) ** 0.5)
        optimizer.step()
        for one, ours in zip(expected, matrices(numbers.weights), strict=True):
            torch.testing.assert_close(ours, one)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("kind", [SGD, Muon])
def test_numbers_take_the_steps_that_torchs_sgd_takes(
    kind: type[SGD], weight_decay: float, nesterov: bool
) -> None:
    """All of them, or with Muon those that are no weights."""
    numbers = Some(SHAPES)
    expected = [numbers.weights.clone().requires_grad_(), numbers.others.clone().requires_grad_()]
    groups = [{"params": expected[:1], "weight_decay": weight_decay}, {"params": expected[1:]}]
    sgd = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=nesterov)
    rates = rate(0.1)
    optimizer = kind(numbers, rates, 0.9, nesterov, weight_decay)
    for turn in range(3):
        numbers.gradient[:] = drawn(COUNT + 7, turn + 2)
        expected[0].grad = numbers.weight_gradient.clone()
        expected[1].grad = numbers.other_gradient.clone()
        optimizer.step()
        sgd.step()
        rates.mul_(0.5)
        for group in sgd.param_groups:
            group["lr"] *= 0.5
    torch.testing.assert_close(numbers.others, expected[1].detach())
    if kind is SGD:
        torch.testing.assert_close(numbers.weights, expected[0].detach())


@pytest.mark.parametrize("shape", [(20, 30), (30, 20)])
def test_a_matrix_takes_the_step_that_torchs_muon_takes(shape: tuple[int, int]) -> None:
    numbers = Some([shape], torch.float32)
    before = numbers.weights.clone()
    theirs = torch.nn.Parameter(before.clone().view(shape))
    numbers.gradient[:] = drawn(len(numbers.gradient), 3)
    theirs.grad = numbers.weight_gradient.clone().view(shape)
    Muon(numbers, torch.tensor(0.1), 0.9, True, 0.0).step()
    # Its learning rate is for steps of 0.2 in the root mean square, as AdamW's are.
    how = {"lr": 0.1 * 0.04 / 0.2, "weight_decay": 0.0, "momentum": 0.9, "adjust_lr_fn": "match_rms_adamw"}
    torch.optim.Muon([theirs], **how).step()  # type: ignore[arg-type]
    ours, torchs = numbers.weights - before, theirs.detach().flatten() - before
    assert (ours - torchs).norm() < 0.03 * torchs.norm()  # which computes in bfloat16


def test_copies_side_by_side_have_matrices_of_their_own() -> None:
    networks = [build(load("mnist-500").architecture, seed) for seed in range(3)]
    alone, together = Numbers(networks[0]).matrices, Numbers(stack_models(networks)).matrices
    assert [one[1:] for one in together] == [one[1:] for one in alone for _ in range(3)]
    weights = [one for one in networks[1].parameters() if one.dim() > 1]
    assert sum(rows * columns for _, rows, columns in alone) == sum(one.numel() for one in weights)


@pytest.mark.parametrize("name", ["reference", "mnist-500"])
def test_every_tensor_lies_where_kernels_may_read_several_numbers_at_once(name: str) -> None:
    network = stack_models([build(load(name).architecture, seed) for seed in range(2)])
    before = {name: one.clone() for name, one in network.unique_tensors().items()}
    numbers = Numbers(network)
    for called, one in network.unique_tensors().items():
        assert torch.equal(one, before[called])
        if one.is_floating_point():
            assert (one.data_ptr() - numbers.all.data_ptr()) % 128 == 0
    for number, (one, place) in enumerate(numbers.gradients.items()):
        assert (place.data_ptr() - numbers.gradient.data_ptr()) % 128 == 0
        one.grad = torch.full_like(one, number + 1.0)
    numbers.collect_gradients()
    for number, (one, place) in enumerate(numbers.gradients.items()):
        assert torch.equal(place, torch.full_like(one, number + 1.0))
    assert int(numbers.gradient.count_nonzero()) == sum(one.numel() for one in network.parameters())
