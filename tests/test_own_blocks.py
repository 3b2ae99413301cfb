"""Blocks that a space file describes, inverted residual blocks, and their primitive layers."""

from __future__ import annotations

import random

import pytest
import torch

from nas_mnist import Architecture, Budget, SearchSpace
from nas_mnist.core.errors import InputError
from nas_mnist.models.cost import cost_of
from nas_mnist.models.network import build
from nas_mnist.space.sampling import RandomSampler

STAGE = '[[stages]]\nblocks = 1\nchannels = 8\n[[stages]]\nblocks = 1\nchannels = 8\nblock = "NAME"\n'
BOTTLENECK = """
[blocks.bottleneck]
shortcut = true
layers = [
  { kind = "conv", kernel = 1, width = 0.5 },
  { kind = "depthwise", kernel = 5 },
  { kind = "conv", kernel = 1, activation = "none" },
]
"""


def drawn(text: str, seed: int = 0, budget: int = 5_000) -> Architecture:
    return SearchSpace.from_toml(text).draw(RandomSampler(random.Random(seed)), Budget(budget))


def test_an_own_block_is_what_its_layers_say() -> None:
    architecture = drawn(BOTTLENECK + STAGE.replace("NAME", "bottleneck"))
    layers = [layer for layer in architecture.layers if layer.path.startswith("blocks[1]")]
    kinds = ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "Add"]
    assert [layer.kind for layer in layers] == kinds
    assert [layer.params for layer in layers] == [8 * 4, 8, 0, 4 * 25, 8, 0, 4 * 8, 16, 0]
    assert [layer.groups for layer in layers if layer.kind == "Conv2d"] == [1, 4, 1]


def test_an_inverted_residual_block_expands_filters_and_projects() -> None:
    text = STAGE.replace("NAME", "inverted") + "expansion = 4\nkernel = 5\n"
    architecture = drawn(text)
    body = [layer for layer in architecture.layers if layer.path.startswith("blocks[1].body")]
    convolutions = [layer for layer in body if layer.kind == "Conv2d"]
    assert [layer.params for layer in convolutions] == [8 * 32, 32 * 25, 32 * 8]
    assert [layer.out_shape[0] for layer in convolutions] == [32, 32, 8]
    assert body[-1].kind == "BatchNorm2d"  # the projection is linear
    assert any(layer.kind == "Add" for layer in architecture.layers)
    strided = drawn(text + 'downsample = "stride"\n')
    assert not any(layer.kind == "Add" for layer in strided.layers)  # another shape: no shortcut
    assert strided.layers[-1].in_shape[1:] == (14, 14)


def test_an_expansion_stays_within_the_most_channels() -> None:
    text = '[[stages]]\nblocks = 2\nchannels = 512\nblock = "inverted"\nexpansion = 8\n'
    widths = {layer.out_shape[0] for layer in drawn(text).layers if layer.kind == "Conv2d"}
    assert max(widths) == 1024


@pytest.mark.parametrize("name", ["inverted", "bottleneck", "chain"])
def test_draws_with_repeats_and_strides_are_counted_exactly_and_run(name: str) -> None:
    text = BOTTLENECK + (
        '[blocks.chain]\nlayers = [{ kind = "separable" }, { kind = "conv", width = 2 }, { kind = "conv" }]\n'
        "fill = [0.5, 1.0]\n"
    )
    text = text.replace("fill = [0.5, 1.0]\n", "") + (
        f"[[stages]]\nblocks = 1\nchannels = {{ min = 2, max = 9 }}\n"
        f'[[stages]]\nblocks = [1, 2]\nblock = "{name}"\nchannels = {{ min = 4, max = 8 }}\n'
        'repeats = [0, 1, 2]\nexpansion = [1, 3]\ndownsample = ["max", "stride", "none"]\n'
    )
    text = "fill = [0.5, 1.0]\n" + text
    for seed in range(40):
        architecture = drawn(text, seed, 2_000)
        model = build(architecture, 0)
        params = cost_of(architecture).params
        assert sum(parameter.numel() for parameter in model.parameters()) == params <= 2_000
        assert model.eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
        assert Architecture.from_json(architecture.to_json()) == architecture


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ('[blocks.conv]\nlayers = [{ kind = "conv" }]\n', ["blocks.conv", "taken"]),
        ('[blocks.x]\nlayers = [{ kind = "depthwise" }]\n', ["blocks.x.layers", "depthwise"]),
        ('[blocks.x]\nlayers = [{ kind = "conv", width = 0.5 }]\n', ["blocks.x.layers", "0.5", "use 1"]),
        ('[blocks.x]\nlayers = [{ kind = "pool" }]\n', ["blocks.x.layers[0].kind: 'pool'", "depthwise"]),
        ("[blocks.x]\nlayers = []\n", ["blocks.x.layers"]),
        ('[blocks.x]\nlayers = [{ kind = "conv", width = 1000 }]\n', ["blocks.x.layers[0].width", "16"]),
        ('[blocks.x]\nlayers = [{ kind = "conv", colour = 1 }]\n', ["blocks.x.layers[0].colour: unknown"]),
        ('[blocks.x]\nlayers = [{ kind = "depthwise", width = 2 }]\n', ["blocks.x.layers[0].width", "2"]),
        ("", ["stages[1].block: 'x'", "inverted"]),
    ],
)
def test_blocks_that_cannot_be_are_refused(blocks: str, words: list[str]) -> None:
    with pytest.raises(InputError) as raised:
        SearchSpace.from_toml(blocks + STAGE.replace("NAME", "x"), "my.toml")
    assert str(raised.value).startswith("my.toml: ")
    assert all(word in str(raised.value) for word in words)
