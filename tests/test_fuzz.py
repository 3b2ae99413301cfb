"""Files with random faults are read, or refused in one line."""

from __future__ import annotations

import copy
import json
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
from pydantic import ValidationError

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
        *path, last = draw(st.sampled_from(places(document)))
        inside = document
        for key in path:
            inside = inside[key]
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace":
                inside[last] = draw(VALUES)
            case "remove":
                del inside[last]
            case "add" if isinstance(inside, dict):
                inside[draw(NAMES)] = draw(VALUES)
            case _:
                inside.insert(last, draw(VALUES))
        if not places(document):
            break
    return document


def accepted_or_refused(read: Callable[[], object]) -> None:
    try:
        read()
    except InputError as error:
        assert str(error)
        assert len(str(error)) < 1_000
        assert "\n" not in str(error).strip()


@given(document=spoiled(REFERENCE))
@example(document=REFERENCE | {"blocks": [{"kind": {"x" * 5_000: "y" * 5_000}}]})
def test_spoiled_architectures(document: Any) -> None:
    accepted_or_refused(lambda: Architecture.make(document))


@given(text=st.text(max_size=60) | st.builds(json.dumps, spoiled(REFERENCE)).map(lambda text: text[:-3]))
def test_text_for_an_architecture(text: str) -> None:
    accepted_or_refused(lambda: Architecture.from_json(text))


@given(document=spoiled(SPACE), seed=st.integers(0, 3))
def test_spoiled_spaces(document: Any, seed: int) -> None:
    try:
        space = SearchSpace.model_validate(document)
    except ValidationError:
        return
    for _ in range(3):
        accepted_or_refused(lambda: space.draw(RandomSampler(random.Random(seed)), Budget(20_000)))


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
    return tmp_path / "x.safetensors"


QUIETLY = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None
)


@QUIETLY
@given(at=st.integers(0, 3_000), new=st.binary(min_size=1, max_size=8), keep=st.integers(0, len(WEIGHTS)))
def test_spoiled_weights(file: Path, at: int, new: bytes, keep: int) -> None:
    file.write_bytes((WEIGHTS[:at] + new + WEIGHTS[at + len(new) :])[: max(keep, 1)])
    accepted_or_refused(lambda: Classifier.load(file))


@QUIETLY
@given(
    size=st.integers(0, 2**64 - 1),
    header=spoiled(TENSORS),
)
def test_weights_with_a_header_of_any_kind(file: Path, size: int, header: Any) -> None:
    text = json.dumps(header).encode()
    for length in (size, len(text)):
        file.write_bytes(struct.pack("<Q", length) + text + bytes(8))
        accepted_or_refused(lambda: Classifier.load(file))


@QUIETLY
@given(document=VALUES | st.builds(dict, st.just({"name": "x", "runs": []})))
def test_results_of_any_kind(tmp_path: Path, document: Any) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(document))
    accepted_or_refused(lambda: read_result(path))
