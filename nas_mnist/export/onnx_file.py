"""A folded network as ONNX, in float32 or quantised to int8 by onnxruntime."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.layers import IMAGE
from .folded import ACTIVATE, FoldedNetwork
from .quantise import CALIBRATION_IMAGES, sample

OPSET = 20  # the first with Gelu


def to_onnx(network: FoldedNetwork, metadata: dict[str, str], copies: bool = False) -> bytes:
    """An ONNX model: input ``pixels`` (N, C, H, W) float32 from 0 to 255, output ``scores`` (N, classes).

    Repeats share a weight and have a scale and a bias each, or with ``copies`` weights of their own.
    """
    from onnx.helper import set_model_props

    example = torch.zeros(2, *network.architecture.input_shape)
    with warnings.catch_warnings(action="ignore"):  # the exporter warns of its own code
        exported = torch.onnx.export(
            _Plain(network, copies).eval(),
            (example,),
            dynamic_shapes=({0: torch.export.Dim("images")},),
            input_names=["pixels"],
            output_names=["scores"],
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
        )
    assert exported is not None
    model = exported.model_proto
    model.doc_string = f"A network for images of {network.data}, by nas_mnist"
    set_model_props(model, metadata)
    return bytes(model.SerializeToString())


class _Plain(nn.Module):
    """A folded network without products of parameters: what the file will contain."""

    def __init__(self, network: FoldedNetwork, copies: bool) -> None:
        super().__init__()
        self.network = [network]  # no submodule: its parameters are no part of the file
        self.weights, self.vectors = nn.ParameterDict(), nn.ParameterDict()
        for number in network.convolutions:
            own, weight = network.of(number), network.weight(number).detach()
            self.vectors[f"bias{number}"] = own.bias.detach()
            if network.is_shared(number) and not copies:
                self.weights[f"shared{network.owners[number]}"] = weight
                if is_scaled(network, number):
                    self.vectors[f"scale{number}"] = own.scale.detach().view(-1, 1, 1)
            else:
                self.weights[f"own{number}"] = weight * own.scale.detach().view(-1, 1, 1, 1)
            if own.after_scale is not None and own.after_bias is not None:
                self.weights[f"after{number}"] = own.after_scale.detach().view(-1, 1, 1, 1)
                self.vectors[f"after{number}"] = own.after_bias.detach()

    def forward(self, pixels: Tensor) -> Tensor:
        (network,) = self.network
        made = {IMAGE: (pixels - network.normalizer.mean) / network.normalizer.std}
        for number, call in enumerate(network.calls):
            made[number] = self._run(network, number, made)
            if call.averaged:
                return made[number].mean((2, 3))
        raise AssertionError("unreachable")

    def _run(self, network: FoldedNetwork, number: int, made: dict[int, Tensor]) -> Tensor:
        call = network.calls[number]
        layer = call.layer
        if layer.kind != "Conv2d":
            return network.run(number, made)[-1]
        bias = self.vectors[f"bias{number}"]
        if f"own{number}" in self.weights:
            weight = self.weights[f"own{number}"]
            maps = F.conv2d(made[call.source], weight, bias, layer.stride, layer.padding, groups=layer.groups)
        else:
            weight = self.weights[f"shared{network.owners[number]}"]
            scale = self.vectors.get(f"scale{number}")
            own = bias if scale is None else None
            maps = F.conv2d(made[call.source], weight, own, layer.stride, layer.padding, groups=layer.groups)
            maps = maps if scale is None else maps * scale + bias.view(-1, 1, 1)
        maps = ACTIVATE[call.activation](maps)
        if f"after{number}" in self.weights:  # one multiply-add a value: a 1x1 convolution of every channel
            weight = self.weights[f"after{number}"]
            maps = F.conv2d(maps, weight, self.vectors[f"after{number}"], groups=maps.shape[1])
        maps = maps if call.other is None else maps + made[call.other]
        return ACTIVATE[call.last_activation](maps)


def is_scaled(network: FoldedNetwork, number: int) -> bool:
    """Whether a convolution shares its weights, and a normalisation scales its output."""
    return network.is_shared(number) and not bool((network.of(number).scale == 1).all())


@contextlib.contextmanager
def _no_advice() -> Iterator[None]:
    """Without onnxruntime's advice to simplify the model before: there is nothing to simplify."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def to_int8_onnx(network: FoldedNetwork, metadata: dict[str, str], images: Tensor) -> bytes:
    """The ONNX model by onnxruntime's static quantiser: int8 weights, one scale a channel.

    Calibrated on some of ``images`` (N, C, H, W) uint8. Repeats have copies of their weights. The sums of a
    convolution are rounded behind its activation: 8 bits before it cost small networks their accuracy.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory() as folder:
        floats, integers = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        floats.write_bytes(to_onnx(network, metadata, copies=True))
        options: dict[str, Any] = {
            "ActivationSymmetric": False,
            "WeightSymmetric": True,
            "OpTypesToExcludeOutputQuantization": ["Conv"],
        }
        with _no_advice():
            quantize_static(
                floats,
                integers,
                _Images(sample(images, CALIBRATION_IMAGES)),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                op_types_to_quantize=["Conv", "MaxPool", "AveragePool", "Add"],
                extra_options=options,
            )
        model = onnx.load(integers)
    return bytes(model.SerializeToString())


class _Images:
    """Batches of calibration images, as onnxruntime asks for them."""

    def __init__(self, images: Tensor) -> None:
        self.batches = iter(images.float().split(64))

    def get_next(self) -> dict[str, Any] | None:
        """The next batch; None at the end."""
        batch = next(self.batches, None)
        return None if batch is None else {"pixels": batch.numpy()}
