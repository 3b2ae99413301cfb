"""The backend that runs everywhere: torch's modules, autograd and `grid_sample`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.dataset import Images
from ..data.normalize import Normalizer
from ..models.network import Network
from ..recipes.recipe import Recipe
from .batches import Batches, ImageLoader, TorchImages
from .flat_parameters import FlatParameters
from .sgd import SGD, StepTables

CPU_BATCH, GPU_BATCH = 256, 2_000  # images a forward pass in evaluation, at most


class TorchBackend:
    """A network, or several side by side, by torch's modules; a `backend.Backend`."""

    evaluates_together = False

    def __init__(
        self,
        network: Network,
        device: torch.device,
        recordable: bool = False,
        augmented: type[ImageLoader] = TorchImages,
    ) -> None:
        """``recordable``: a step may be recorded as a CUDA graph; ``augmented``: makes augmented images."""
        self.network, self.recordable, self.augmented = network, recordable, augmented
        self.max_batch = CPU_BATCH if device.type == "cpu" else GPU_BATCH

    def reserve_threads(self) -> AbstractContextManager[None]:
        """Nothing: there are no threads but torch's."""
        return nullcontext()

    def scores(self, images: Tensor) -> Tensor:
        """Class scores (1, N, classes) of normalised images (N, C, H, W), in evaluation mode."""
        scores: Tensor = self.network(images)
        return scores[None]

    def trainer(
        self, parameters: FlatParameters, data: Images, normalize: Normalizer, recipe: Recipe
    ) -> TorchTrainer:
        """The forward and backward passes of a training, by autograd."""
        loader = TorchImages if recipe.augmentation.off else self.augmented
        images = loader(data.images, normalize)
        return TorchTrainer(self.network, parameters, images, data.labels, recipe.label_smoothing)


class TorchTrainer:
    """Forward and backward passes of one training; a `backend.Trainer`."""

    def __init__(
        self,
        network: Network,
        parameters: FlatParameters,
        images: ImageLoader,
        labels: Tensor,
        smoothing: float,
    ) -> None:
        self.network, self.parameters = network, parameters
        self.images, self.labels, self.smoothing = images, labels, smoothing
        self.map_shape = images.map_shape

    def prepare_maps(self, maps: Tensor) -> Tensor:
        """Affine maps (N, 2, 3) in the form that `Batches` hold."""
        return self.images.prepare_maps(maps)

    def losses(self, batches: Batches, step: Tensor) -> Tensor:
        """Mean losses (copies,) of a step's batch; leaves the gradient in ``parameters``."""
        picked, maps = batches.at(step)
        return self.pass_through(self.images(picked, maps), self.labels[picked])

    def pass_through(self, images: Tensor, labels: Tensor) -> Tensor:
        """The same for normalised images (copies * N, C, H, W) and labels (copies * N,)."""
        copies = self.network.copies
        stacked = images.unflatten(0, (copies, -1)).transpose(0, 1).flatten(1, 2)  # (N, copies * C, H, W)
        scores = self.network(stacked).unflatten(1, (copies, -1)).transpose(0, 1).flatten(0, 1)
        return self.autograd(scores, labels)

    def autograd(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Mean losses (copies,) of scores (copies * N, classes); leaves the gradient in ``parameters``."""
        each = F.cross_entropy(scores, labels, label_smoothing=self.smoothing, reduction="none")
        losses = each.view(self.network.copies, -1).mean(1)
        self.parameters.zero_grad()
        losses.sum().backward()
        self.parameters.collect_gradients()
        return losses.detach()

    def sgd(self, recipe: Recipe, tables: StepTables, ema: Tensor | None) -> SGD:
        """The optimiser for the recipe's SGD, with the EMA ``ema`` of the parameters."""
        return SGD(self.parameters, recipe, tables, ema)
