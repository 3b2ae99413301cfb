"""The backend for a CPU: compiled kernels for the layers before the head, and a small head.

It computes the same as torch's modules, but for the order of sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...data.dataset import Images
from ...data.normalize import Normalizer
from ...models.network import Network
from ...recipes.recipe import Recipe
from ..batches import ImageLoader, TorchImages
from ..flat_parameters import FlatParameters
from ..kernels.compile import DType
from ..maps import Array
from ..stages import plan_of
from ..torch_backend import CPU_BATCH, TorchTrainer
from .affine import AffineImages
from .backbone import Backbone
from .threads import reserve_threads, thread_count


class CpuBackend:
    """A network by our kernels; a `backend.Backend`. Memory is kept from call to call."""

    max_batch = CPU_BATCH
    evaluates_together = recordable = False

    def __init__(self, network: Network) -> None:
        """Raises `UnsupportedLayerError` if there are no kernels for a layer, or for several networks."""
        self.network, self.plan = network, plan_of(network)
        layers: list[nn.Module] = list(network.layers[: network.head_starts])
        self._tables = [table for one in layers for table in (one._parameters, one._buffers)]
        self._addresses: list[tuple[int, int]] = []  # of parameters and statistics, as backbones know them
        self._backbones: dict[tuple[Any, ...], Backbone] = {}

    def reserve_threads(self) -> AbstractContextManager[None]:
        """While it is open, torch's threads belong to the kernels."""
        return reserve_threads()

    def scores(self, images: Tensor) -> Tensor:
        """Class scores (1, N, classes) of normalised images (N, C, H, W), of the weights' dtype.

        Raises `ValueError` for images of another dtype or shape.
        """
        maps = self.backbone(images).forward(images.numpy())
        return self.head(torch.from_numpy(maps))[None]

    def trainer(
        self, parameters: FlatParameters, data: Images, normalize: Normalizer, recipe: Recipe
    ) -> CpuTrainer:
        """The forward and backward passes of a training."""
        loader: type[ImageLoader] = TorchImages if recipe.augmentation.off else AffineImages
        images = loader(data.images, normalize)
        return CpuTrainer(self, parameters, images, data.labels, recipe.label_smoothing)

    def head(self, maps: Tensor) -> Tensor:
        """Class scores (N, classes) of the maps before the head, or of their means (N, C, 1, 1)."""
        if not self.plan.head.averages_first:
            return self.network.head(maps)
        convolution = self.plan.head.convolution
        return F.linear(maps.flatten(1), convolution.weight.flatten(1), convolution.bias)

    def backbone(self, images: Tensor, gradients: Mapping[Tensor, Tensor] | None = None) -> Backbone:
        """The layers before the head for as many images; ``gradients``: where it writes them, in training.

        Raises `ValueError` for images of another dtype or shape.
        """
        dtype = self.plan.head.convolution.weight.dtype
        if images.shape[1:] != self.plan.image.shape or images.dtype != dtype:
            raise ValueError(f"images are {images.dtype} {list(images.shape)}, of another dtype or shape")
        tensors = [one for table in self._tables for one in table.values() if one is not None]
        addresses = [(id(one), one.data_ptr()) for one in tensors]
        if addresses != self._addresses:  # they may be replaced between two calls
            self._backbones.clear()
            self._addresses = addresses
        key = len(images), thread_count(), gradients is not None
        if key not in self._backbones:
            self._backbones[key] = Backbone(self.plan, len(images), DType(dtype), thread_count(), gradients)
        return self._backbones[key]


class CpuTrainer(TorchTrainer):
    """Forward and backward passes of one training by our kernels."""

    def __init__(
        self,
        backend: CpuBackend,
        parameters: FlatParameters,
        images: ImageLoader,
        labels: Tensor,
        smoothing: float,
    ) -> None:
        super().__init__(backend.network, parameters, images, labels, smoothing)
        self.backend = backend
        # The gradient of a linear head is a formula: no autograd.
        self.linear_head = backend.plan.head.averages_first

    def pass_through(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean losses (1,) of normalised images (N, C, H, W) with labels (N,); leaves the gradient."""
        backbone = self.backend.backbone(images, self.parameters.gradients)
        maps = backbone.forward(images.numpy())
        head = self._linear_head if self.linear_head else self._head_by_autograd
        loss, gradient = head(maps, labels)
        backbone.backward(gradient)
        return loss

    @torch.no_grad()
    @np.errstate(over="ignore", invalid="ignore")  # the caller finds a loss that is not finite
    def _linear_head(self, maps: Array, labels: Tensor) -> tuple[Tensor, Array]:
        """The mean loss (1,) of means of maps (N, C, 1, 1), and their gradient.

        Without autograd, whose cost is a quarter to a third of a small network's step.
        """
        convolution, gradients = self.backend.plan.head.convolution, self.parameters.gradients
        weight, bias = convolution.weight, convolution.bias
        means, weights = maps[:, :, 0, 0], weight.numpy()[:, :, 0, 0]
        scores = means @ weights.T  # (N, classes); numpy is quicker than torch with so few numbers
        if bias is not None:
            scores += bias.numpy()
        loss, gradient = _cross_entropy(scores, labels.numpy(), self.smoothing)
        np.matmul(gradient.T, means, out=gradients[weight].numpy()[:, :, 0, 0])
        if bias is not None:
            gradient.sum(0, out=gradients[bias].numpy())
        return torch.tensor([loss], dtype=weight.dtype), (gradient @ weights)[..., None, None]

    def _head_by_autograd(self, maps: Array, labels: Tensor) -> tuple[Tensor, Array]:
        """The mean loss (1,) of maps before the head (N, C, H, W), and their gradient."""
        features = torch.from_numpy(maps).requires_grad_()
        loss = self.autograd(self.backend.head(features), labels)
        assert features.grad is not None
        return loss, features.grad.numpy()


def _cross_entropy(scores: Array, labels: Array, smoothing: float) -> tuple[float, Array]:
    """`F.cross_entropy` for scores (N, classes) and labels (N,), and its gradient (N, classes)."""
    scores = scores - scores.max(1, keepdims=True)
    exponentials = np.exp(scores)
    sums = exponentials.sum(1, keepdims=True)
    wanted = _smoothed_labels(scores.shape[1], smoothing, scores.dtype)[labels]
    loss = (np.log(sums).sum() - np.vdot(scores, wanted)) / len(scores)
    return float(loss), (exponentials / sums - wanted) / len(scores)


@cache
def _smoothed_labels(classes: int, smoothing: float, dtype: np.dtype[Any]) -> Array:
    """The wanted probability of every class, by label: (classes, classes)."""
    return (np.eye(classes) * (1 - smoothing) + smoothing / classes).astype(dtype)
