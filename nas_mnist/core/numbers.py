"""Numbers as people type them: ``20000``, ``20,000``, ``20_000``, ``20k``, ``99.4``."""

from __future__ import annotations

import re
from decimal import Decimal

_NUMBER = re.compile(r"([0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,3}(?:_[0-9]{3})+|[0-9]+)?(\.[0-9]+)?([kKM]?)")
_FACTORS = {"": 1, "k": 1_000, "K": 1_000, "M": 1_000_000}


def parse_number(text: str) -> Decimal | None:
    """The exact value of a number of at least 0; None for any other text."""
    parts = _NUMBER.fullmatch(text)
    if parts is None or not (parts[1] or parts[2]):
        return None
    digits = (parts[1] or "0").replace(",", "").replace("_", "")
    return Decimal(digits + (parts[2] or "")) * _FACTORS[parts[3]]


def parse_whole(text: str, low: int, high: int) -> int | None:
    """A whole number from ``low`` to ``high``; None for any other text.

    ``1.5k`` is one; ``20.000`` is not: it may mean twenty or twenty thousand.
    """
    number = parse_number(text)
    if "." in text and text[-1:] not in _FACTORS:
        return None
    if number is None or not low <= number <= high or number != int(number):
        return None
    return int(number)
