"""The stratified split: positions of images to keep and to hold out."""

from __future__ import annotations

import torch
from torch import Tensor

SPLIT_SEED = 0
HELD_OUT = 6  # one training image in six validates: 10,000 of MNIST's 60,000


def stratified(labels: Tensor, held_out: int, seed: int = SPLIT_SEED) -> tuple[Tensor, Tensor]:
    """Positions (kept, held out), each sorted, with the classes' shares as equal as whole images allow.

    ``labels`` is (N,) int64; the result depends on the labels and the seed alone. The only image of a class
    is kept, as long as there are others.
    """
    labels = labels.cpu()
    counts = torch.bincount(labels)  # (classes,)
    exact = counts * held_out / len(labels)
    quota = exact.floor().long()
    missing = held_out - int(quota.sum())
    rest = torch.where(counts == 1, exact - quota - 1, exact - quota)
    quota[torch.argsort(rest, descending=True, stable=True)[:missing]] += 1
    generator = torch.Generator().manual_seed(seed)
    is_held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label, wanted in enumerate(quota.tolist()):
        members = torch.nonzero(labels == label).flatten()
        is_held_out[members[torch.randperm(len(members), generator=generator)[:wanted]]] = True
    return torch.nonzero(~is_held_out).flatten(), torch.nonzero(is_held_out).flatten()
