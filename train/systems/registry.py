"""A recipe's system."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from knarr.train.settings import Recipe
from knarr.train.systems.base import Progress, RunData, System
from knarr.train.systems.cnn import Cnn
from knarr.train.systems.emotionkd import EmotionKd
from knarr.train.systems.mskd import Mskd
from knarr.train.systems.spiking_emotions import SpikingEmotions

SYSTEMS: Final[Mapping[str, Callable[[Any], System[Any]]]] = {
    "cnn": Cnn,
    "mskd": Mskd,
    "emotionkd": EmotionKd,
    "spiking_emotions": SpikingEmotions,
}
"""By `Recipe.system`."""


def system_of(recipe: Recipe) -> System[Any]:
    """The system that a recipe describes."""
    return SYSTEMS[recipe.system](recipe)


def load_data(
    recipe: Recipe, root: Path, *, cache: Path | None = None, progress: Progress | None = None
) -> RunData:
    """Read a recipe's data; see `System.load`."""
    return system_of(recipe).load(root, cache=cache, progress=progress)
