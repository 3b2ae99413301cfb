"""The weights of all convolutions in the order in which CUDA's kernels read them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...models.layers import Layer
from ..stages import BackbonePlan
from . import kernels
from .kernels import equal_tiles
from .launch import Launch
from .workspace import Workspace
from .writer import WARP

OUTPUTS = 4  # of a dense convolution's tile, at most


class Weights:
    """Weights gathered by one launch at the beginning of every forward pass, and biases."""

    def __init__(self, workspace: Workspace, plan: BackbonePlan, flipped: bool) -> None:
        """Adds the launch to the workspace's. ``flipped``: also as the backward pass reads them."""
        self.workspace = workspace
        convolutions = [one for stage in plan.stages for one in stage.convolutions]
        convolutions.insert(0, (plan.head.layer, plan.head.convolution))
        most = max(max(layer.in_shape[0], layer.out_shape[0]) for layer, _ in convolutions)
        self._no_bias = workspace.dtype.zeros((most,))
        addresses = {
            (module, turn): self._in_tiles(module.weight, turn)
            for layer, module in convolutions
            if layer.groups == 1
            for turn in ((False, True) if flipped else (False,))
        }
        sizes = [one.numel() for one in addresses.values()]
        first, vectors = next(iter(addresses.values())), -(-sum(sizes) // WARP)
        pointers = torch.cat([*addresses.values(), first[:1].expand(vectors * WARP - sum(sizes))])
        gathered = workspace.dtype.zeros((len(pointers),))
        workspace.keep((pointers, gathered))
        call = [kernels.gather_pointers(workspace.dtype), pointers.data_ptr(), gathered.data_ptr(), vectors]
        workspace.launches.append(Launch(workspace.dtype, call, vectors, tiles=1))
        # By convolution, and whether flipped.
        self._gathered = dict(zip(addresses, gathered[: sum(sizes)].split(sizes), strict=True))

    def arguments(self, layer: Layer, module: nn.Conv2d, flipped: bool = False) -> list[int]:
        """A kernel's arguments: weights and biases, each an address and the bytes from model to model."""
        assert module.weight.is_contiguous()
        weight, bias = module.weight if layer.groups > 1 else self._gathered[module, flipped], module.bias
        tensors = [weight] if bias is None or flipped else [weight, bias]
        numbers = self.workspace.dtype.per_model(self.workspace.models, *tensors)
        return numbers if len(tensors) > 1 else [*numbers, self._no_bias.data_ptr(), 0]

    def _in_tiles(self, weight: Tensor, flipped: bool) -> Tensor:
        """Addresses of weights in the order (model, tile, input, ky, kx, 4); those beyond a tile are unused.

        ``flipped``: turned by half a turn with inputs and outputs exchanged.
        """
        models = self.workspace.models
        count = torch.arange(weight.numel(), device=weight.device)
        places = count.view(models, -1, *weight.shape[1:]) * weight.element_size() + weight.data_ptr()
        if flipped:
            places = places.flip(3, 4).transpose(1, 2)
        outputs, tiles = equal_tiles(places.shape[1], OUTPUTS)
        starts = [min(number * outputs, places.shape[1] - outputs) for number in range(tiles)]
        parts = [places[:, start : start + outputs].permute(0, 2, 3, 4, 1) for start in starts]
        together = torch.stack(parts, dim=1)
        padded = together[..., :1].repeat_interleave(OUTPUTS, dim=-1)
        padded[..., :outputs] = together
        return padded.flatten()
