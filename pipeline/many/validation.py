"""What a validation accuracy is of: two that are of the same can be compared."""

from __future__ import annotations

from typing import NamedTuple

from knarr.train.settings import Recipe
from knarr.train.systems.base import RunData
from knarr.train.train import train_validation_split


class ValidationSet(NamedTuple):
    """Classes, and the class and group of each clip that is validated on."""

    classes: tuple[str, ...]
    labels: list[int]
    groups: list[object]


def validation_set_of(recipe: Recipe, data: RunData) -> ValidationSet:
    """Of a recipe on its data.

    Raises:
        SettingsError: no clip is left to fit on.
    """
    _, validation = train_validation_split(recipe, data)
    return ValidationSet(
        data.class_names, data.train.labels[validation].tolist(), data.groups[validation].tolist()
    )
