"""Layers as a `torch.nn.Module`, with the check that the module holds exactly what was counted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .architecture import Architecture
from .cost import cost_of
from .layers import IMAGE, Layer


class Network(nn.Module):
    """An architecture with weights: images (N, C, H, W) in, class scores (N, classes) out.

    The module at position ``i`` of ``layers`` is the architecture's layer ``i``, so that the names in a
    ``state_dict`` follow from the architecture alone.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.layers = nn.ModuleList(_module(layer) for layer in architecture.layers)
        self._sources = [layer.inputs for layer in architecture.layers]
        self._kept = _read_later(architecture.layers)
        self.head_starts = next(at for at, layer in enumerate(architecture.layers) if layer.path == "head")
        counted = cost_of(architecture).params
        built = sum(parameter.numel() for parameter in self.parameters())
        if built != counted:
            raise AssertionError(f"built {built} parameters, counted {counted}: {architecture.to_json()}")

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
        """Class scores (N, classes) of the maps before the head, in the weights' number type.

        Under autocast too: bfloat16 would round a score of 10 to the nearest 1/16.
        """
        with torch.autocast(maps.device.type, enabled=False):
            maps = maps.to(next(self.parameters()).dtype)
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


def _module(layer: Layer) -> nn.Module:
    channels = layer.in_shape[0]
    match layer.kind:
        case "Conv2d":
            return nn.Conv2d(
                channels,
                layer.out_shape[0],
                layer.kernel,
                layer.stride,
                layer.padding,
                groups=layer.groups,
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
