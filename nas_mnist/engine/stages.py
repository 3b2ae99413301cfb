"""From a network's layers to the stages of a pass: what is stored, and what lies between.

Stored are the outputs of convolutions (`Stored`), before normalisation, and sums. What happens to them
until something reads them (`Post`) is computed on the way to every reader; on a CPU it is never stored. Nor
is what a depthwise convolution gives to the next one with nothing between: there a separable block is one
stage.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import nn

from ..models.layers import IMAGE, Layer, Shape
from ..models.network import Network
from .between import AVERAGE_POOL, GATES, MAX_POOL, NO_POOL, NOTHING, Post

_POOLS: dict[str, int] = {"MaxPool2d": MAX_POOL, "AvgPool2d": AVERAGE_POOL}
LONGEST = 2  # convolutions of a stage; a depthwise one is cheap enough to be computed again on the way back


@dataclass(eq=False)
class Stored:
    """Maps that are stored, and what happens to them until they are read."""

    shape: Shape
    post: Post = NOTHING
    norm: nn.BatchNorm2d | None = None
    dropout: nn.Dropout2d | None = None

    @property
    def read_shape(self) -> Shape:
        """As readers see it."""
        channels, height, width = self.shape
        return (channels, height // 2, width // 2) if self.post.pool else self.shape


@dataclass(eq=False)
class Stage:
    """Convolutions with nothing between, or without any the sum of its sources."""

    sources: list[Stored]
    target: Stored
    convolutions: list[tuple[Layer, nn.Conv2d]] = field(default_factory=list)


class UnknownLayerError(Exception):
    """Something for which there are no kernels."""


def stages_of(network: Network, wide: bool = False) -> tuple[Stored, list[Stage], Stored]:
    """The image, the stages before the head in their order, and what the head reads.

    ``wide``: of one convolution each, also of several networks side by side. Raises `UnknownLayerError` where
    there are no kernels for a layer, or for several networks that are not ``wide``: torch's own modules then
    have to do.
    """
    return _Reader(network, 1 if wide else LONGEST, wide).read()


class _Reader:
    def __init__(self, network: Network, longest: int, beside: bool) -> None:
        self.network, self.layers = network, network.architecture.layers
        self.longest, self.beside = longest, beside
        self.image = Stored(network.architecture.input_shape)
        self.stages: list[Stage] = []
        self.at: dict[int, Stored] = {IMAGE: self.image}  # by the position of the layer that made it
        self.open: dict[int, Stage] = {}  # stages that the next convolution may still join

    def read(self) -> tuple[Stored, list[Stage], Stored]:
        if self.network.copies > 1 and not self.beside:
            raise UnknownLayerError("several networks side by side")
        for position in range(self.network.head_starts):
            layer, module = self.layers[position], self.network.layers[position]
            if isinstance(module, nn.Conv2d):
                self._convolution(position, layer, module)
            elif layer.kind == "Add":
                self.at[position] = self._sum([self.at[source] for source in layer.inputs], layer.out_shape)
            else:
                self._elementwise(position, layer, module)
        last = self.network.head_starts - 1
        return self.image, self.stages, self.at[last]

    def _convolution(self, position: int, layer: Layer, module: nn.Conv2d) -> None:
        (source,) = layer.inputs
        alone = layer.groups > 1 and layer.groups == layer.in_shape[0] == layer.out_shape[0]
        if layer.groups > 1 and not alone:
            raise UnknownLayerError(layer.kind)
        stage = None if self.network.is_kept(source) else self.open.get(source)
        if stage is None:
            stage = Stage([self.at[source]], Stored(layer.out_shape))
            self.stages.append(stage)
        stage.convolutions.append((layer, module))
        stage.target.shape = layer.out_shape
        self.at[position] = stage.target
        if alone and len(stage.convolutions) < self.longest:
            self.open[position] = stage

    def _sum(self, sources: list[Stored], shape: Shape) -> Stored:
        target = Stored(shape)
        self.stages.append(Stage(sources, target))
        return target

    def _elementwise(self, position: int, layer: Layer, module: nn.Module) -> None:
        (source,) = layer.inputs
        stored = self.at[source]
        post = None if self.network.is_kept(source) or stored is self.image else _absorbed(stored.post, layer)
        if post is None:
            stored = self._sum([stored], layer.in_shape)
            post = _absorbed(stored.post, layer)
        if post is None:
            raise UnknownLayerError(layer.kind)
        stored.post = post
        if isinstance(module, nn.BatchNorm2d):
            stored.norm = module
        if isinstance(module, nn.Dropout2d):
            stored.dropout = module
        self.at[position] = stored


def _absorbed(post: Post, layer: Layer) -> Post | None:
    """A chain with one more layer; None where it does not fit at its end."""
    free = not post.dropout and not post.pool
    if layer.kind == "BatchNorm2d" and free and not post.norm:
        return replace(post, norm=True, after=post.activation is not None)
    if layer.kind in GATES and free and post.activation is None:
        return replace(post, activation=layer.kind)
    if layer.kind == "Dropout2d" and free:
        return replace(post, dropout=True)
    halves = layer.kernel == (2, 2) and layer.stride == 2
    if layer.kind in _POOLS and halves and post.pool == NO_POOL:
        return replace(post, pool=_POOLS[layer.kind])
    return None
