"""Random architectures of all kinds of block, small enough to run by the thousand."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from nas_mnist.core.errors import InputError
from nas_mnist.models.architecture import Architecture
from nas_mnist.models.network import Network

ACTIVATIONS = ("none", "relu", "leaky_relu", "silu", "hardswish", "gelu")


def _unit(rng: random.Random, kind: str, padding: str | None = None) -> dict[str, Any]:
    block = {
        "kind": kind,
        "channels": rng.randint(1, 6),
        "kernel": rng.choice((1, 3, 3, 5, 7)),
        "stride": rng.choice((1, 1, 1, 2, 3, 4)),
        "padding": padding or rng.choice(("same", "valid")),
        "bias": rng.random() < 0.5,
        "norm": rng.choice(("none", "before", "after")),
        "activation": rng.choice(ACTIVATIONS),
        "dropout": rng.choice((0.0, 0.25)),
    }
    return block | ({"middle": rng.random() < 0.5} if kind == "separable" else {})


def _blocks(rng: random.Random) -> list[dict[str, Any]]:
    kind = rng.choice(("conv", "separable", "residual", "pool", "repeat"))
    if kind == "pool":
        method = rng.choice(("max", "average"))
        return [{"kind": kind, "method": method, "kernel": rng.randint(2, 4), "stride": rng.randint(1, 3)}]
    if kind == "repeat":  # of a block that is as wide as what it reads, or, with luck, of any other
        first = _unit(rng, "conv")
        block = _block(rng, rng.choice(("conv", "separable", "residual")))
        for unit in block.get("body", [block]):
            unit["channels"] = first["channels"]
        repeats = [{"kind": kind}] * rng.randint(1, 2)
        return [first, block, *repeats] if rng.random() < 0.8 else repeats
    return [_block(rng, kind)]


def _block(rng: random.Random, kind: str) -> dict[str, Any]:
    if kind == "residual":
        padding = None if rng.random() < 0.1 else "same"  # 'valid' seldom meets the shortcut
        body = [_unit(rng, rng.choice(("conv", "separable")), padding) for _ in range(rng.randint(1, 3))]
        return {"kind": kind, "body": body, "activation": rng.choice(ACTIVATIONS)}
    return _unit(rng, kind)


def random_data(rng: random.Random) -> dict[str, Any]:
    """The plain data of a candidate that may or may not exist."""
    order = rng.choice(("conv_then_pool", "pool_then_conv"))
    head = {
        "order": order,
        "kernel": 1 if order == "pool_then_conv" else rng.choice((1, 1, 3, 5)),
        "padding": rng.choice(("same", "valid")),
        "bias": rng.random() < 0.5,
        "norm": rng.random() < 0.5,
    }
    return {
        "input_shape": [rng.randint(1, 4), rng.randint(4, 29), rng.randint(4, 29)],
        "classes": rng.randint(2, 12),
        "blocks": [block for _ in range(rng.randint(1, 5)) for block in _blocks(rng)],
        "head": head,
    }


def random_architectures(count: int, seed: int) -> Iterator[Architecture]:
    """``count`` candidates that exist, the same for the same seed."""
    rng = random.Random(seed)
    while count:
        try:
            architecture = Architecture.make(random_data(rng))
        except InputError:
            continue
        yield architecture
        count -= 1


def varied(model: Network, dropout: bool = False, seed: int = 0) -> Network:
    """A network in float64 and in training mode, with normalisations that differ from channel to channel."""
    torch.manual_seed(seed)
    for module in model.double().train().modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1, 1.5)
            nn.init.normal_(module.bias)
        if isinstance(module, nn.Dropout2d) and not dropout:
            module.p = 0.0
    return model
