"""Who computes a network: the protocol of a backend, and the one place that chooses among them.

A backend is our kernels for a CPU (`cpu`), our kernels for CUDA (`cuda`), or torch's modules
(`torch_backend`). Modules that need llvmlite are imported only here, when a backend with kernels is made.
"""

from __future__ import annotations

import contextlib
import os
from contextlib import AbstractContextManager
from functools import cache
from typing import Protocol, get_args

import torch
from torch import Tensor

from ..core.defaults import Engine
from ..core.errors import InputError, choices
from ..data.dataset import Images
from ..data.normalize import Normalizer
from ..models.network import Network
from ..recipes.recipe import Recipe
from .batches import Batches
from .flat_parameters import FlatParameters
from .sgd import StepTables
from .torch_backend import TorchBackend

ENGINES: tuple[Engine, ...] = get_args(Engine)
ENGINE_VARIABLE = "NAS_MNIST_ENGINE"  # of the environment: the engine where none is named


class Optimizer(Protocol):
    """Takes the steps of a training."""

    def step(self) -> None:
        """Move the parameters along their gradient, then their EMA; the gradient is used up."""


class Trainer(Protocol):
    """Forward and backward passes of one training, and SGD."""

    map_shape: tuple[int, int]  # rows and columns of a prepared map

    def prepare_maps(self, maps: Tensor) -> Tensor:
        """Affine maps (N, 2, 3) in the form (N, rows, columns) that `Batches` hold."""

    def losses(self, batches: Batches, step: Tensor) -> Tensor:
        """Mean losses (copies,) of a batch: picked, augmented, normalised, forward and backward.

        ``step`` (1,) int64 is the position of the batch in the epoch. The gradient is left in the flat
        parameters of this training.
        """

    def sgd(self, recipe: Recipe, tables: StepTables, ema: Tensor | None) -> Optimizer:
        """The optimiser for the recipe's SGD; ``ema``: the averaged parameters, where it keeps some."""


class Backend(Protocol):
    """Computes one network, or several of one architecture side by side, on one device."""

    max_batch: int  # images of a forward pass in evaluation, at most
    evaluates_together: bool  # whether networks side by side are evaluated at once
    recordable: bool  # whether a step may be recorded as a CUDA graph

    def reserve_threads(self) -> AbstractContextManager[None]:
        """While it is open, torch's threads belong to the backend's kernels, where it has some."""

    def scores(self, images: Tensor) -> Tensor:
        """Class scores (copies, N, classes) of normalised images (N, C, H, W), in evaluation mode."""

    def trainer(
        self, parameters: FlatParameters, data: Images, normalize: Normalizer, recipe: Recipe
    ) -> Trainer:
        """The passes of a training on ``data``; their gradients go to ``parameters``."""


def create_backend(network: Network, device: torch.device, engine: Engine | None = None) -> Backend:
    """The backend that computes a network on a device.

    It shares the network's parameters. ``engine`` None: as the environment says, else ``auto``. With ``auto``
    that is our kernels, or torch's modules where there are none: on MPS, for a layer without kernels, or
    without llvmlite. Raises `InputError` for an unknown engine.
    """
    chosen, _ = resolve_engine(engine, device)
    kernels = {"cpu": _on_cpu, "cuda": _on_cuda}
    if chosen == "torch" or device.type not in kernels:
        return TorchBackend(network, device)
    return kernels[device.type](network, device)


def resolve_engine(engine: str | None, device: torch.device) -> tuple[Engine, str]:
    """The engine to use on a device, and one line for people where that is not the one asked for, else "".

    Raises `InputError` for an unknown one, as an argument or in the environment.
    """
    named = ENGINE_VARIABLE if engine is None else "engine"
    asked = (os.environ.get(ENGINE_VARIABLE) or "auto") if engine is None else engine
    chosen = next((known for known in ENGINES if known == asked), None)
    if chosen is None:
        raise InputError(f"{named}: {asked!r} is not known {choices(asked, ENGINES)}")
    if chosen == "auto" and device.type in ("cpu", "cuda") and (reason := _llvmlite_error()):
        return "torch", f"llvmlite cannot be loaded ({reason}): torch's modules train, which is slower"
    return chosen, ""


@cache
def _llvmlite_error() -> str:
    """Why llvmlite, which compiles kernels, cannot be imported; "" where it can."""
    try:
        from llvmlite import binding

        binding.initialize_native_target()  # loads the library
    except Exception as error:  # a broken installation may raise anything
        return " ".join(f"{type(error).__name__}: {error}".split())[:120]
    return ""


def _on_cpu(network: Network, device: torch.device) -> Backend:
    from .cpu.affine import AffineImages
    from .cpu.backend import CpuBackend
    from .stages import UnsupportedLayerError

    try:
        return CpuBackend(network)
    except UnsupportedLayerError:
        return TorchBackend(network, device, augmented=AffineImages)


def _on_cuda(network: Network, device: torch.device) -> Backend:
    from .cuda.backend import CudaBackend
    from .cuda.launch import runs_on
    from .stages import UnsupportedLayerError

    if runs_on(device):
        with contextlib.suppress(UnsupportedLayerError):
            return CudaBackend(network, device)
    return TorchBackend(network, device, recordable=True)
