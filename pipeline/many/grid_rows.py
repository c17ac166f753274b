"""Rows of a grid before they are runs: combinations of axes, and names that can be folders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from knarr.pipeline.evaluation import Network
from knarr.pipeline.published import Row

# Without what a terminal obeys.
Text = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Scalar = bool | int | Annotated[float, Field(allow_inf_nan=False)] | str | None


def _flat(value: Any) -> Any:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    lists = (
        [item for item in inner if isinstance(item, list)] if isinstance(value, dict) else [inner]
    )
    if any(isinstance(item, dict) for item in inner) or any(
        isinstance(item, list | dict) for each in lists for item in each
    ):
        raise ValueError(
            "nested too deep; set what lies below by dotted path, such as teacher.network.seen.widths"
        )
    return value


Value = Annotated[Scalar | list[Scalar] | dict[Text, Scalar | list[Scalar]], BeforeValidator(_flat)]
Settings = dict[Text, Value]
"""Dotted path in a recipe -> value, or a whole mapping of settings."""
Axis = (
    Annotated[list[Scalar], Field(min_length=1)]
    | Annotated[dict[Text, Settings], Field(min_length=1)]
)
Axes = dict[Text, Axis]
Exclusion = Annotated[dict[Text, Scalar], Field(min_length=1)]


@dataclass(frozen=True)
class Planned:
    """A row.

    Args:
        name: as printed.
        recipe: name or path of its own runs' recipe; it has none where they are those of another row.
        settings: changed in it.
        network: whose predictions are measured.
        runs_of: name of that other row.
        beside: the published row.
        data: folder of its data below the one that the caller names.
    """

    name: str
    recipe: str | None
    settings: Mapping[str, Any]
    network: Network
    runs_of: str | None = None
    beside: Row | None = None
    data: str | None = None


def combinations(
    axes: Axes, exclude: tuple[Exclusion, ...], most: int
) -> list[tuple[str, dict[str, Any]]]:
    """Names and settings of all combinations, the last axis running fastest.

    Args:
        axes: see `Grid`.
        exclude: likewise.
        most: how many there may be, before any is left out.

    Raises:
        ValueError: too many, a value twice, one path on two axes, or an exclusion of what is not there.
    """
    choices = {axis: _choices(axis, values, axes) for axis, values in axes.items()}
    for axis, own in choices.items():
        labels = [label for label, _, _ in own]
        if len(set(labels)) < len(labels):
            raise ValueError(f"axis '{axis}': a value twice among {', '.join(labels)}; keep one")
    for rule in exclude:
        for axis, value in rule.items():
            if axis not in choices or all(not _same(value, given) for _, given, _ in choices[axis]):
                raise ValueError(
                    f"exclude: '{axis}' has no '{value}'; name an axis and one of its values"
                )
    count = prod(map(len, choices.values()))
    if count > most:
        raise ValueError(f"axes: {count} combinations > {most}; take fewer values")
    found = []
    for combination in product(*choices.values()) if axes else ():
        picked = dict(zip(choices, combination, strict=True))
        if any(
            all(_same(value, picked[axis][1]) for axis, value in rule.items()) for rule in exclude
        ):
            continue
        settings: dict[str, Any] = {}
        for _, _, own_settings in combination:
            if shared := settings.keys() & own_settings.keys():
                raise ValueError(f"axes: {', '.join(sorted(shared))} on two of them; keep one")
            settings |= own_settings
        found.append((", ".join(label for label, _, _ in combination), settings))
    return found


def _choices(axis: str, values: Axis, axes: Axes) -> list[tuple[str, Scalar, dict[str, Any]]]:
    """(name, value to exclude by, settings) of each choice."""
    if isinstance(values, dict):
        return [(name, name, dict(settings)) for name, settings in values.items()]
    short = axis.rpartition(".")[2]
    if sum(other.rpartition(".")[2] == short for other in axes) > 1:
        short = axis
    return [
        (
            f"{short} {'none' if value is None else str(value).lower() if isinstance(value, bool) else value}",
            value,
            {axis: value},
        )
        for value in values
    ]


def _same(one: Scalar, other: Scalar) -> bool:
    """True is not 1 here; 1 is 1.0."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def folder_name(row: str) -> str:
    """A row's name as that of a folder, on any file system: letters, digits and . _ + = -."""
    return re.sub(r"[^A-Za-z0-9._+=-]+", "-", row).strip("-.") or "row"
