"""The backend for CUDA by our kernels: one network, or several of one architecture side by side."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from math import prod

import torch
from torch import Tensor

from ...data.dataset import Images
from ...data.normalize import Normalizer
from ...models.network import Network
from ...recipes.recipe import Recipe
from ..batches import TorchImages
from ..flat_parameters import FlatParameters
from ..kernels.affine import fits_32_bits
from ..stages import UnsupportedLayerError, plan_of
from ..torch_backend import GPU_BATCH, TorchTrainer
from .backbone import Backbone
from .launch import CudaDType
from .step import FusedTrainStep

_EVALUATION_BYTES = 2e9  # of the maps of images that are evaluated at once, at most


class CudaBackend:
    """Networks by our kernels; a `backend.Backend`. Memory is kept from call to call."""

    evaluates_together = True

    def __init__(self, network: Network, device: torch.device) -> None:
        """Raises `UnsupportedLayerError` if there are no kernels for a layer.

        On a CPU, the processor runs the kernels, slowly, to test them.
        """
        self.network, self.plan = network, plan_of(network, fused=False)
        self.recordable = device.type == "cuda"
        if self.plan.head.normalised:
            raise UnsupportedLayerError("a normalisation of scores")
        self.dtype = CudaDType(next(network.parameters()).dtype, device)
        specs = (self.plan.image, *(stage.target for stage in self.plan.stages))
        values = sum(prod(one.shape) + prod(one.read_shape) for one in specs) * network.copies
        fitting = int(_EVALUATION_BYTES / (values * self.dtype.number.itemsize))
        self.max_batch = min(GPU_BATCH, max(1, fitting))
        self._addresses: list[int] = []  # of parameters and statistics, as backbones know them
        self._backbones: dict[tuple[int, bool], Backbone] = {}

    def reserve_threads(self) -> AbstractContextManager[None]:
        """Nothing: the kernels run on the device."""
        return nullcontext()

    def scores(self, images: Tensor) -> Tensor:
        """Class scores (models, N, classes) of normalised images (N, C, H, W), the same for all networks."""
        models = self.network.copies
        repeated = images if models == 1 else images.repeat(models, 1, 1, 1)
        scores = self.backbone(len(images)).forward(repeated)
        return scores.view(models, -1, scores.shape[1])

    def trainer(
        self, parameters: FlatParameters, data: Images, normalize: Normalizer, recipe: Recipe
    ) -> FusedTrainStep | TorchTrainer:
        """The forward and backward passes of a training; torch's for images beyond 32-bit addresses."""
        if not fits_32_bits(data.images):
            images = TorchImages(data.images, normalize)
            return TorchTrainer(self.network, parameters, images, data.labels, recipe.label_smoothing)
        backbone = self.backbone(recipe.batch_size, parameters.gradients)
        return FusedTrainStep(backbone, parameters, data, normalize, recipe)

    def backbone(self, count: int, gradients: Mapping[Tensor, Tensor] | None = None) -> Backbone:
        """The launches for ``count`` images a network; ``gradients``: where they write them, in training."""
        tensors = (*self.network.parameters(), *self.network.buffers())
        addresses = [one.data_ptr() for one in tensors]
        if addresses != self._addresses:  # they may be replaced between two calls
            self._backbones.clear()
            self._addresses = addresses
        key = count, gradients is not None
        if key not in self._backbones:
            self._backbones[key] = Backbone(self.plan, count, self.network.copies, self.dtype, gradients)
        return self._backbones[key]
