"""A trained network with its preprocessing, as a safetensors file and back; nothing in a file is executed.

The file's metadata has one entry, ``classifier``. It is JSON with the ``architecture``, the ``mean`` and the
``std`` of the training images' bytes, the name of their ``data`` set (default ``mnist``), and for classes
with names of their own the ``classes``. One entry, because safetensors writes several entries in a random
order.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..core.defaults import OWN_KINDS
from ..core.errors import InputError, explain
from ..core.fileio import MAX_TEXT_BYTES
from ..data.arrays import MAX_CLASSES, MAX_NAME
from ..data.class_names import class_names
from ..data.normalize import Normalizer
from ..models.architecture import Architecture
from ..models.blocks import BLOCK_KINDS
from ..models.cost import cost_of
from ..models.network import Network

MAX_FILE_BYTES = 1 << 28  # 256 MiB


@dataclass(frozen=True)
class Classifier:
    """Images in, probabilities out."""

    model: Network  # on the CPU
    normalizer: Normalizer
    data: str = "mnist"  # the data set of its training, as `data.dataset.load` takes it, up to a colon
    own_names: tuple[str, ...] = ()  # of the classes, where the data set has names of its own

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name for each class."""
        return self.own_names or class_names(self.data, self.model.architecture.classes)

    @property
    def data_title(self) -> str:
        """The data set of its training, for people."""
        return "its training data" if self.data in OWN_KINDS else self.data

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Probabilities (N, classes) float32 of uint8 images (N, C, H, W), 0 to 255."""
        self.model.eval()
        scores: Tensor = self.model(self.normalizer(images))
        return scores.softmax(1)

    def to_bytes(self) -> bytes:
        """The safetensors file."""
        tensors = {name: tensor.contiguous() for name, tensor in self.model.unique_tensors().items()}
        architecture = self.model.architecture.model_dump(mode="json")
        normalizer = {"mean": self.normalizer.mean, "std": self.normalizer.std}
        about = {"architecture": architecture, **normalizer, "data": self.data}
        about |= {"classes": self.own_names} if self.own_names else {}
        return save(tensors, {"classifier": json.dumps(about)})

    @classmethod
    def load(cls, path: Path) -> Classifier:
        """A classifier from a safetensors file; raises `InputError` for any other file."""
        if not path.is_file():
            raise InputError(f"weights: {path} does not exist, or is no file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"weights: {path} is larger than {MAX_FILE_BYTES:,} bytes")
        try:
            with safe_open(path, "pt") as file:
                about = _read_about((file.metadata() or {}).get("classifier", ""))
                if about.classes and len(about.classes) != about.architecture.classes:
                    raise InputError(f"{len(about.classes)} names for {about.architecture.classes} classes")
                if (wanted := 4 * cost_of(about.architecture).params) > path.stat().st_size:
                    raise InputError(f"weights: fewer bytes than the {wanted:,} of this architecture")
                model = Network(about.architecture)
                _load_tensors(model, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"weights: {path} is not a safetensors file ({reason})") from None
        except InputError as error:
            raise InputError(f"weights: {path}: {str(error).removeprefix('weights: ')}") from None
        return cls(model.eval(), Normalizer(about.mean, about.std), about.data, about.classes)


class WithPreprocessing(nn.Module):
    """A classifier as one module: pixels (N, C, H, W) from 0 to 255, of any dtype, to class scores."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.network, self.normalizer = classifier.model, classifier.normalizer

    def forward(self, pixels: Tensor) -> Tensor:
        """Class scores (N, classes) float32."""
        scores: Tensor = self.network(self.normalizer(pixels))
        return scores


class _About(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    architecture: Architecture
    mean: float
    std: float = Field(gt=0)
    data: str = Field("mnist", max_length=4096)
    classes: tuple[Annotated[str, Field(max_length=MAX_NAME)], ...] = Field((), max_length=MAX_CLASSES)


def _read_about(text: str) -> _About:
    if len(text) > MAX_TEXT_BYTES:
        raise InputError(f"metadata 'classifier' is larger than {MAX_TEXT_BYTES:,} bytes")
    try:
        return _About.model_validate_json(text)
    except ValidationError as error:
        raise InputError(f"metadata 'classifier': {explain(error, _About, BLOCK_KINDS)}") from None


def _load_tensors(model: Network, tensors: dict[str, Tensor]) -> None:
    wanted = model.unique_tensors()
    if set(tensors) != set(wanted):
        name = min(set(tensors) ^ set(wanted))
        raise InputError(f"{name!r} is {'not expected' if name in tensors else 'missing'}")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape or tensor.dtype != wanted[name].dtype:
            got, use = (f"{t.dtype} {list(t.shape)}" for t in (tensor, wanted[name]))
            raise InputError(f"{name!r} is {got} (use {use})")
    model.load_state_dict(tensors, strict=False)  # a repeated block has two names
