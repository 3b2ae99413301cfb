"""Files with random faults are read, or refused in one line."""

from __future__ import annotations

import copy
import functools
import json
import operator
import random
import struct
import tomllib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nas_mnist import Architecture, Budget, SearchSpace
from nas_mnist.core.errors import InputError
from nas_mnist.core.fileio import parse_toml
from nas_mnist.recipes.recipe import make_recipe
from nas_mnist.space.sampling import RandomSampler
from nas_mnist.training.classifier import Classifier
from nas_mnist.training.run_store import read_result

PACKAGE = resources.files("nas_mnist")
REFERENCE = json.loads((PACKAGE / "models" / "zoo" / "reference.json").read_text())["architecture"]
SPACE = tomllib.loads((PACKAGE / "space" / "presets" / "default.toml").read_text())
RECIPE = tomllib.loads((PACKAGE / "recipes" / "default.toml").read_text())
WEIGHTS = (PACKAGE / "models" / "zoo" / "mnist-19k.safetensors").read_bytes()

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["conv", "residual", "pool", "same", "relu", 0, -1, 2**63, [], {}, [3, 5], -0.0]).map(
        copy.deepcopy
    )
)
NAMES = st.text(max_size=8)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4)
)
TENSORS = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a document of dictionaries and lists."""
    inner = document if isinstance(document, dict) else dict(enumerate(document))
    found = [path] if path else []
    for key, value in inner.items():
        found += places(value, (*path, key)) if isinstance(value, dict | list) else [(*path, key)]
    return found


@st.composite
def spoiled(draw: st.DrawFn, document: Any) -> Any:
    """A document with a few values replaced, removed, or put in under a new name."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        if not (found := places(document)):
            break
        *path, last = draw(st.sampled_from(found))
        inside = functools.reduce(operator.getitem, path, document)
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace":
                inside[last] = draw(VALUES)
            case "remove":
                del inside[last]
            case "add" if isinstance(inside, dict):
                inside[draw(NAMES)] = draw(VALUES)
            case _:
                inside.insert(last, draw(VALUES))
    return document


def accepted_or_refused(read: Callable[[], object]) -> None:
    try:
        read()
    except InputError as error:
        assert str(error)
        assert len(str(error)) < 1_000
        assert "\n" not in str(error).strip()
        assert "use another value" not in str(error)  # every type of pydantic's errors has words of its own


@given(
    document=spoiled(REFERENCE),
    text=st.text(max_size=60) | st.builds(json.dumps, spoiled(REFERENCE)).map(lambda text: text[:-3]),
)
@example(document=REFERENCE | {"blocks": [{"kind": {"x" * 5_000: "y" * 5_000}}]}, text="")
def test_spoiled_architectures(document: Any, text: str) -> None:
    accepted_or_refused(lambda: Architecture.make(document))
    accepted_or_refused(lambda: Architecture.from_json(text))


@given(document=spoiled(SPACE), seed=st.integers(0, 3))
@example(document=SPACE | {"stages": [SPACE["stages"][0] | {"block": ""}]}, seed=0)
@example(document=SPACE | {"blocks": {"Two Words": {"layers": [{"kind": "conv"}]}}}, seed=0)
def test_spoiled_spaces(document: Any, seed: int) -> None:
    sampler = RandomSampler(random.Random(seed))
    accepted_or_refused(lambda: SearchSpace.make(document).draw(sampler, Budget(20_000)))


@given(document=spoiled(RECIPE))
@example(document=RECIPE | {"\n": None})
@example(document=RECIPE | {"x" * 5_000: None})
def test_spoiled_recipes(document: Any) -> None:
    accepted_or_refused(lambda: make_recipe(document, "r.toml"))


@given(text=st.text(alphabet=st.sampled_from("[]{}=.,\"'# \nab1-_\\u"), max_size=40) | st.just("[" * 5_000))
def test_text_for_a_space_or_a_recipe(text: str) -> None:
    accepted_or_refused(lambda: parse_toml(text, "my.toml"))
    accepted_or_refused(lambda: SearchSpace.from_toml(text, "my.toml"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


QUIETLY = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None
)


@QUIETLY
@given(
    at=st.integers(0, 3_000),
    new=st.binary(min_size=1, max_size=8),
    keep=st.integers(1, len(WEIGHTS)),
    size=st.integers(0, 2**64 - 1),
    header=spoiled(TENSORS),
)
def test_spoiled_weights(file: Path, at: int, new: bytes, keep: int, size: int, header: Any) -> None:
    text = json.dumps(header).encode()
    for content in (
        (WEIGHTS[:at] + new + WEIGHTS[at + len(new) :])[:keep],
        *(struct.pack("<Q", length) + text + bytes(8) for length in (size, len(text))),
    ):
        file.write_bytes(content)
        accepted_or_refused(lambda: Classifier.load(file))


@QUIETLY
@given(document=VALUES | st.just({"name": "x", "runs": []}))
def test_results_of_any_kind(file: Path, document: Any) -> None:
    file.write_text(json.dumps(document))
    accepted_or_refused(lambda: read_result(file))
