"""What a validation accuracy is of: two that are of the same can be compared."""

from __future__ import annotations

from typing import NamedTuple

from knarr.train.run import parts
from knarr.train.settings import Recipe
from knarr.train.systems.base import RunData


class Judged(NamedTuple):
    """Classes, and the class and group of each clip that is validated on."""

    classes: tuple[str, ...]
    labels: list[int]
    groups: list[object]


def judged(recipe: Recipe, data: RunData) -> Judged:
    """Of a recipe on its data.

    Raises:
        SettingsError: no clip is left to fit on.
    """
    _, validation = parts(recipe, data)
    return Judged(data.class_names, data.train.labels[validation].tolist(), data.groups[validation].tolist())
