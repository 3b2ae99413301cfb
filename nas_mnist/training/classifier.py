"""A trained network with its preprocessing, as a safetensors file and back. No pickle, no code from files.

The file's metadata has one entry, ``classifier``: JSON with the ``architecture``, with the mean and the
standard deviation of the training images' bytes as ``mean`` and ``std``, and with the name of their ``data``
set (``mnist`` where it is not said). (One, because the order of several
entries would differ from one writing to the next.)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..core.errors import InputError, explain
from ..models.architecture import MAX_JSON_BYTES, Architecture
from ..models.cost import cost_of
from ..models.network import Network
from .evaluate import Normalizer

MAX_FILE_BYTES = 1 << 28  # 256 MiB, far above any network that fits `Architecture`'s exercise


@dataclass(frozen=True)
class Classifier:
    """Images in, probabilities out."""

    model: Network  # on the CPU
    normalizer: Normalizer
    data: str = "mnist"  # the data set that it was trained on: what `data.load` takes, up to a colon

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Probabilities (N, classes) float32 of uint8 images (N, C, H, W), 0 to 255."""
        self.model.eval()
        scores: Tensor = self.model(self.normalizer(images))
        return scores.softmax(1)

    def to_bytes(self) -> bytes:
        """The safetensors file."""
        tensors = {name: tensor.contiguous() for name, tensor in self.model.numbers().items()}
        architecture = self.model.architecture.model_dump(mode="json")
        normalizer = {"mean": self.normalizer.mean, "std": self.normalizer.std}
        about = {"architecture": architecture, **normalizer, "data": self.data}
        return save(tensors, {"classifier": json.dumps(about)})

    @classmethod
    def load(cls, path: Path) -> Classifier:
        """From a safetensors file; raises `InputError` where it does not hold such a network."""
        if not path.is_file():
            raise InputError(f"weights: {path} does not exist, or is no file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"weights: {path} is larger than {MAX_FILE_BYTES:,} bytes")
        try:
            with safe_open(path, "pt") as file:
                about = _read_about((file.metadata() or {}).get("classifier", ""))
                if (wanted := 4 * cost_of(about.architecture).params) > path.stat().st_size:
                    raise InputError(f"weights: fewer bytes than the {wanted:,} of this architecture")
                model = Network(about.architecture)
                _fill(model, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"weights: {path} is not a safetensors file ({reason})") from None
        except InputError as error:
            raise InputError(f"weights: {path}: {str(error).removeprefix('weights: ')}") from None
        return cls(model.eval(), Normalizer(about.mean, about.std), about.data)


class WithPreprocessing(nn.Module):
    """A classifier as one module: pixels (N, C, H, W) from 0 to 255, of any number type, to class scores."""

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


def _read_about(text: str) -> _About:
    if len(text) > MAX_JSON_BYTES:
        raise InputError(f"metadata 'classifier' is larger than {MAX_JSON_BYTES:,} bytes")
    try:
        return _About.model_validate_json(text)
    except ValidationError as error:
        raise InputError(f"metadata 'classifier': {explain(error)}") from None


def _fill(model: Network, tensors: dict[str, Tensor]) -> None:
    wanted = model.numbers()
    if set(tensors) != set(wanted):
        name = min(set(tensors) ^ set(wanted))
        raise InputError(f"{name!r} is {'not expected' if name in tensors else 'missing'}")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape or tensor.dtype != wanted[name].dtype:
            got, use = (f"{t.dtype} {list(t.shape)}" for t in (tensor, wanted[name]))
            raise InputError(f"{name!r} is {got} (use {use})")
    model.load_state_dict(tensors, strict=False)  # a repeated block has two names
