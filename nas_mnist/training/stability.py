"""Whether a recipe suits a network, from the architecture alone. Loads no torch."""

from __future__ import annotations

from ..models.architecture import Architecture
from ..models.layers import ACTIVATIONS, Layer
from ..recipes.recipe import Recipe

# Learning rate of SGD by batch size. Of the packaged networks only the reference has a convolution without
# normalisation. On 2,000 images it trains at 0.0019 (learning rate 0.06, batches of 32). At 0.0031 one of two
# trainings learns nothing, at 0.0047 (recipes 'small' and 'tiny') none of six learns.
MAX_LR_PER_IMAGE = 0.002


def stability_warning(architecture: Architecture, recipe: Recipe) -> str:
    """A line about a learning rate that may be too high for this network; empty for any other."""
    if recipe.optimizer != "sgd" or recipe.learning_rate / recipe.batch_size <= MAX_LR_PER_IMAGE:
        return ""
    if (layer := _unnormalised(architecture.layers)) is None:
        return ""
    return (
        f"{layer.path} has no normalisation: with learning_rate {recipe.learning_rate:g} in batches of "
        f"{recipe.batch_size} this network may not train (use the recipe default, or a lower learning_rate)"
    )


def _unnormalised(layers: tuple[Layer, ...]) -> Layer | None:
    """The first convolution whose activation reaches another convolution without normalisation."""
    last: Layer | None = None  # the newest convolution that is not normalised
    activated = False
    for layer in layers:
        if layer.path.endswith(".shortcut"):  # beside the body, which is added to it
            continue
        if layer.kind == "Conv2d":
            if last is not None and activated:
                return last
            last, activated = layer, False
        elif layer.kind == "BatchNorm2d":
            last = None
        activated |= layer.kind in ACTIVATIONS.values()
    return None
