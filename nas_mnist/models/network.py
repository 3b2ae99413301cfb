"""Layers as a `torch.nn.Module`; the number of built parameters is checked against the count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .architecture import Architecture
from .cost import cost_of
from .layers import IMAGE, Layer


class Network(nn.Module):
    """An architecture with weights: images (N, C, H, W) in, class scores (N, classes) out.

    Module ``i`` of ``layers`` is the architecture's layer ``i``, so the names in a ``state_dict`` follow from
    the architecture alone. Layers of a repeated block are one module at two positions.

    With ``copies`` > 1 that many independent networks run as one, each a group of channels: images
    (N, copies * C, H, W) in, class scores (N, copies * classes) out, copy after copy.
    """

    def __init__(self, architecture: Architecture, copies: int = 1) -> None:
        super().__init__()
        self.architecture, self.copies = architecture, copies
        self.layers = nn.ModuleList()
        for layer in architecture.layers:
            shared = layer.weights_of
            self.layers.append(_module(layer, copies) if shared is None else self.layers[shared])
        self._inputs = [layer.inputs for layer in architecture.layers]
        self._kept = _read_later(architecture.layers)
        self.head_starts = next(at for at, layer in enumerate(architecture.layers) if layer.path == "head")
        counted = cost_of(architecture).params
        built = sum(parameter.numel() for parameter in self.parameters())
        if built != counted * copies:
            raise AssertionError(f"built {built} parameters, counted {counted}: {architecture.to_json()}")

    def unique_tensors(self) -> dict[str, Tensor]:
        """Weights and running statistics by name, shared ones once: the content of a weights file."""
        return {
            name: tensor.detach()
            for named in (self.named_parameters(), self.named_buffers())
            for name, tensor in named
        }

    def is_kept(self, position: int) -> bool:
        """Whether a layer's output is also read by a layer behind the next one."""
        return position in self._kept

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (logits) of normalised images, (N, C, H, W) -> (N, classes)."""
        kept = {IMAGE: images} if IMAGE in self._kept else {}
        maps = images
        for position in range(self.head_starts):
            inputs = [kept[at] if at != position - 1 else maps for at in self._inputs[position]]
            maps = self.layers[position](*inputs)
            if position in self._kept:
                kept[position] = maps
        return self.head(maps)

    def head(self, maps: Tensor) -> Tensor:
        """Class scores (N, classes) of the feature maps before the head."""
        for module in self.layers[self.head_starts :]:
            maps = module(maps)
        return maps.flatten(1)  # (N, classes, 1, 1) -> (N, classes)


class Add(nn.Module):
    """The sum of a residual block's body and shortcut."""

    def forward(self, body: Tensor, shortcut: Tensor) -> Tensor:
        """Two tensors of one shape in, their sum out."""
        return body + shortcut


def build(architecture: Architecture, seed: int) -> Network:
    """A network with torch's default initial weights for ``seed``; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(architecture)


def stack_models(models: Sequence[Network]) -> Network:
    """Networks of one architecture as one network of several copies, with weights of its own."""
    with torch.random.fork_rng(devices=[]):  # the initial weights are replaced at once
        stacked = Network(models[0].architecture, len(models)).to(next(models[0].parameters()).device)
    states = [model.state_dict() for model in models]
    tensors = {name: [state[name] for state in states] for name in states[0]}
    # A scalar is the number of batches that a normalisation has seen; all copies have the same.
    stacked.load_state_dict(
        {name: torch.cat(parts) if parts[0].dim() else parts[0] for name, parts in tensors.items()}
    )
    return stacked


def unstack_models(stacked: Network, models: Sequence[Network]) -> None:
    """Load the weights of each copy in ``stacked`` into the model of the same position."""
    for copy, model in enumerate(models):
        model.load_state_dict(
            {
                name: tensor.chunk(stacked.copies)[copy] if tensor.dim() else tensor
                for name, tensor in stacked.state_dict().items()
            }
        )


def _read_later(layers: tuple[Layer, ...]) -> set[int]:
    """Positions of the outputs that a layer behind the next one reads."""
    return {
        source for position, layer in enumerate(layers) for source in layer.inputs if source != position - 1
    }


def _module(layer: Layer, copies: int) -> nn.Module:
    """One layer of several networks: each network is a group of channels."""
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
