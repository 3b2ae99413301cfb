"""One training step: gather, augment, normalise, forward, backward, optimise, average.

Everything that changes from step to step is a tensor on the device, in a place that stays: the number of
steps done, the order of the images, the learning rates. So a step waits for nothing, and CUDA can record
one step and replay it (pytorch.org/docs/stable/notes/cuda.html#cuda-graphs): for a network this small,
launching a step's few hundred kernels one by one takes longer than running them.
"""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .augment import draw, warp
from .data import Images
from .device import layout, number_type
from .fused import lending
from .model import Network
from .muon import Muon
from .recipe import Distillation, Recipe
from .scoring import Normalizer, forward_on
from .warp import Warp

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
        self.forward = model if plain else forward_on(model, device)
        self.kind = torch.float32 if plain else number_type(device)
        self.lessons = None if teacher is None else Lessons(teacher, recipe.distillation, plain)
        self.normalize = Normalizer.of(data.images)
        compiled = device.type == "cpu" and not plain and not recipe.augmentation.off
        self.warp = Warp(data.images, self.normalize) if compiled else None
        self.done = torch.zeros(1, dtype=torch.long, device=device)  # steps
        shape = (model.copies, self.steps * recipe.batch_size)
        self.order = torch.zeros(shape, dtype=torch.long, device=device)  # of images, by copy
        self.places = torch.arange(recipe.batch_size, device=device)
        self.rate = torch.zeros((), device=device)
        self.rates = torch.tensor(learning_rates(recipe, self.steps), device=device)
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

    @property
    def result(self) -> Network:
        """The network that is scored: the average where the recipe keeps one."""
        return self.model if self.average is None else self.average

    def begin_epoch(self) -> None:
        """Put the images in a new order, and begin to sum the loss anew."""
        self.loss.zero_()
        for order, generator in zip(self.order, self.generators, strict=True):
            shuffled = torch.randperm(len(self.data), generator=generator, device=order.device)
            order.copy_(shuffled[: len(order)])

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
        recipe = self.recipe
        picked = self.order[:, self.done % self.steps * recipe.batch_size + self.places].flatten()
        images, form = self._images(picked), layout(self.done.device)
        beside = images.unflatten(0, (self.model.copies, -1)).transpose(0, 1).flatten(1, 2)
        scores = self.forward(beside.to(self.kind, memory_format=form))
        scores = scores.unflatten(1, (self.model.copies, -1)).transpose(0, 1).flatten(0, 1)
        labels = self.data.labels[picked]  # (copies * B,), as the scores (copies * B, classes)
        losses = F.cross_entropy(scores, labels, label_smoothing=recipe.label_smoothing, reduction="none")
        if self.lessons is not None:
            losses = self.lessons(losses, scores, images.to(self.kind, memory_format=form))
        loss = losses.view(self.model.copies, -1).mean(1)
        self.numbers.forget_gradients()
        loss.sum().backward()
        self.numbers.collect_gradients()
        self.rate.copy_(self.rates.index_select(0, self.done)[0])  # an index of no dimension would be read
        self.optimizer.step()
        self.loss += loss.detach()
        if self.average is not None:
            self.averaged.lerp_(self.numbers.all, self.shares.index_select(0, self.done)[0])
        self.done += 1

    def _images(self, picked: Tensor) -> Tensor:
        """The images at these positions, augmented and normalised: (N, C, H, W) float32."""
        if self.recipe.augmentation.off:
            return self.normalize(self.data.images[picked])
        size = self.data.images.shape[2:]
        maps = draw(self.recipe.augmentation, len(picked), size, picked.device, *self.generators)
        if self.warp is not None:
            return self.warp(picked, maps)
        return self.normalize(warp(self.data.images[picked].float(), maps))


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
            wanted = (self.forward(images).float() / temperature).softmax(1)
        taught = F.cross_entropy(scores / temperature, wanted, reduction="none") * temperature**2
        return losses.lerp(taught, share)


class Numbers:
    """All weights and statistics of a network in one piece of memory, for few operations on all of them."""

    def __init__(self, model: Network) -> None:
        """Moves them there."""
        self.parameters = sorted(model.parameters(), key=lambda one: one.dim() == 1)
        statistics = [one for one in model.buffers() if one.is_floating_point()]
        moved = [*self.parameters, *statistics]
        self.all = torch.cat([_flat(one.detach()) for one in moved])
        ends = list(itertools.accumulate(one.numel() for one in moved))
        for one, end in zip(moved, ends, strict=True):
            one.data = self.all.as_strided(one.shape, one.stride(), end - one.numel())
        count = ends[len(self.parameters) - 1]
        weights = sum(one.numel() for one in self.parameters if one.dim() > 1)
        self.gradient = torch.zeros_like(self.all[:count])
        # Of convolutions, and the others: biases, and factors and shifts of normalisations.
        self.weights, self.others = self.all[:weights], self.all[weights:count]
        # The weights' shapes as matrices, an output map a row; copies side by side have one each.
        self.matrices = [
            (len(one) // model.copies, one[0].numel())
            for one in self.parameters
            if one.dim() > 1
            for _ in range(model.copies)
        ]
        self.weights.grad, self.others.grad = self.gradient[:weights], self.gradient[weights:]

    def forget_gradients(self) -> None:
        """Before a way back."""
        for one in self.parameters:
            one.grad = None

    def collect_gradients(self) -> None:
        """After a way back: from the parameters to ``weights`` and ``others``."""
        gradients = [_flat(one.grad) for one in self.parameters if one.grad is not None]
        torch.cat(gradients, out=self.gradient)


def _flat(tensor: Tensor) -> Tensor:
    """A tensor's numbers as they lie in memory, without gaps."""
    return tensor.as_strided((tensor.numel(),), (1,))


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


def _optimizer(numbers: Numbers, recipe: Recipe, rate: Tensor) -> torch.optim.Optimizer | Muon:
    """Weight decay applies to convolution weights, not to biases and normalisation."""
    if recipe.optimizer == "muon":
        how = recipe.momentum, recipe.nesterov, recipe.weight_decay
        return Muon(numbers.weights, numbers.others, numbers.matrices, rate, *how)
    groups = [
        {"params": [numbers.weights], "weight_decay": recipe.weight_decay},
        {"params": [numbers.others], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        betas, recorded = (recipe.momentum, 0.999), rate.device.type == "cuda"
        return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True, capturable=recorded)
    return torch.optim.SGD(groups, lr=rate, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True)


def _record(step: Step) -> torch.cuda.CUDAGraph | None:
    """A step as a CUDA graph; recording it trains on nothing. None, with a warning: it cannot be recorded."""
    try:
        graph = torch.cuda.CUDAGraph()
        for generator in step.generators:
            graph.register_generator_state(generator)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            step()
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        warnings.warn(f"steps are launched one by one, as recording one failed: {reason}", stacklevel=2)
        return None
    return graph
