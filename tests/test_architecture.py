"""Architectures: frozen, equal after a round trip through JSON, refused in one line where invalid."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from candidates import random_architectures, random_data
from pydantic import ValidationError

from nas_mnist import Architecture
from nas_mnist.core.errors import InputError

REFERENCE_KEY = "108876146979e4f7"


def conv(**fields: Any) -> dict[str, Any]:
    return {"blocks": [{"kind": "conv", "channels": 4} | fields]}


def pool(**fields: Any) -> dict[str, Any]:
    return {"blocks": [{"kind": "pool"} | fields]}


def residual(*body: dict[str, Any]) -> dict[str, Any]:
    return {"blocks": [{"kind": "residual", "body": list(body)}]}


def test_key_of_the_reference_never_changes(reference: Architecture) -> None:
    assert reference.key == REFERENCE_KEY


def test_round_trip_through_json_keeps_architecture_and_key() -> None:
    for architecture in random_architectures(300, seed=1):
        again = Architecture.from_json(architecture.to_json())
        assert again == architecture
        assert again.key == architecture.key
        assert again.layers == architecture.layers


def test_json_spells_out_every_default(reference: Architecture) -> None:
    stored = json.loads(reference.to_json())
    assert stored["input_shape"] == [1, 28, 28]
    assert stored["classes"] == 10
    assert stored["blocks"][0] == {
        "channels": 16, "kernel": 3, "stride": 1, "padding": "same", "bias": True, "norm": "after",
        "activation": "relu", "dropout": 0.05, "kind": "conv",
    }  # fmt: skip
    assert stored["head"] == {
        "order": "conv_then_pool", "kernel": 3, "padding": "valid", "bias": True, "norm": False,
    }  # fmt: skip


def test_a_field_left_out_equals_its_default_written_out() -> None:
    short = Architecture.make(conv())
    long = Architecture.make(conv(kernel=3, stride=1, padding="same", bias=False, norm="before", dropout=0))
    assert (short, short.key) == (long, long.key)


@pytest.mark.parametrize(
    "change",
    [
        conv(channels=5), conv(kernel=5), conv(stride=2), conv(padding="valid"), conv(bias=True),
        conv(norm="after"), conv(activation="gelu"), conv(dropout=0.1), conv(kind="separable"),
        conv() | {"classes": 9}, conv() | {"input_shape": [1, 28, 27]}, conv() | {"head": {"norm": True}},
        {"blocks": conv()["blocks"] * 2},
    ],
)  # fmt: skip
def test_every_field_changes_the_key(change: dict[str, Any]) -> None:
    changed, plain = Architecture.make(change), Architecture.make(conv())
    assert changed != plain
    assert changed.key != plain.key


@pytest.mark.parametrize("same", [{"dropout": -0.0}, {"bias": 0}])
def test_equal_architectures_have_equal_keys(same: dict[str, Any]) -> None:
    other, plain = Architecture.make(conv(**same)), Architecture.make(conv())
    assert other == plain
    assert other.key == plain.key


def test_frozen(reference: Architecture) -> None:
    with pytest.raises(ValidationError):
        reference.head.kernel = 1  # type: ignore[misc]
    assert isinstance(reference.blocks, tuple)
    assert hash(reference) == hash(Architecture.from_json(reference.to_json()))


LIMITS: dict[str, tuple[Callable[[Any], dict[str, Any]], int, int]] = {
    "blocks[0].channels": (lambda number: conv(channels=number), 1, 1024),
    "blocks[0].stride": (lambda number: conv(stride=number), 1, 4),
    "blocks[0].kernel": (lambda number: pool(kernel=number) | {"input_shape": [1, 99, 99]}, 2, 64),
    "classes": (lambda number: conv() | {"classes": number}, 2, 1000),
    "input_shape[0]": (lambda number: conv() | {"input_shape": [number, 28, 28]}, 1, 4),
    "input_shape[1]": (lambda number: conv() | {"input_shape": [1, number, 28]}, 4, 256),
}


@pytest.mark.parametrize("field", LIMITS)
def test_a_number_beyond_its_limits_is_refused(field: str) -> None:
    data, low, high = LIMITS[field]
    for value in (low, high):
        Architecture.make(data(value))
    refused = [(low - 1, f"use at least {low}"), (high + 1, f"use at most {high:,}")]
    refused += [(value, "use a whole number") for value in (str(low), float(low), True, None)]
    for value, said in refused:
        check_refused(data(value), f"{field}: {value!r} ({said})")


KERNELS = "(use 1, 3, 5 or 7)"
NO_FIT = "does not fit a map of"
REFUSED = [
    (conv(kernel=4), f"blocks[0].kernel: 4 {KERNELS}"),
    (conv(kernel="3"), f"blocks[0].kernel: '3' {KERNELS}"),
    (conv(channels=10**30), f"blocks[0].channels: {10**30} (use at most 1,024)"),
    (conv(activation="relu6"), "blocks[0].activation: 'relu6' (use none, relu, leaky_relu, silu, "),
    (conv(dropout=1.0), "blocks[0].dropout: 1.0 (use less than 1)"),
    (conv(dropout=float("nan")), "blocks[0].dropout: nan (use a finite number)"),
    (conv(dropout="much"), "blocks[0].dropout: 'much' (use a number)"),
    (conv(bias=None), "blocks[0].bias: None (use true or false)"),
    (conv(width=3), "blocks[0].width: unknown field"),
    (conv() | {"layers": 3}, "layers: unknown field"),
    ({"blocks": [{"kind": "conv"}]}, "blocks[0].channels: missing field"),
    ({}, "blocks: missing field"),
    ({"blocks": 5}, "blocks: 5 (use a list)"),
    ({"blocks": []}, "blocks: [] (use a list of at least 1)"),
    ({"blocks": pool()["blocks"] * 65}, "blocks: [{'kind': 'pool'}, "),
    ({"blocks": [{"channels": 4}]}, "blocks[0].kind: missing field"),
    (
        {"blocks": [{"kind": "linear"}]},
        "blocks[0].kind: 'linear' (use conv, separable, depthwise, sequence, residual, pool",
    ),
    ({"blocks": [{"kind": "repeat"}]}, "blocks[0]: nothing to repeat ("),
    ({"blocks": [*conv()["blocks"], {"kind": "repeat"}]}, "blocks[1]: reads 4 channels where the block"),
    (conv() | {"input_shape": [1, 28]}, "input_shape[2]: missing field"),
    (conv() | {"head": {"order": "pool_then_conv", "kernel": 3}}, "head.kernel: 3 needs more than one pixel"),
    (conv() | {"head": {"kernel": 2}}, f"head.kernel: 2 {KERNELS}"),
    (conv() | {"input_shape": [1, 6, 6], "head": {"kernel": 7}}, f"head.kernel: 7 {NO_FIT} 6x6 (use at mo"),
    (pool(method="median"), "blocks[0].method: 'median' (use max or average)"),
    (pool(kernel=29), f"blocks[0].kernel: 29 {NO_FIT} 28x28 (use at most 28)"),
    (
        {"blocks": [*pool(kernel=14, stride=14)["blocks"], *conv(padding="valid")["blocks"]]},
        f"blocks[1].kernel: 3 {NO_FIT} 2x2 (use at most 2, or 'same' padding)",
    ),
    (
        residual({"kind": "conv", "channels": 4, "padding": "valid"}),
        "blocks[0].body: 26x26 where the shortcut has 28x28 (use 'same' padding in the body)",
    ),
    (residual({"kind": "pool"}), "blocks[0].body[0].kind: 'pool' (use conv, separable, depthwise)"),
    (
        residual({"kind": "conv", "channels": 4}, {"kind": "separable", "channels": 4, "kernel": 9}),
        f"blocks[0].body[1].kernel: 9 {KERNELS}",
    ),
]


@pytest.mark.parametrize(("data", "said"), REFUSED, ids=[said.split(" ")[0] for _, said in REFUSED])
def test_refused_with_field_value_and_what_is_allowed(data: dict[str, Any], said: str) -> None:
    check_refused(data, said)


def check_refused(data: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        Architecture.make(data)
    assert str(refused.value).startswith(said)


NOT_JSON = "architecture: not JSON ("
NOT_READ = [
    *((text, NOT_JSON) for text in ("not json", "", b"\xff\xfe\x00", "[" * 100_000, '{"a":' * 50_000)),
    ("[1, 2]", "architecture: a JSON list (use an object with 'blocks')"),
    ('{"blocks": ' + "[" * 200 + "]" * 200 + "}", "blocks[0]: [[[["),
    ('{"blocks": [{"kind": "conv", "channels": ' + "9" * 5000 + "}]}", NOT_JSON),
    ('{"blocks": []' + " " * 1_000_000 + "}", "architecture: 1,000,014 bytes of JSON (at most 1,000,000)"),
]


@pytest.mark.parametrize(("text", "said"), NOT_READ, ids=range(len(NOT_READ)))
def test_text_that_is_no_architecture_is_refused_in_one_line(text: str | bytes, said: str) -> None:
    with pytest.raises(InputError) as refused:
        Architecture.from_json(text)
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_no_depth_of_nesting_escapes_as_another_error() -> None:
    for depth in range(50, 3000, 50):
        with pytest.raises(InputError):
            Architecture.from_json('{"blocks": ' + "[" * depth + "]" * depth + "}")


def test_random_data_makes_an_architecture_or_is_refused_in_one_line() -> None:
    rng, refused = random.Random(2), 0
    for _ in range(500):
        try:
            Architecture.make(random_data(rng))
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
            assert str(error).startswith(("blocks[", "head."))
    assert 0 < refused < 500
