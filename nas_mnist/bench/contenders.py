"""Ways to train one network that the benchmark compares: each is a function that trains for one turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from ..data.dataset import Images
from ..engine.maps import Maps
from ..engine.operations import Convolution
from ..engine.threads import own_threads, run
from ..engine.vectors import LANES, Program
from ..models.architecture import Architecture
from ..models.layers import Layer
from ..models.network import Network, build
from ..recipes.recipe import Recipe, load_recipe
from ..training.evaluate import Normalizer
from ..training.loop import train

BATCH = 64  # images a step, as in the published log, for every contender
Contender = Callable[[], float]  # one turn: images a second


class _Pictures(Dataset[tuple[Tensor, int]]):
    """What torchvision's MNIST class does: a picture through transforms, one at a time."""

    def __init__(self, data: Images, normalize: Normalizer) -> None:
        self.pixels = data.images[:, 0].cpu()
        self.labels = data.labels.tolist()
        self.transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize((normalize.mean / 255,), (normalize.std / 255,))]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index].numpy())), self.labels[index]


class PlainLoop:
    """A tutorial's loop; ``half``: in bfloat16, and in the layout that is made for it."""

    def __init__(
        self, architecture: Architecture, device: torch.device, seed: int = 0, half: bool = False
    ) -> None:
        self.half, self.device = half, device
        self.form = torch.channels_last if half else torch.contiguous_format
        self.model = build(architecture, seed).to(device).to(memory_format=self.form)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)

    def epoch(self, batches: Any) -> float:
        """Train once on all batches; images a second."""
        self.model.train()
        started, count = time.perf_counter(), 0
        for batch in batches:
            images, labels = (part.to(self.device) for part in batch)
            self.optimizer.zero_grad()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                scores = self.model(images.to(memory_format=self.form))
            loss = F.nll_loss(F.log_softmax(scores.float(), dim=1), labels)
            loss.backward()
            self.optimizer.step()
            loss.item()  # for the progress bar
            count += len(labels)
        return count / (time.perf_counter() - started)


def plain(
    trained: dict[str, Network],
    name: str,
    architecture: Architecture,
    batches: Any,
    device: torch.device,
    half: bool = False,
) -> float:
    """One epoch of such a loop."""
    loop = PlainLoop(architecture, device, half=half)
    trained[name] = loop.model
    return loop.epoch(batches)


def loaded(data: Images, normalize: Normalizer) -> DataLoader[tuple[Tensor, int]]:
    return DataLoader(_Pictures(data, normalize), BATCH, shuffle=True)


def in_memory(data: Images, normalize: Normalizer) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(data), device=data.images.device)
    for picked in order.split(BATCH):
        yield normalize(data.images[picked]), data.labels[picked]


def ours(
    trained: dict[str, Network], architecture: Architecture, data: Images, augmented: bool = False
) -> float:
    """The last of `epochs_on` epochs; the plain loops do not augment."""
    recipe = load_recipe("seed").with_epochs(epochs_on(data.images.device))
    recipe = Recipe.model_validate({**recipe.model_dump(), "batch_size": BATCH})
    if augmented:
        recipe = recipe.model_copy(update={"augmentation": load_recipe("default").augmentation})
    model = trained["ours"] = build(architecture, 0).to(data.images.device)
    *_, epoch = train(model, data, recipe, seed=0)
    return epoch.images / epoch.seconds


def epochs_on(device: torch.device) -> int:
    """How many epochs a turn has, of which the last is timed: on CUDA the first one records the step."""
    return 2 if device.type == "cuda" else 1


def convolutions(architecture: Architecture, device: torch.device, half: bool = False) -> Contender:
    """The sum of every convolution's fastest forward and backward pass on one batch, torch's or ours.

    In float32, as our engine; ``half``: also in bfloat16.
    """
    runs = []
    kinds = {torch.float32} | ({torch.bfloat16} if half else set())
    for position, layer in enumerate(architecture.layers):
        if layer.kind != "Conv2d":
            continue
        variants = [
            _one_convolution(layer, position > 0, device, layout, kind)
            for layout in (torch.contiguous_format, torch.channels_last)
            for kind in kinds
        ]
        if device.type == "cpu":
            variants.append(_own_convolution(layer, position > 0))
        runs.append(min(variants, key=lambda variant: min(variant() for _ in range(4))))
    return lambda: BATCH / sum(statistics.median(once() for _ in range(10)) for once in runs)


def _own_convolution(layer: Layer, needs_gradient: bool) -> Callable[[], float]:
    """The same with the kernels of `engine`."""
    kind, groups, count = np.dtype(np.float32), -(-BATCH // LANES), torch.get_num_threads()
    module = nn.Conv2d(
        *(layer.in_shape[0], layer.out_shape[0], layer.kernel, layer.stride, layer.padding),
        groups=layer.groups, bias=layer.bias,
    )  # fmt: skip
    convolution = Convolution(layer, module, kind, count)
    source = Maps(layer.in_shape, kind, groups, layer.padding, (layer.padding, layer.padding))
    target = Maps(layer.out_shape, kind, groups)
    memory = [(convolution.place_for_gradient(), Maps(layer.in_shape, kind)) for _ in range(count)]
    forward = [Program([convolution.forward(source, target)], source, target)] * count
    backward = [
        Program(
            convolution.weight_gradient(source, gradient, thread)
            + [convolution.backward(gradient, into)] * needs_gradient,
            *(source, gradient, into),
        )
        for thread, (gradient, into) in enumerate(memory)
    ]

    taking = Program(convolution.taken(), convolution)

    def once() -> float:
        taking.run()
        started = time.perf_counter()
        with own_threads():
            run(forward, groups, memory)
            run(backward, groups, memory)
        return time.perf_counter() - started

    return once


def _one_convolution(
    layer: Layer, needs_gradient: bool, device: torch.device, layout: torch.memory_format, kind: torch.dtype
) -> Callable[[], float]:
    """A function that runs one convolution forward and backward and says how many seconds that took."""
    convolution = nn.Conv2d(
        layer.in_shape[0], layer.out_shape[0], layer.kernel, layer.stride, layer.padding,
        groups=layer.groups, bias=layer.bias, device=device, dtype=kind,
    ).to(memory_format=layout)  # fmt: skip
    maps = torch.randn(BATCH, *layer.in_shape, device=device, dtype=kind).contiguous(memory_format=layout)
    maps.requires_grad_(needs_gradient)
    gradient = torch.randn(BATCH, *layer.out_shape, device=device, dtype=kind).contiguous(
        memory_format=layout
    )

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def once() -> float:
        convolution.zero_grad()
        maps.grad = None
        wait()
        started = time.perf_counter()
        torch.autograd.backward(convolution(maps), gradient)
        wait()
        return time.perf_counter() - started

    return once
