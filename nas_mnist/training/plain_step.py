"""One training step in ordinary torch: the definition that every backend is tested against."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.normalize import Normalizer
from ..models.network import Network
from ..recipes.recipe import Recipe


def plain_sgd(model: Network, recipe: Recipe) -> torch.optim.SGD:
    """Torch's SGD for a recipe; weight decay applies to convolution weights only."""
    weights = [one for one in model.parameters() if one.dim() > 1]
    others = [one for one in model.parameters() if one.dim() == 1]
    decayed: dict[str, Any] = {"params": weights, "weight_decay": recipe.weight_decay}
    groups = [decayed, {"params": others}]
    return torch.optim.SGD(groups, momentum=recipe.momentum, nesterov=recipe.nesterov)


def plain_step(
    model: Network, ema: Network, optimizer: torch.optim.Optimizer,
    images: Tensor, labels: Tensor, maps: Tensor | None,
    *, normalize: Normalizer, recipe: Recipe, lr: float, ema_alpha: float,
) -> Tensor:  # fmt: skip
    """Train on one batch; returns the mean loss, a 0-d tensor.

    ``images`` (N, C, H, W) uint8, ``labels`` (N,), ``maps`` (N, 2, 3) as `affine_grid` takes them.
    ``ema_alpha`` is the weight of the newest parameters and statistics in the averaged network ``ema``.
    """
    if maps is not None:
        grid = F.affine_grid(maps, list(images.shape), align_corners=False)  # (N, H, W, 2)
        images = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    scores = model.train()(normalize(images))  # (N, classes)
    loss = F.cross_entropy(scores, labels, label_smoothing=recipe.label_smoothing)
    optimizer.zero_grad()
    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    ema_tensors, tensors = (itertools.chain(one.parameters(), one.buffers()) for one in (ema, model))
    for averaged, newest in zip(ema_tensors, tensors, strict=True):
        if averaged.is_floating_point():
            averaged.data.lerp_(newest.data, ema_alpha)
    return loss.detach()
