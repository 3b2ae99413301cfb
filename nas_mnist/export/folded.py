"""A trained network without normalisations: the base of the exports for other programs.

Each call of `models.program` computes

    act2(after_scale * act1(scale * conv(x, weight) + bias) + after_bias + other)

with one scale and one bias a channel. Repeats share the weight and have scales and biases of their own. A
normalisation behind an activation stays a scale and a bias: the zeros that pad the next convolution are not
normalised, so it cannot be folded there exactly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.normalize import Normalizer
from ..models.layers import IMAGE
from ..models.network import Network
from ..models.program import Call, fuse
from ..training.classifier import Classifier

Hook = Callable[[int, Tensor], Tensor]  # the number of a call (or IMAGE) and its output


class Channels(nn.Module):
    """The scales and biases of one call, each (channels,) float32."""

    def __init__(self, scale: Tensor, bias: Tensor, after: tuple[Tensor, Tensor] | None) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(scale), nn.Parameter(bias)
        self.after_scale = None if after is None else nn.Parameter(after[0])
        self.after_bias = None if after is None else nn.Parameter(after[1])


class FoldedNetwork(nn.Module):
    """Pixels (N, C, H, W) from 0 to 255 in, class scores (N, classes) out.

    Parameters are copies: changing them leaves the classifier as it was.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        model = classifier.model.eval()
        layers = model.architecture.layers
        self.architecture, self.data = model.architecture, classifier.data_title
        self.normalizer: Normalizer = classifier.normalizer
        self.calls = fuse(layers)
        self.owners = [  # by call: the layer whose weights it uses
            call.position if call.layer.weights_of is None else call.layer.weights_of for call in self.calls
        ]
        self.convolutions = [at for at, call in enumerate(self.calls) if call.layer.kind == "Conv2d"]
        self.weights, self.channels = nn.ParameterDict(), nn.ModuleDict()
        for number in self.convolutions:
            call = self.calls[number]
            self.weights[str(self.owners[number])] = _module(model, call.position).weight.detach().clone()
            self.channels[str(number)] = _fold(model, call)

    def is_shared(self, number: int) -> bool:
        """Whether another call has the same weights."""
        return self.owners.count(self.owners[number]) > 1

    def weight(self, number: int) -> Tensor:
        """The weight of a convolution (out, in / groups, height, width)."""
        weight: Tensor = self.weights[str(self.owners[number])]
        return weight

    def of(self, number: int) -> Channels:
        """The scales and biases of a convolution."""
        found = self.channels[str(number)]
        assert isinstance(found, Channels)
        return found

    def forward(self, pixels: Tensor, hook: Hook = lambda _, maps: maps) -> Tensor:
        """Class scores; ``hook`` may replace the image and every output but the scores."""
        made = {IMAGE: hook(IMAGE, self.normalizer(pixels))}
        last = len(self.calls) - 1
        for number in range(last):
            made[number] = hook(number, self.run(number, made)[-1])
        scores: Tensor = self.run(last, made)[-1].mean((2, 3))
        return scores

    def run(self, number: int, made: dict[int, Tensor], weight: Tensor | None = None) -> list[Tensor]:
        """The values of one call before the first activation, before the addition, and at its end."""
        call, source = self.calls[number], made[self.calls[number].source]
        layer = call.layer
        if layer.kind == "MaxPool2d":
            return [F.max_pool2d(source, layer.kernel, layer.stride)]
        if layer.kind == "AvgPool2d":
            return [F.avg_pool2d(source, layer.kernel, layer.stride)]
        own, weight = self.of(number), self.weight(number) if weight is None else weight
        weight = weight * own.scale.view(-1, 1, 1, 1)
        before = F.conv2d(source, weight, own.bias, layer.stride, layer.padding, groups=layer.groups)
        maps = ACTIVATE[call.activation](before)
        if own.after_scale is not None and own.after_bias is not None:
            maps = maps * own.after_scale.view(-1, 1, 1) + own.after_bias.view(-1, 1, 1)
        total = maps if call.other is None else maps + made[call.other]
        return [before, maps, ACTIVATE[call.last_activation](total)]


ACTIVATE: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda maps: maps,
    "ReLU": F.relu,
    "LeakyReLU": F.leaky_relu,
    "SiLU": F.silu,
    "Hardswish": F.hardswish,
    "GELU": F.gelu,
}


def _module(model: Network, position: int) -> nn.Conv2d | nn.BatchNorm2d:
    found = model.layers[position]
    assert isinstance(found, nn.Conv2d | nn.BatchNorm2d)
    return found


def _fold(model: Network, call: Call) -> Channels:
    """The scales and biases of a convolution's bias and its normalisations."""
    convolution = _module(model, call.position)
    channels = call.layer.out_shape[0]
    bias = torch.zeros(channels) if convolution.bias is None else convolution.bias.detach().clone()
    scale, shift = _affine(model, call.norm) or (torch.ones(channels), torch.zeros(channels))
    return Channels(scale, scale * bias + shift, _affine(model, call.norm_after))


def _affine(model: Network, position: int | None) -> tuple[Tensor, Tensor] | None:
    """The scale and the shift of a normalisation with its running statistics."""
    if position is None:
        return None
    norm = _module(model, position)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias.detach() - norm.running_mean * scale


@torch.no_grad()
def equalise(network: FoldedNetwork, pixels: Tensor) -> None:
    """Give the channels between two convolutions without an activation one range; scores stay equal.

    Cross-layer equalisation (Nagel et al. 2019, arxiv.org/abs/1906.04721). Repeats share weights, so a
    channel has one factor in all of them.
    """
    ranges: dict[int, Tensor] = {}  # by call: the largest value of every channel

    def note(number: int, maps: Tensor) -> Tensor:
        ranges[number] = maps.abs().amax((0, 2, 3))
        return maps

    network(pixels, note)
    readers = [(call.source, call.other) for call in network.calls]
    for owner in sorted({network.owners[number] for number in network.convolutions}):
        users = [number for number in network.convolutions if network.owners[number] == owner]
        sources = [network.calls[number].source for number in users]
        if not all(
            _is_linear(network, source) and sum(source in pair for pair in readers) == 1 for source in sources
        ):
            continue
        spread = torch.stack([ranges[source] / ranges[source].max().clamp(min=1e-9) for source in sources])
        factor = spread.amax(0).clamp(min=1e-3)  # of every channel
        for source in sources:
            network.of(source).scale.div_(factor)
            network.of(source).bias.div_(factor)
        inputs = (-1, 1, 1, 1) if network.calls[users[0]].layer.groups > 1 else (1, -1, 1, 1)
        network.weights[str(owner)].mul_(factor.view(inputs))


def _is_linear(network: FoldedNetwork, number: int) -> bool:
    """Whether a call is a convolution with nothing behind it but a scale and a bias."""
    if number == IMAGE:
        return False
    call = network.calls[number]
    plain = not call.activation and call.norm_after is None and call.other is None
    return call.layer.kind == "Conv2d" and plain
