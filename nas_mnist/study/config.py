"""The settings that a study is made with; a study continues only with the same settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.study import StudyDirection
from pydantic import BaseModel, ConfigDict

from ..models.cost import Budget, cost_metric_of
from ..training.requirements import exact_budget

IDENTITY = "identity"  # user attribute of a study

_OTHER_DIGEST = {
    "space": "another space",
    "recipe": "another recipe",
    "data": "other data",
    "split": "another split of the data",
}
_FOLLOWS = {  # what is chosen or fitted by other settings, unless it is given
    "space": {"data", "max_params", "max_macs", "objective", "target"},
    "recipe": {"epochs", "max_params", "target"},
}


class StudyConfig(BaseModel):
    """The stored settings, exactly the fields of the user attribute ``identity``.

    Fields with a default were added later: older studies lack them.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    space: str  # digest
    recipe: str  # digest
    data: str  # name of the data set, and the fingerprint of its training images
    max_params: int
    epochs: int  # of finalists and winner, and of candidates unless `search_epochs` is given
    split: str = ""  # fingerprint of the choice of validation images
    search_recipe: bool | None = None  # True: every candidate has a recipe of its own
    max_macs: int | None = None
    max_flash: int | None = None  # bytes
    max_ram: int | None = None  # bytes
    max_memory: int | None = None  # bytes, float32; of earlier versions
    objective: str | None = None  # one of `OBJECTIVES`; None: accuracy
    target: float | None = None  # percent, of a search that narrows its budget; None: it does not
    search_epochs: int | None = None  # of candidates; None: as many as of finalists
    search_images: int | None = None  # training images of candidates, an epoch; None: as many as of finalists

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> StudyConfig:
        """The settings in a study's user attributes; raises `ValueError` for anything else."""
        return cls.model_validate(metadata.get(IDENTITY))

    @property
    def budget(self) -> Budget:
        """The limits of a candidate's cost."""
        limits = self.max_params, self.max_macs, self.max_flash, self.max_ram, self.max_memory
        return exact_budget(Budget(*limits), self.data)

    @property
    def cost_metric(self) -> str | None:
        """User attribute of a trial: the cost that is minimised beside the accuracy; None: accuracy alone."""
        return cost_metric_of(self.objective)

    @property
    def aim(self) -> str:
        """What a search looks for, in words."""
        if self.target is None:
            return "most accurate all-convolutional network"
        return f"smallest all-convolutional network with {self.target:g}% of the validation images"

    @property
    def directions(self) -> list[StudyDirection]:
        """Of the accuracy, and of the cost metric."""
        return [StudyDirection.MAXIMIZE, *([StudyDirection.MINIMIZE] if self.objective else [])]

    @property
    def candidate_epochs(self) -> int:
        """Epochs of a candidate that is not stopped early."""
        return self.search_epochs or self.epochs

    @property
    def low_fidelity(self) -> bool:
        """Whether candidates are trained for fewer epochs, or on fewer images, than finalists and winner."""
        return bool(self.search_epochs or self.search_images)

    def differences(self, stored: StudyConfig) -> list[str]:
        """The settings of an earlier study that differ from these, in words.

        Those that follow from another difference are left out.
        """
        mine, theirs = self.model_dump(), stored.model_dump()
        names = [name for name in mine if mine[name] != theirs[name]]
        names = [name for name in names if not _FOLLOWS.get(name, set()) & set(names)]
        return [
            _OTHER_DIGEST.get(name)
            or f"{name} {_in_words(name, theirs[name])}, not {_in_words(name, mine[name])}"
            for name in names
        ]


def _in_words(name: str, value: object) -> str:
    if value is None:
        return "all" if name == "search_images" else "none"
    return repr(value)
