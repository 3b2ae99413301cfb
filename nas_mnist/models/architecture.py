"""A candidate network as frozen data: checked when it is made, JSON both ways, a stable key."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

from pydantic import Field, ValidationError, model_validator

from ..core.digest import digest
from ..core.errors import InputError, explain
from ..core.fileio import MAX_TEXT_BYTES
from .blocks import BLOCK_KINDS, Block, Classes, Frozen, Head, InputShape
from .layers import Layer, expand


class Architecture(Frozen):
    """An all-convolutional classifier: blocks, then a head without a fully connected layer.

    Every layer's shape is computed when an instance is made, so each instance is a network that can be
    built. Errors name the field, the value and what is allowed: `make` and `from_json` raise `InputError`,
    the constructor raises pydantic's `ValidationError`.
    """

    input_shape: InputShape = (1, 28, 28)
    classes: Classes = 10
    blocks: tuple[Block, ...] = Field(min_length=1, max_length=64)
    head: Head = Head()

    @model_validator(mode="after")
    def _check_shapes(self) -> Architecture:
        _ = self.layers  # raises where a shape is impossible
        return self

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layers with their shapes, in the order in which they run."""
        return expand(self.input_shape, self.blocks, self.head, self.classes)

    @property
    def normalises(self) -> bool:
        """Whether it has batch normalisation."""
        return any(layer.kind == "BatchNorm2d" for layer in self.layers)

    @cached_property
    def key(self) -> str:
        """16 hexadecimal digits that are equal exactly when the architectures are."""
        return digest(self)

    @classmethod
    def make(cls, data: Any) -> Architecture:
        """Check plain data (dictionaries, lists, numbers); raises `InputError` with one line."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise InputError(explain(error, cls, BLOCK_KINDS)) from None

    @classmethod
    def from_json(cls, text: str | bytes) -> Architecture:
        """Read an architecture's JSON, alone or in the field ``architecture`` of an object.

        Raises `InputError` with one line.
        """
        if len(text) > MAX_TEXT_BYTES:
            raise InputError(f"architecture: {len(text):,} bytes of JSON (at most {MAX_TEXT_BYTES:,})")
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"architecture: not JSON ({error})") from None
        if not isinstance(data, dict):
            raise InputError(f"architecture: a JSON {type(data).__name__} (use an object with 'blocks')")
        return cls.make(data.get("architecture", data))

    def to_json(self) -> str:
        """Indented JSON with every field, defaults included."""
        return self.model_dump_json(indent=2) + "\n"
