"""What the classes of a known data set are called."""

from __future__ import annotations

from string import ascii_uppercase

_NAMES = {  # as torchvision has them, shortened to fit a table; the others have digits or numbers
    "fashion-mnist": (
        *("T-shirt", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    ),
    "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    "emnist-letters": tuple(ascii_uppercase),
}


def class_names(dataset: str, classes: int) -> tuple[str, ...]:
    """The names of a data set's classes, from class 0 on; their numbers where it has no names."""
    names = _NAMES.get(dataset, ())
    return names if len(names) == classes else tuple(map(str, range(classes)))
