"""From a network's layers to the stages of a pass.

The outputs of convolutions and sums are stored, before normalisation (`FeatureMapSpec`). The layers between
two convolutions (`Epilogue`) are computed again by every reader. On a CPU they are never stored, and a
depthwise convolution that the next one reads directly is not stored either: a separable block is one stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import nn

from ..models.layers import IMAGE, Layer, Shape
from ..models.network import Network
from .kernels.epilogue import AVERAGE_POOL, GATES, IDENTITY, MAX_POOL, NO_POOL, Epilogue

_POOLS: dict[str, int] = {"MaxPool2d": MAX_POOL, "AvgPool2d": AVERAGE_POOL}
MAX_CONVOLUTIONS = 2  # of a stage; a depthwise one is cheap enough to be computed again in the backward pass


@dataclass(eq=False)
class FeatureMapSpec:
    """Maps that are stored, and the layers until their next reader."""

    shape: Shape
    epilogue: Epilogue = IDENTITY
    norm: nn.BatchNorm2d | None = None
    dropout: nn.Dropout2d | None = None

    @property
    def read_shape(self) -> Shape:
        """The shape after the epilogue."""
        channels, height, width = self.shape
        return (channels, height // 2, width // 2) if self.epilogue.pool else self.shape


@dataclass(eq=False)
class Stage:
    """Convolutions one after the other, or, without convolutions, the sum of the sources."""

    sources: list[FeatureMapSpec]
    target: FeatureMapSpec
    convolutions: list[tuple[Layer, nn.Conv2d]] = field(default_factory=list)


class Head(NamedTuple):
    """The last convolution, which makes the class scores."""

    layer: Layer
    convolution: nn.Conv2d
    normalised: bool  # with a normalisation of the scores

    @property
    def averages_first(self) -> bool:
        """Whether the mean of every map is enough: the mean of a 1x1 convolution is that of the mean."""
        return self.convolution.kernel_size == (1, 1) and not self.normalised


class BackbonePlan(NamedTuple):
    """A network as stages and a head."""

    image: FeatureMapSpec
    stages: Sequence[Stage]  # in the order in which they run
    last: FeatureMapSpec  # the input of the head
    head: Head


class UnsupportedLayerError(Exception):
    """A layer for which there are no kernels."""


def plan_of(network: Network, fused: bool = True) -> BackbonePlan:
    """The plan of a network's pass.

    ``fused``: stages of up to `MAX_CONVOLUTIONS`, for one network; else of one convolution each, also for
    several networks side by side. Raises `UnsupportedLayerError` for a layer without kernels.
    """
    return _Planner(network, fused).plan()


class _Planner:
    def __init__(self, network: Network, fused: bool) -> None:
        self.network, self.layers = network, network.architecture.layers
        self.most = MAX_CONVOLUTIONS if fused else 1
        if fused and network.copies > 1:
            raise UnsupportedLayerError("several networks side by side")
        self.image = FeatureMapSpec(network.architecture.input_shape)
        self.stages: list[Stage] = []
        self.at: dict[int, FeatureMapSpec] = {IMAGE: self.image}  # by the index of the layer
        self.open: dict[int, Stage] = {}  # stages that the next convolution may still join

    def plan(self) -> BackbonePlan:
        for index in range(self.network.head_starts):
            layer, module = self.layers[index], self.network.layers[index]
            if isinstance(module, nn.Conv2d):
                self._convolution(index, layer, module)
            elif layer.kind == "Add":
                self.at[index] = self._sum([self.at[source] for source in layer.inputs], layer.out_shape)
            else:
                self._elementwise(index, layer, module)
        last = self.at[self.network.head_starts - 1]
        return BackbonePlan(self.image, self.stages, last, self._head())

    def _head(self) -> Head:
        start = self.network.head_starts
        head = list(zip(self.layers[start:], list(self.network.layers)[start:], strict=True))
        ((layer, convolution),) = [(one, module) for one, module in head if isinstance(module, nn.Conv2d)]
        return Head(layer, convolution, any(isinstance(module, nn.BatchNorm2d) for _, module in head))

    def _convolution(self, index: int, layer: Layer, module: nn.Conv2d) -> None:
        (source,) = layer.inputs
        depthwise = layer.groups > 1 and layer.groups == layer.in_shape[0] == layer.out_shape[0]
        if layer.groups > 1 and not depthwise:
            raise UnsupportedLayerError(layer.kind)
        stage = None if self.network.is_kept(source) else self.open.get(source)
        if stage is None:
            stage = Stage([self.at[source]], FeatureMapSpec(layer.out_shape))
            self.stages.append(stage)
        stage.convolutions.append((layer, module))
        stage.target.shape = layer.out_shape
        self.at[index] = stage.target
        if depthwise and len(stage.convolutions) < self.most:
            self.open[index] = stage

    def _sum(self, sources: list[FeatureMapSpec], shape: Shape) -> FeatureMapSpec:
        target = FeatureMapSpec(shape)
        self.stages.append(Stage(sources, target))
        return target

    def _elementwise(self, index: int, layer: Layer, module: nn.Module) -> None:
        (source,) = layer.inputs
        spec, epilogue = self.at[source], None
        if not self.network.is_kept(source) and spec is not self.image:
            epilogue = _extended(spec.epilogue, layer)
        if epilogue is None:
            spec = self._sum([spec], layer.in_shape)
            epilogue = _extended(spec.epilogue, layer)
        if epilogue is None:
            raise UnsupportedLayerError(layer.kind)
        spec.epilogue = epilogue
        if isinstance(module, nn.BatchNorm2d):
            spec.norm = module
        if isinstance(module, nn.Dropout2d):
            spec.dropout = module
        self.at[index] = spec


def _extended(epilogue: Epilogue, layer: Layer) -> Epilogue | None:
    """An epilogue with one more layer; None if the layer cannot be its end."""
    free = not epilogue.dropout and not epilogue.pool
    if layer.kind == "BatchNorm2d" and free and not epilogue.norm:
        return replace(epilogue, norm=True, norm_after=epilogue.activation is not None)
    if layer.kind in GATES and free and epilogue.activation is None:
        return replace(epilogue, activation=layer.kind)
    if layer.kind == "Dropout2d" and free:
        return replace(epilogue, dropout=True)
    halves = layer.kernel == (2, 2) and layer.stride == 2
    if layer.kind in _POOLS and halves and epilogue.pool == NO_POOL:
        return replace(epilogue, pool=_POOLS[layer.kind])
    return None
