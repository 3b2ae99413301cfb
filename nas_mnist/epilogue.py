"""What follows a convolution on a CPU, as one step with gradients of its own.

Normalisation, activation, channel dropout and pooling by two run as few passes over memory (`kernels`):
two forward, of which the first sums, and two backward. Maps are (N, C, H, W) in channels_last, float64,
float32 or bfloat16; parameters and statistics are float64 or float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor, nn

from . import kernels
from .kernels import AVERAGE_POOL, GATES, MAX_POOL, NO_POOL

Array = np.ndarray[Any, Any]
_SILENT = np.errstate(all="ignore")  # what is not finite reaches the loss, where training looks for it


@dataclass(frozen=True)
class Epilogue:
    """Neighbouring layers that run as one on maps (N, C, H, W), in their modules' mode."""

    norm: nn.BatchNorm2d | None = None
    after: bool = False  # the normalisation comes after the activation
    activation: nn.Module | None = None
    dropout: nn.Dropout2d | None = None
    pool: int = NO_POOL

    @classmethod
    def of(cls, chain: Sequence[nn.Module]) -> tuple[Epilogue, int]:
        """The longest epilogue that a chain of layers begins with, and how many layers it covers."""
        rest = list(chain)
        norm = _take(rest, lambda module: isinstance(module, nn.BatchNorm2d))
        activation = _take(rest, lambda module: type(module).__name__ in GATES)
        after = False
        if norm is None and activation is not None:
            norm = _take(rest, lambda module: isinstance(module, nn.BatchNorm2d))
            after = norm is not None
        dropout = _take(rest, lambda module: isinstance(module, nn.Dropout2d))
        pool = _POOLS[type(rest.pop(0))] if rest and _halves(rest[0]) else NO_POOL
        return cls(norm, after, activation, dropout, pool), len(chain) - len(rest)

    def __call__(self, maps: Tensor) -> Tensor:
        """The maps after these layers; in training mode the running statistics are updated."""
        maps = maps.contiguous(memory_format=torch.channels_last)
        keep = None
        if self.dropout is not None and self.dropout.training:
            rate = self.dropout.p
            keep = (torch.rand(maps.shape[:2]) >= rate).to(torch.promote_types(maps.dtype, torch.float32)) / (
                1 - rate
            )
        parameters = (None, None) if self.norm is None else (self.norm.weight, self.norm.bias)
        result: Tensor = _Epilogue.apply(maps, *parameters, self, keep)
        return result


_POOLS: dict[type[nn.Module], int] = {nn.MaxPool2d: MAX_POOL, nn.AvgPool2d: AVERAGE_POOL}


def _take(modules: list[nn.Module], fits: Callable[[nn.Module], bool]) -> Any:
    return modules.pop(0) if modules and fits(modules[0]) else None


def _halves(module: nn.Module) -> bool:
    if not isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        return False
    return module.kernel_size in (2, (2, 2)) and module.stride in (2, (2, 2))


