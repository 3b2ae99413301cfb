"""The class names of the known data sets."""

from __future__ import annotations

from string import ascii_uppercase, digits

_NAMES = {  # those of torchvision, shortened to fit a table; classes of the other sets are digits
    "fashion-mnist": (
        *("T-shirt", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    ),
    "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    "emnist-letters": tuple(ascii_uppercase),
    "emnist-balanced": (*digits, *ascii_uppercase, *"abdefghnqrt"),  # other small letters look like capitals
}


def class_names(dataset: str, classes: int) -> tuple[str, ...]:
    """One name for each class, from class 0 on; the class number where a data set has no names."""
    names = _NAMES.get(dataset, ())
    return names if len(names) == classes else tuple(map(str, range(classes)))
