"""The forward pass that is fast on a CPU, in training and in scoring; it computes what the plain modules do.

Where the time goes in a network this small: convolutions take a fifth of a plain training step, the rest is
memory traffic in normalisation, activation, dropout and pooling. So what follows a convolution is one step
(`epilogue`), and depthwise convolutions have gradients of their own where torch computes them slowly
(`depthwise`). Everything else runs as the plain modules, under autocast.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .depthwise import depthwise, is_slow
from .epilogue import Epilogue
from .layers import IMAGE, Layer
from .model import Network, StridedPoint

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
    if isinstance(chain[0], nn.Conv2d):
        return _convolution(chain[0]), 1
    epilogue, length = Epilogue.of(chain)
    return (epilogue, length) if length else (_plain(chain[0]), 1)


def _chain(network: Network, layers: tuple[Layer, ...], position: int) -> list[nn.Module]:
    """The layers from a position on of which each reads the one before, and nothing else does."""
    end = position + 1
    while end < network.head_starts and layers[end].inputs == (end - 1,) and not network.is_kept(end - 1):
        end += 1
    return list(network.layers[position:end])


def _plain(module: nn.Module) -> Step:
    def step(*maps: Tensor) -> Tensor:
        with torch.autocast(maps[0].device.type, torch.bfloat16, enabled=maps[0].dtype == torch.bfloat16):
            return module(*maps)  # type: ignore[no-any-return]

    return step


def _convolution(module: nn.Conv2d) -> Step:
    """The weights stay float32 and are cast once a step, for less than autocast's bookkeeping costs."""
    stride, pad = module.stride[0], int(module.padding[0])
    apart = stride if isinstance(module, StridedPoint) else 1  # of the pixels that are read at all
    slow = is_slow(module) and apart == 1

    def step(maps: Tensor) -> Tensor:
        weight = module.weight.to(maps.dtype)
        bias = None if module.bias is None else module.bias.to(maps.dtype)
        if slow:
            return depthwise(maps, weight, bias, stride, pad)
        if apart > 1:
            return F.conv2d(maps[:, :, ::apart, ::apart], weight, bias, groups=module.groups)
        return F.conv2d(maps, weight, bias, stride, pad, groups=module.groups)

    return step
