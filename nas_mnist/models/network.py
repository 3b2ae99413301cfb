"""Layers as a `torch.nn.Module`, with the check that the module holds exactly what was counted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .architecture import Architecture
from .cost import cost_of
from .layers import IMAGE, Layer


class Network(nn.Module):
    """An architecture with weights: images (N, C, H, W) in, class scores (N, classes) out.

    The module at position ``i`` of ``layers`` is the architecture's layer ``i``, so that the names in a
    ``state_dict`` follow from the architecture alone. Layers of a repeated block are one module at two
    positions.

    With ``copies`` it is as many networks side by side, each with weights of its own, that run as one:
    images (N, copies * C, H, W) in, class scores (N, copies * classes) out, one copy after the other.
    """

    def __init__(self, architecture: Architecture, copies: int = 1) -> None:
        super().__init__()
        self.architecture, self.copies = architecture, copies
        self.layers = nn.ModuleList()
        for layer in architecture.layers:
            shared = layer.weights_of
            self.layers.append(_module(layer, copies) if shared is None else self.layers[shared])
        self._sources = [layer.inputs for layer in architecture.layers]
        self._kept = _read_later(architecture.layers)
        self.head_starts = next(at for at, layer in enumerate(architecture.layers) if layer.path == "head")
        counted = cost_of(architecture).params
        built = sum(parameter.numel() for parameter in self.parameters())
        if built != counted * copies:
            raise AssertionError(f"built {built} parameters, counted {counted}: {architecture.to_json()}")

    def numbers(self) -> dict[str, Tensor]:
        """Weights and statistics by name, those of a repeated block once: what a file of weights holds."""
        return {
            name: one.detach()
            for named in (self.named_parameters(), self.named_buffers())
            for name, one in named
        }

    def is_kept(self, position: int) -> bool:
        """Whether the output of a layer is read by more than the next layer."""
        return position in self._kept

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (logits) of normalised images, (N, C, H, W) -> (N, classes)."""
        kept = {IMAGE: images} if IMAGE in self._kept else {}
        maps = images
        for position in range(self.head_starts):
            inputs = [kept[at] if at != position - 1 else maps for at in self._sources[position]]
            maps = self.layers[position](*inputs)
            if position in self._kept:
                kept[position] = maps
        return self.head(maps)

    def head(self, maps: Tensor) -> Tensor:
        """Class scores (N, classes) of the maps before the head."""
        for module in self.layers[self.head_starts :]:
            maps = module(maps)
        return maps.flatten(1)  # (N, classes, 1, 1) -> (N, classes)


class Add(nn.Module):
    """The sum of a residual block's body and shortcut."""

    def forward(self, body: Tensor, shortcut: Tensor) -> Tensor:
        """Two tensors of one shape in, their sum out."""
        return body + shortcut


def _read_later(layers: tuple[Layer, ...]) -> set[int]:
    """Positions of the outputs that are read by more than the next layer."""
    return {
        source for position, layer in enumerate(layers) for source in layer.inputs if source != position - 1
    }


def _module(layer: Layer, copies: int) -> nn.Module:
    """A layer of so many networks side by side: a group of channels is one network's."""
    channels = copies * layer.in_shape[0]
    match layer.kind:
        case "Conv2d":
            return nn.Conv2d(
                channels,
                copies * layer.out_shape[0],
                layer.kernel,
                layer.stride,
                layer.padding,
                groups=copies * layer.groups,
                bias=layer.bias,
            )
        case "BatchNorm2d":
            return nn.BatchNorm2d(channels)
        case "Dropout2d":
            return nn.Dropout2d(layer.rate)
        case "MaxPool2d" | "AvgPool2d":
            return getattr(nn, layer.kind)(layer.kernel, layer.stride)  # type: ignore[no-any-return]
        case "Add":
            return Add()
        case _:
            return getattr(nn, layer.kind)()  # type: ignore[no-any-return]  # an activation


def build(architecture: Architecture, seed: int) -> Network:
    """A network with torch's default initial weights, drawn from ``seed``; no generator is touched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(architecture)


def side_by_side(models: Sequence[Network]) -> Network:
    """Networks of one architecture as one network of as many copies, with weights of its own."""
    with torch.random.fork_rng(devices=[]):  # its first weights are drawn, and replaced at once
        whole = Network(models[0].architecture, len(models)).to(next(models[0].parameters()).device)
    states = [model.state_dict() for model in models]
    parts = {name: [state[name] for state in states] for name in states[0]}
    # A scalar is the number of batches that a normalisation has seen, the same in all.
    whole.load_state_dict({name: torch.cat(of) if of[0].dim() else of[0] for name, of in parts.items()})
    return whole


def take_apart(whole: Network, models: Sequence[Network]) -> None:
    """Give networks the weights of those that are side by side in ``whole``."""
    for copy, model in enumerate(models):
        model.load_state_dict(
            {
                name: tensor.chunk(whole.copies)[copy] if tensor.dim() else tensor
                for name, tensor in whole.state_dict().items()
            }
        )
