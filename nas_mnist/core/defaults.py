"""Values that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Engine = Literal["auto", "torch"]  # our kernels where there are some, or torch's modules

DEFAULT_STUDY = "nas_mnist"
DEFAULT_STORAGE = "sqlite:///studies/nas_mnist.db"
REPORTS = Path("reports")  # the folder of all reports, below the current one
MAX_PARAMS = 20_000  # the exercise's budget, and the default of a search
SAMPLERS = ("random", "tpe", "tpe-grouped", "gp", "nsga2", "mutation")  # by name; the first is the default
OWN_KINDS = ("folder", "csv", "npz", "idx")  # of people's own data, before the colon and the path
MAX_SEED = 2**31 - 1
MAX_EPOCHS = 20  # the most epochs that a recipe may have

# The answers of a search, by the word that users type.
ANSWERS = {"best": "most_accurate", "smaller": "smaller", "smallest": "smallest"}