class _Epilogue(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        maps: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        what: Epilogue,
        keep: Tensor | None,
    ) -> Tensor:
        count, channels, height, width = maps.shape
        ctx.run = run = _Pass(what, maps, keep)
        if weight is not None and bias is not None:
            ctx.kind = weight.dtype
            run.normalise(what.norm, _numbers(weight), _numbers(bias))
        size = (height // 2, width // 2) if what.pool else (height, width)
        out = maps.new_empty((count, *size, channels))
        run.forward(_rows(out))
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        run: _Pass = ctx.run
        gradient = gradients[0].permute(0, 2, 3, 1).contiguous()
        into = torch.empty_like(run.maps)
        of_parameters = run.backward(_rows(gradient), _rows(into.permute(0, 2, 3, 1)))
        weight, bias = (one if one is None else torch.from_numpy(one).to(ctx.kind) for one in of_parameters)
        return into, weight, bias, None, None


class _Pass:
    """One pass through an epilogue, and back."""

    def __init__(self, what: Epilogue, maps: Tensor, keep: Tensor | None) -> None:
        self.what, self.maps = what, maps.detach()
        self.x = _rows(self.maps.permute(0, 2, 3, 1))
        self.channels, self.width = maps.shape[1], maps.shape[3]
        self.count = maps.numel() // self.channels  # values a channel
        self.kind = kind = np.float64 if maps.dtype == torch.float64 else np.float32
        self.keep = np.empty((0, self.channels), kind) if keep is None else keep.numpy()
        name = "Identity" if what.activation is None else type(what.activation).__name__
        self.gate = np.array((*GATES[name], 1), kind)
        self.affine = np.empty((2, self.width * self.channels), kind)
        self.affine[0], self.affine[1] = 1, 0  # factor and shift
        self.how = self.affine, what.after, self.gate, what.pool, self.channels

    @_SILENT
    def normalise(self, norm: Any, weight: Array, bias: Array) -> None:
        """Normalise by the batch's statistics, or in evaluation by the running ones."""
        self.by_batch = norm.training
        if norm.training:
            mean, variance = self._statistics(norm)
        else:
            mean, variance = _numbers(norm.running_mean), _numbers(norm.running_var)
        self.mean, self.inverse_std = mean, 1 / np.sqrt(variance + norm.eps)
        self.factor = weight * self.inverse_std
        self.affine[0] = self._along_a_row(self.factor)
        self.affine[1] = self._along_a_row(bias - mean * self.factor)

    def _statistics(self, norm: Any) -> tuple[Array, Array]:
        """The channels' means and variances; updates the running ones."""
        first, second = self._summed(kernels.sums, self.x, self.gate, self.what.after)
        mean = first / self.count
        variance = np.maximum(second / self.count - mean * mean, 0)
        unbiased = variance * (self.count / max(self.count - 1, 1))
        for running, newest in ((norm.running_mean, mean), (norm.running_var, unbiased)):
            stored = _numbers(running)
            stored += norm.momentum * (newest - stored)
        norm.num_batches_tracked.add_(1)
        return mean, variance

    def forward(self, y: Array) -> None:
        """Fill ``y`` (N, H, W * C), of the maps' type."""
        _run(kernels.forward, self.x, self.keep, y, *self.how)

    @_SILENT
    def backward(self, gradient: Array, into: Array) -> tuple[Array, Array] | tuple[None, None]:
        """Fill ``into``, the gradient of the maps, from that of y; the gradients of weight and bias."""
        sums = self._summed(kernels.backward, self.x, self.keep, gradient, into, *self.how)
        if self.what.norm is None:
            return None, None
        into_bias, second = sums
        into_weight = (second - self.mean * into_bias) * self.inverse_std
        through = np.zeros_like(self.affine)
        if self.by_batch:  # mean and variance depend on the maps
            linear = -self.factor * self.inverse_std * into_weight / self.count
            constant = -self.factor * into_bias / self.count - self.mean * linear
            through[:] = self._along_a_row(linear), self._along_a_row(constant)
        affine, after, gate, *_ = self.how
        _run(kernels.backward_norm, self.x, into, affine, after, gate, through)
        return into_weight, into_bias

    def _summed(self, kernel: Any, *arguments: Any) -> Array:
        """What a kernel sums up, by channel: (2, C)."""
        totals = np.zeros((torch.get_num_threads(), 2, self.affine.shape[1]))
        _run(kernel, *arguments, totals=totals)
        by_channel: Array = totals.sum(0).reshape(2, self.width, self.channels).sum(1)
        return by_channel

    def _along_a_row(self, values: Array) -> Array:
        return np.tile(values, self.width)


def _run(kernel: Any, *arguments: Any, totals: Array | None = None) -> None:
    """Call a kernel in torch's number of threads; one thread alone never wakes the others."""
    parts = torch.get_num_threads()
    if parts == 1:
        kernel(*arguments, *(() if totals is None else totals))
        return
    threads = min(parts, numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    if numba.get_num_threads() != threads:
        numba.set_num_threads(threads)
    kernels.IN_PARTS[kernel](parts, *arguments, *(() if totals is None else (totals,)))


def _rows(maps: Tensor) -> Array:
    """Maps (N, H, W, C) as an array (N, H, W * C) of the same memory; bfloat16 as its bits."""
    rows = maps.detach().flatten(2)
    return rows.view(torch.int16).numpy().view(np.uint16) if maps.dtype == torch.bfloat16 else rows.numpy()


def _numbers(tensor: Tensor) -> Array:
    return tensor.detach().numpy()
