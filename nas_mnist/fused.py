"""The forward pass that is fast on a CPU, in training and in scoring; it computes what the plain modules do.

Where the time goes in a network this small: convolutions take a fifth of a plain training step, the rest is
memory traffic in normalisation, activation, dropout and pooling. So a network's layers are grouped into
steps: a normalisation with its neighbours is one step (`norm`), and so is a depthwise convolution whose
gradients torch computes slowly (`depthwise`). Everything else runs as the plain modules, under autocast.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .depthwise import depthwise, is_slow
from .layers import IMAGE, Layer
from .model import Network
from .norm import norm_in_scoring, norm_relu, relu_norm

Step = Callable[..., Tensor]


class FusedNetwork:
    """A network's forward pass with neighbouring layers run as one; shares the network's weights and mode."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.steps: list[tuple[tuple[int, ...], int, Step]] = []  # read from, written to, what to do
        layers = network.architecture.layers
        position = 0
        while position < network.head_starts:
            step, length = _step(network, layers, position)
            self.steps.append((layers[position].inputs, position + length - 1, step))
            position += length

    def __call__(self, images: Tensor) -> Tensor:
        """Class scores (N, classes) of normalised images (N, C, H, W).

        The layers before the head compute in the images' number type: float32 or bfloat16.
        """
        latest = images.contiguous(memory_format=torch.channels_last)
        at, kept = IMAGE, {IMAGE: latest}
        for sources, position, step in self.steps:
            latest = step(*(latest if source == at else kept[source] for source in sources))
            at = position
            if self.network.is_kept(position):
                kept[position] = latest
        return self.network.head(latest)


def _step(network: Network, layers: tuple[Layer, ...], position: int) -> tuple[Step, int]:
    """What runs at a position, and how many layers it covers."""
    chain = _chain(network, layers, position)
    first = chain[0]
    if isinstance(first, nn.Conv2d):
        return _convolution(first), 1
    relu_first = isinstance(first, nn.ReLU) and len(chain) > 1
    norm = chain[1] if relu_first else first
    if not isinstance(norm, nn.BatchNorm2d):
        return _plain(first), 1
    rest = chain[2:] if relu_first else chain[1:]
    relu_last = not relu_first and bool(rest) and isinstance(rest[0], nn.ReLU)
    rest = rest[1:] if relu_last else rest
    rate = rest[0].p if rest and isinstance(rest[0], nn.Dropout2d) else 0.0
    rest = rest[1:] if rate else rest
    _, height, width = layers[position].out_shape
    even = height % 2 == 0 and width % 2 == 0
    pool = (relu_first or relu_last) and even and bool(rest) and _halves(rest[0])
    rest = rest[1:] if pool else rest
    return _norm(norm, relu_first, relu_last, rate, pool), len(chain) - len(rest)


def _chain(network: Network, layers: tuple[Layer, ...], position: int) -> list[nn.Module]:
    """The layers from a position on of which each reads the one before, and nothing else does."""
    end = position + 1
    while end < network.head_starts and layers[end].inputs == (end - 1,) and not network.is_kept(end - 1):
        end += 1
    return list(network.layers[position:end])


def _halves(module: nn.Module) -> bool:
    return isinstance(module, nn.MaxPool2d) and module.kernel_size == (2, 2) and module.stride == 2


def _norm(module: nn.BatchNorm2d, relu_first: bool, relu_last: bool, rate: float, pool: bool) -> Step:
    def step(maps: Tensor) -> Tensor:
        if not module.training:
            return norm_in_scoring(maps, module, relu_first, relu_last, pool)
        keep = torch.rand(maps.shape[:2], device=maps.device) >= rate if rate else None
        scale = 1 / (1 - rate)
        if relu_last:
            return norm_relu(maps, module, keep, scale, pool)
        return relu_norm(maps, module, relu_first, keep, scale, pool)

    return step


def _plain(module: nn.Module) -> Step:
    def step(*maps: Tensor) -> Tensor:
        with torch.autocast(maps[0].device.type, torch.bfloat16, enabled=maps[0].dtype == torch.bfloat16):
            return module(*maps)  # type: ignore[no-any-return]

    return step


def _convolution(module: nn.Conv2d) -> Step:
    """The weights stay float32 and are cast once a step, for less than autocast's bookkeeping costs."""
    slow = is_slow(module)

    def step(maps: Tensor) -> Tensor:
        weight = module.weight.to(maps.dtype)
        bias = None if module.bias is None else module.bias.to(maps.dtype)
        if slow:
            return depthwise(maps, weight, bias, module.stride[0], int(module.padding[0]))
        return F.conv2d(maps, weight, bias, module.stride, module.padding, module.dilation, module.groups)

    return step
