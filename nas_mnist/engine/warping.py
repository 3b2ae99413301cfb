"""How kernels read between an image's pixels."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from .writer import Value, Writer

# Zeros before and behind an image: what pixels just outside of it are mixed from, and what is read with them.
EDGE = 1, 3


def mixed(
    w: Writer,
    source: Value,
    places: Sequence[ir.Value],
    limits: Sequence[ir.Value],
    wide: Value,
    corner: Value,
) -> ir.Value:
    """What lies at places (x, y), a lane each, between four pixels; zero from outside.

    ``source``: an address; ``corner``: where an image's first pixel is from there, one for all lanes or a
    lane each; ``limits``: width and height; ``wide``: bytes a row, zeros around it included.
    """
    wholes, parts = [], []
    for wanted, limit in zip(places, limits, strict=True):
        place = w.clipped(wanted, w.constant(-1.0), limit)
        below = w.floor(place)
        wholes.append(w.whole_of(below))
        parts.append(w.minus(place, below))
    offsets = w.times_and_plus(wholes[1], wide, wholes[0], corner)
    rows = []
    for start in (source, w.add(source, wide)):
        left, beside = w.bytes_at(start, offsets, 2)
        rows.append(w.plus(left, w.times(parts[0], w.minus(beside, left))))
    return w.plus(rows[0], w.times(parts[1], w.minus(rows[1], rows[0])))
