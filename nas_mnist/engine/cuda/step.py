"""A training step on CUDA as launches of our own kernels.

Torch's operations on small tensors take longer to launch than to run, and there would be about 60 of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...data.dataset import Images
from ...data.normalize import Normalizer
from ...recipes.recipe import Recipe
from ..batches import Batches
from ..flat_parameters import FlatParameters
from ..kernels.affine import PaddedImages
from ..sgd import StepTables
from . import kernels
from .backbone import Backbone
from .launch import CudaDType, Launch, run
from .writer import WARP


class FusedTrainStep:
    """Forward and backward passes of one training; a `backend.Trainer`."""

    def __init__(
        self,
        backbone: Backbone,
        parameters: FlatParameters,
        data: Images,
        normalize: Normalizer,
        recipe: Recipe,
    ) -> None:
        """``backbone``: for training, on as many images as a batch has."""
        self.backbone, self.parameters, self.data = backbone, parameters, data
        workspace = backbone.workspace
        images = workspace.models * workspace.count
        self.picked = torch.zeros((1, images), dtype=torch.long, device=data.images.device)
        self.labels = torch.zeros(images, dtype=torch.long, device=data.images.device)
        self.maps = torch.zeros((1, images, 3, 2), device=data.images.device)
        self.maps[..., 1, 0] = self.maps[..., 2, 1] = 1  # images as they are, until there are other maps
        self.loader = PaddedImages(data.images, normalize)
        self.map_shape = self.loader.map_shape
        self._image_launches = self._load_images()
        self._loss_launches = self._cross_entropy(recipe.label_smoothing)

    def _load_images(self) -> list[Launch]:
        backbone, workspace, loader = self.backbone, self.backbone.workspace, self.loader
        channels, height, width = backbone.plan.image.shape
        target = backbone.maps[backbone.plan.image].maps
        data = [one.data_ptr() for one in (loader.images, self.picked, self.maps, loader.normal)]
        arguments = [*target.arguments, *data, channels, height, width, workspace.count]
        kernel = kernels.augmented_images(workspace.dtype)
        workspace.launch([kernel, *arguments], channels, workspace.row_chunks(height))
        return workspace.take_launches()

    def _cross_entropy(self, smoothing: float) -> list[Launch]:
        backbone, workspace = self.backbone, self.backbone.workspace
        classes, count = backbone.scores.shape[0], workspace.count
        self.block_losses = workspace.dtype.zeros((workspace.tiles, 1))
        constants = workspace.keep(workspace.dtype.zeros((3,)))
        constants.copy_(torch.tensor([smoothing / classes, 1 - smoothing, 1 / count]))
        tensors = [self.labels.data_ptr(), classes, count, constants.data_ptr(), workspace.mask.data_ptr()]
        losses = [self.block_losses.data_ptr(), self.block_losses.element_size()]
        maps = [*backbone.scores.arguments, *backbone.score_gradient.arguments]
        workspace.launch([kernels.cross_entropy(workspace.dtype), *maps, *tensors, *losses], 1)
        return workspace.take_launches()

    def prepare_maps(self, maps: Tensor) -> Tensor:
        """Affine maps (N, 2, 3) in the form that `Batches` hold."""
        return self.loader.prepare_maps(maps)

    def losses(self, batches: Batches, step: Tensor) -> Tensor:
        """Mean losses (models,) of a step's batch; leaves the gradient in ``parameters``."""
        torch.index_select(batches.order, 0, step, out=self.picked)
        torch.index_select(self.data.labels, 0, self.picked[0], out=self.labels)
        if batches.maps is not None:
            torch.index_select(batches.maps, 0, step, out=self.maps)
        run(self._image_launches)
        self.backbone.run_forward()
        run(self._loss_launches)
        self.backbone.run_backward()
        return self.block_losses.view(self.backbone.workspace.models, -1).sum(1)

    def sgd(self, recipe: Recipe, tables: StepTables, ema: Tensor | None) -> FusedSGD:
        """The optimiser for the recipe's SGD, with the EMA ``ema`` of the parameters."""
        return FusedSGD(self.backbone.workspace.dtype, self.parameters, recipe, tables, ema)


class FusedSGD:
    """`engine.sgd.SGD`: two launches for all parameters."""

    def __init__(
        self,
        dtype: CudaDType,
        parameters: FlatParameters,
        recipe: Recipe,
        tables: StepTables,
        ema: Tensor | None = None,
    ) -> None:
        """``ema``: the flat parameters of the averaged network, updated after every step."""
        self.momentum_buffer = torch.zeros_like(parameters.gradient)
        decay = torch.zeros_like(parameters.gradient)
        decay[: len(parameters.weights)] = recipe.weight_decay
        momentum = dtype.zeros((1,)).fill_(recipe.momentum)
        tensors = parameters.trained, parameters.gradient, self.momentum_buffer, decay, momentum
        kernel = kernels.sgd_step(dtype, recipe.nesterov)
        self._launches = [_flat_launch(dtype, kernel, (*tensors, tables.lr_table, tables.step_index))]
        if ema is not None:
            averaged = ema, parameters.all, tables.ema_alphas, tables.step_index
            self._launches.append(_flat_launch(dtype, kernels.ema_update(dtype), averaged))
        self._memory = parameters, tables, ema, decay, momentum

    def step(self) -> None:
        """Take one step."""
        run(self._launches)


def _flat_launch(dtype: CudaDType, kernel: int, tensors: Sequence[Tensor]) -> Launch:
    """A launch for all numbers of flat tensors; as many as the first one has."""
    vectors = len(tensors[0]) // WARP
    return Launch(dtype, [kernel, *(one.data_ptr() for one in tensors), vectors], vectors, tiles=1)
