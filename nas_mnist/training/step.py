"""One training step: gather, augment, normalise, forward, backward, optimise, average.

Everything that changes from step to step is a tensor on the device, in a place that stays: the number of
steps done, the order of the images and the maps that augment them, the learning rates. So a step waits for
nothing, and CUDA can record one step and replay it (pytorch.org/docs/stable/notes/cuda.html#cuda-graphs):
for a network this small, launching a step's few hundred kernels one by one takes longer than running them.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.dataset import Images
from ..engine.cuda.network import GpuNetwork
from ..engine.cuda.step import Descent, Learner
from ..engine.fused import FusedNetwork, lending
from ..engine.warp import Warp, within_reach
from ..models.network import Network
from ..recipes.recipe import Distillation, Recipe
from .augment import draw, warp
from .evaluate import Normalizer, forward_on
from .optim import SGD, Muon, Numbers

EAGER = 3  # steps before CUDA records one: by then the optimiser has its state


class Step:
    """A network in training; calling it trains on one batch.

    Where the network is several side by side, each one is trained on batches of its own, in an order and
    with augmentation from its own generator.
    """

    def __init__(
        self,
        model: Network,
        data: Images,
        recipe: Recipe,
        generators: Sequence[torch.Generator],
        plain: bool = False,
        teacher: Network | None = None,
    ) -> None:
        """The network's weights move to memory of the step's own.

        ``plain``: torch's own modules in float32, step by step, to hold the fast ways against. Raises
        `ValueError` where the recipe names a teacher and there is none, or the other way round.
        """
        if recipe.distillation.off != (teacher is None):
            raise ValueError(f"teacher: {teacher and 'one'}, recipe's {recipe.distillation.teacher!r}")
        device = data.images.device
        self.numbers = Numbers(model)
        self.model, self.data, self.recipe, self.generators = model, data, recipe, generators
        self.steps = len(data) // recipe.batch_size  # an epoch; the remainder of the images is left out
        self.forward = model if plain else forward_on(model, device, self.numbers.gradients)
        self.lessons = None if teacher is None else Lessons(teacher, recipe.distillation, plain)
        self.normalize = Normalizer.of(data.images)
        gpu = self.forward if isinstance(self.forward, GpuNetwork) else None
        if teacher is not None or not within_reach(data.images):
            gpu = None
        compiled = gpu is not None or (device.type == "cpu" and not plain and not recipe.augmentation.off)
        self.warp = Warp(data.images, self.normalize) if compiled else None
        self.done = torch.zeros(1, dtype=torch.long, device=device)  # steps
        shape = self.steps, model.copies * recipe.batch_size  # step by step, one copy behind the other
        self.order = torch.zeros(shape, dtype=torch.long, device=device)  # positions of images
        one = (3, 2) if self.warp else (2, 3)
        maps = (0,) if recipe.augmentation.off else (*shape, *one)
        self.maps = torch.zeros(maps, device=device)  # that augment these images
        self.rate = torch.zeros((), device=device)
        self.rates = torch.tensor(learning_rates(recipe, self.steps), device=device)  # of every step
        self.learner: Learner | None = None
        if gpu is not None and self.warp is not None:
            self.learner = Learner(gpu, self.warp, recipe.batch_size, recipe.label_smoothing)
        self.optimizer: torch.optim.Optimizer | SGD | Descent
        if gpu is not None and recipe.optimizer == "sgd":
            self.optimizer = Descent(gpu, self.numbers, recipe, self.rates, self.done)
        else:
            self.optimizer = _optimizer(self.numbers, recipe, self.rate)
        self.loss = torch.zeros(model.copies, device=device)  # sums over the epoch's batches so far
        self.calls = 0
        self.recorded = device.type == "cuda" and not plain
        self.graph: torch.cuda.CUDAGraph | None = None
        self.average = copy.deepcopy(model) if recipe.average else None
        if self.average is not None:
            self.averaged = Numbers(self.average).all
            total = recipe.epochs * self.steps
            shares = [1 - min(recipe.average, (2 + step) / (11 + step)) for step in range(total)]
            self.shares = torch.tensor(shares, device=device)  # of the newest weights in the average
            if isinstance(self.optimizer, Descent):
                self.optimizer.follow(self.averaged, self.numbers.all, self.shares)

    @property
    def result(self) -> Network:
        """The network that is scored: the average where the recipe keeps one."""
        return self.model if self.average is None else self.average

    def begin_epoch(self) -> None:
        """Put the images in a new order, draw how each is augmented, and begin to sum the loss anew."""
        self.loss.zero_()
        recipe = self.recipe
        parts = range(0, self.order.shape[1], recipe.batch_size)  # by copy
        for start, generator in zip(parts, self.generators, strict=True):
            part = slice(start, start + recipe.batch_size)
            shuffled = torch.randperm(len(self.data), generator=generator, device=generator.device)
            picked = shuffled[: self.steps * recipe.batch_size]
            self.order[:, part] = picked.view(self.steps, -1)
            if not recipe.augmentation.off:
                maps = draw(recipe.augmentation, len(picked), generator)
                maps = maps if self.warp is None else self.warp.lines(maps)
                self.maps[:, part] = maps.unflatten(0, (self.steps, -1))

    def run(self, steps: int) -> None:
        """Train on the next batches, at most to the end of the epoch."""
        self.model.train()
        with lending(self.forward):
            for _ in range(steps):
                if self.recorded and self.calls == EAGER:
                    self.graph = _record(self)
                if self.graph is None:
                    self()
                else:
                    self.graph.replay()

    def __call__(self) -> None:
        """Train on the next batch."""
        self.calls += 1
        at = self.done % self.steps
        if self.learner is not None:
            self.loss += self._let_learn(self.learner, at)
        else:
            picked = self.order.index_select(0, at)[0]  # an index of no dimension would be read
            images, labels = self._images(picked, at), self.data.labels[picked]
            if self.lessons is None and isinstance(self.forward, FusedNetwork) and self.forward.learns:
                self.loss += self.forward.learn(images, labels, self.recipe.label_smoothing)
            else:
                self.loss += self._learn(images, labels)
        if isinstance(self.optimizer, Descent):
            self.optimizer.step()
        else:
            self.rate.copy_(self.rates.index_select(0, self.done)[0])
            self.optimizer.step()
            if self.average is not None:
                self.averaged.lerp_(self.numbers.all, self.shares.index_select(0, self.done)[0])
        self.done += 1

    def _let_learn(self, learner: Learner, at: Tensor) -> Tensor:
        """The mean losses (copies,) of a batch, whose gradient is `numbers`' afterwards: by our kernels."""
        torch.index_select(self.order, 0, at, out=learner.picked)
        torch.index_select(self.data.labels, 0, learner.picked[0], out=learner.labels)
        if not self.recipe.augmentation.off:
            torch.index_select(self.maps, 0, at, out=learner.lines)
        return learner()

    def _images(self, picked: Tensor, at: Tensor) -> Tensor:
        """The images at these positions, augmented and normalised: (N, C, H, W) float32."""
        if self.recipe.augmentation.off:
            return self.normalize(self.data.images[picked])
        maps = self.maps.index_select(0, at)[0]
        if self.warp is not None:
            return self.warp(picked, maps)
        return self.normalize(warp(self.data.images[picked].float(), maps))

    def _learn(self, images: Tensor, labels: Tensor) -> Tensor:
        """The mean losses (copies,) of a batch, whose gradient is `numbers`' afterwards: by autograd."""
        copies = self.model.copies
        if copies == 1 or isinstance(self.forward, GpuNetwork):
            scores = self.forward(images)  # (N, classes)
        else:
            scores = self.forward(images.unflatten(0, (copies, -1)).transpose(0, 1).flatten(1, 2))
            scores = scores.unflatten(1, (copies, -1)).transpose(0, 1).flatten(0, 1)
        smoothing = self.recipe.label_smoothing
        losses = F.cross_entropy(scores, labels, label_smoothing=smoothing, reduction="none")
        if self.lessons is not None:
            losses = self.lessons(losses, scores, images)
        loss = losses.view(copies, -1).mean(1)
        self.numbers.forget_gradients()
        loss.sum().backward()
        self.numbers.collect_gradients()
        return loss.detach()


