"""What a search spends: images of the candidates, finalists and their seeds."""

from __future__ import annotations

from typing import NamedTuple


class Effort(NamedTuple):
    """The defaults of one ``--effort``; an option of a search overrides its field."""

    images: int  # of a candidate, an epoch; on a GPU candidates train on all
    final_images: int | None  # of a finalist, an epoch; None: all
    finalists: int
    seeds: int  # most fresh seeds of a finalist


EFFORTS = {
    "quick": Effort(images=2_500, final_images=10_000, finalists=6, seeds=1),
    "normal": Effort(images=10_000, final_images=None, finalists=4, seeds=2),
    "thorough": Effort(images=10_000, final_images=None, finalists=8, seeds=4),
}
DEFAULT_EFFORT = "normal"
