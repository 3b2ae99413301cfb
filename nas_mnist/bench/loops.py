"""The training loops that the benchmark compares: two of plain PyTorch, and this program's own."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from ..data.dataset import Images
from ..data.normalize import Normalizer
from ..models.architecture import Architecture
from ..models.network import Network, build
from ..recipes.recipe import load_recipe
from ..training.loop import train

BATCH_SIZE = 64  # images a step in every loop, as in the published log


class TutorialDataset(Dataset[tuple[Tensor, int]]):
    """Items as torchvision's MNIST class makes them: one PIL image at a time, through transforms.

    An item is a normalised float32 image (1, H, W) and its label.
    """

    def __init__(self, data: Images, normalize: Normalizer) -> None:
        self.pixels = data.images[:, 0].cpu()  # (N, H, W) uint8
        self.labels = data.labels.tolist()
        self.transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize((normalize.mean / 255,), (normalize.std / 255,))]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index].numpy())), self.labels[index]


def tutorial_batches(data: Images, normalize: Normalizer) -> DataLoader[tuple[Tensor, int]]:
    """Shuffled batches by a `DataLoader` without worker processes."""
    return DataLoader(TutorialDataset(data, normalize), BATCH_SIZE, shuffle=True)


def memory_batches(data: Images, normalize: Normalizer) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches, indexed from one tensor on the device of ``data``."""
    order = torch.randperm(len(data), device=data.images.device)
    for picked in order.split(BATCH_SIZE):
        yield normalize(data.images[picked]), data.labels[picked]


class TutorialLoop:
    """The training loop of a PyTorch tutorial: SGD, one batch after the other."""

    def __init__(self, architecture: Architecture, device: torch.device, seed: int = 0) -> None:
        self.model, self.device = build(architecture, seed).to(device), device
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)

    def epoch(self, batches: Iterable[tuple[Tensor, Tensor]] | DataLoader[tuple[Tensor, int]]) -> float:
        """Train once on all batches; images a second."""
        self.model.train()
        started, count = time.perf_counter(), 0
        for batch in batches:
            images, labels = (part.to(self.device) for part in batch)
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(images), labels)
            loss.backward()
            self.optimizer.step()
            loss.item()  # tutorials show the loss of every step in a progress bar
            count += len(labels)
        return count / (time.perf_counter() - started)


def train_ours(model: Network, data: Images) -> float:
    """Train by this program for one turn, without augmentation; images a second of the last epoch."""
    epochs = epochs_per_turn(data.images.device)
    recipe = load_recipe(f"published:epochs={epochs},batch_size={BATCH_SIZE}")
    *_, epoch = train(model, data, recipe, seed=0)
    return epoch.images / epoch.seconds


def epochs_per_turn(device: torch.device) -> int:
    """Epochs of a turn, of which the last is timed: on CUDA the first one records the step as a graph."""
    return 2 if device.type == "cuda" else 1
