"""Results of others for MNIST, shown beside ours.

They were collected from public notebooks; the addresses were not recorded. Each is one training run.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """One published result for MNIST."""

    params: int
    accuracy: float  # 0 to 1
    how: str  # on which images and at which epoch
    epochs: int | None = None  # only where above 20


# Test loss and correct images of 10,000 after each epoch of the published run of the reference.
PUBLISHED_LOG = (
    (0.0613, 9775), (0.0426, 9852), (0.0303, 9905), (0.0242, 9922), (0.0279, 9914),
    (0.0238, 9918), (0.0222, 9926), (0.0253, 9924), (0.0249, 9924), (0.0173, 9941),
    (0.0186, 9934), (0.0191, 9939), (0.0184, 9947), (0.0164, 9951), (0.0206, 9945),
    (0.0159, 9950), (0.0169, 9955), (0.0171, 9944), (0.0172, 9948), (0.0168, 9952),
)  # fmt: skip

BEST_ON_TEST, LAST, VALIDATION = "best epoch on the test images", "last epoch", "validation images"
RESULTS = (
    Published(19_122, 0.9955, BEST_ON_TEST),  # the reference
    Published(9_844, 0.9957, BEST_ON_TEST),
    Published(7_332, 0.9946, BEST_ON_TEST),
    Published(6_188, 0.9944, LAST),
    Published(3_197, 0.9925, VALIDATION),
    Published(1_936, 0.9910, BEST_ON_TEST, 75),
    Published(697, 0.9903, BEST_ON_TEST, 2_000),
    Published(575, 0.9800, BEST_ON_TEST),
)
