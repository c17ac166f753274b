"""Values as JSON holds them, for results that are written to files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np


class JsonRecord:
    """Base of frozen dataclasses that JSON holds field by field, units in the names."""

    def __post_init__(self) -> None:
        # A frozen dataclass would still let its dictionaries be written to.
        for name, value in vars(self).items():
            if isinstance(value, Mapping):
                object.__setattr__(self, name, MappingProxyType(dict(value)))

    def to_json(self) -> dict[str, object]:
        """Return a plain dict for json.dump, with the same names."""
        return {name: plain(value) for name, value in vars(self).items()}


def plain(value: object) -> Any:
    """Return what JSON can hold: fractions become floats, tuples and arrays lists, and dataclasses
    dicts.
    """
    if isinstance(value, JsonRecord):
        return value.to_json()
    if isinstance(value, Fraction):
        return float(value)
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return value