class Lessons:
    """What a teacher adds to the loss."""

    def __init__(self, teacher: Network, how: Distillation, plain: bool = False) -> None:
        """``plain``: the teacher is run by torch's own modules."""
        self.how = how
        device = next(teacher.parameters()).device
        self.forward = teacher if plain else forward_on(teacher, device)

    def __call__(self, losses: Tensor, scores: Tensor, images: Tensor) -> Tensor:
        """The losses (N,) with the teacher's share: of scores (N, classes) for images (N, C, H, W).

        That share is the cross-entropy of both networks' softmax at a temperature, times its square, which
        keeps the gradients' size (Hinton et al. 2015, section 2, arxiv.org/abs/1503.02531).
        """
        share, temperature = self.how.share, self.how.temperature
        with torch.no_grad():
            wanted = (self.forward(images) / temperature).softmax(1)
        taught = F.cross_entropy(scores / temperature, wanted, reduction="none") * temperature**2
        return losses.lerp(taught, share)


def learning_rates(recipe: Recipe, steps: int) -> list[float]:
    """The learning rate of every step of a training with ``steps`` steps an epoch."""
    total = recipe.epochs * steps
    return [recipe.learning_rate * schedule(recipe, (step + 1) / total) for step in range(total)]


def schedule(recipe: Recipe, progress: float) -> float:
    """The share of the peak learning rate at ``progress`` (0 to 1) through all steps."""
    if progress < recipe.warmup:
        return progress / recipe.warmup
    done = (progress - recipe.warmup) / (1 - recipe.warmup)  # 0 to 1 after the warm-up
    if recipe.schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return 1 - done if recipe.schedule == "linear" else 1.0


def _optimizer(numbers: Numbers, recipe: Recipe, rate: Tensor) -> torch.optim.Optimizer | SGD:
    """Weight decay applies to convolution weights, not to biases and normalisation."""
    if recipe.optimizer == "adamw":
        numbers.weights.grad, numbers.others.grad = numbers.weight_gradient, numbers.other_gradient
        groups = [
            {"params": [numbers.weights], "weight_decay": recipe.weight_decay},
            {"params": [numbers.others], "weight_decay": 0.0},
        ]
        betas, recorded = (recipe.momentum, 0.999), rate.device.type == "cuda"
        return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True, capturable=recorded)
    kind = Muon if recipe.optimizer == "muon" else SGD
    return kind(numbers, rate, recipe.momentum, recipe.nesterov, recipe.weight_decay)


def _record(step: Step) -> torch.cuda.CUDAGraph | None:
    """A step as a CUDA graph; recording it trains on nothing. None, with a warning: it cannot be recorded."""
    try:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            step()
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        warnings.warn(f"steps are launched one by one, as recording one failed: {reason}", stacklevel=2)
        return None
    return graph
