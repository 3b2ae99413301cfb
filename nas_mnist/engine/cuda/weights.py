"""The weights of all convolutions in the order in which CUDA's kernels read them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...models.layers import Layer
from ..stages import BackbonePlan
from . import kernels
from .kernels import equal_tiles
from .workspace import Workspace
from .writer import WARP

OUTPUTS = 4  # of a dense convolution's tile, at most


Gathered = dict[tuple[nn.Module, bool], Tensor]  # by convolution, and whether flipped


class Weights:
    """Weights gathered by one launch at the beginning of every forward pass, and biases."""

    def __init__(self, workspace: Workspace, plan: BackbonePlan, flipped: bool) -> None:
        """Adds the launch to the workspace's. ``flipped``: also as the backward pass reads them."""
        self.workspace = workspace
        convolutions = [one for stage in plan.stages for one in stage.convolutions]
        convolutions.insert(0, (plan.head.layer, plan.head.convolution))
        most = max(max(layer.in_shape[0], layer.out_shape[0]) for layer, _ in convolutions)
        self._no_bias = workspace.zeros((most,))
        addresses: Gathered = {}
        for layer, module in convolutions:
            for turn in (False, True) if flipped else (False,):
                if layer.groups == 1 and (module, turn) not in addresses:
                    addresses[module, turn] = self._in_tiles(module.weight, turn)
        self._gathered = self._gather(addresses)

    def arguments(self, layer: Layer, module: nn.Conv2d, flipped: bool = False) -> list[int]:
        """A kernel's arguments: weights and biases, each an address and the bytes from model to model."""
        weight, strided = module.weight, self.workspace.strided
        assert weight.is_contiguous()
        bias = [self._no_bias.data_ptr(), 0]
        if module.bias is not None and not flipped:
            bias = strided(module.bias)
        return [*strided(weight if layer.groups > 1 else self._gathered[module, flipped]), *bias]

    def _gather(self, addresses: Gathered) -> Gathered:
        """Memory for the weights at these addresses, and the launch that copies them."""
        workspace = self.workspace
        sizes = [one.numel() for one in addresses.values()]
        missing = -sum(sizes) % WARP
        pointers = torch.cat([*addresses.values(), next(iter(addresses.values()))[:1].expand(missing)])
        gathered = workspace.zeros((len(pointers),))
        workspace.keep((pointers, gathered))
        vectors = len(pointers) // WARP
        arguments = [pointers.data_ptr(), gathered.data_ptr(), vectors]
        workspace.launch_once(kernels.gather_pointers(workspace.dtype), arguments, vectors)
        return dict(zip(addresses, gathered[: sum(sizes)].split(sizes), strict=True))

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
