"""Values that several commands share."""

from __future__ import annotations

from pathlib import Path

DEFAULT_STUDY = "nas_mnist"
DEFAULT_STORAGE = "sqlite:///studies/nas_mnist.db"
REPORTS = Path("reports")  # the folder of all reports, below the current one
MAX_EPOCHS = 20  # the most epochs that a recipe may have
