"""A `.net` file as plain arrays, within limits; judges nothing but its size.

Layout (lava-dl 0.6.0 `netx/hdf5.py`): /layer/<i>/ with type, shape, weight, stride, padding, dilation, groups, bias and
neuron/{type, iDecay, vDecay, vThMant}; what else may lie there netx does not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from knarr.deploy.errors import DeployError
from knarr.export.errors import ExportError
from knarr.export.graph.hdf5_guard import load

MAX_VALUES = 2**25
"""Numbers in one file. Each becomes 8 bytes here; netx and Lava keep several copies of each."""

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RawLayer:
    """/layer/<index> as it lies in the file.

    Args:
        index: its number.
        group: its items by name: arrays, text, or dictionaries for groups; empty when it is no group.
        kind: what `type` says, "" when that is missing or no text.
    """

    index: int
    group: Mapping[str, Any]
    kind: str
    _whole: dict[str, Integers | None] = field(default_factory=dict, compare=False, repr=False)

    @property
    def where(self) -> str:
        return f"/layer/{self.index}"

    @property
    def neuron(self) -> Mapping[str, Any] | None:
        found = self.group.get("neuron")
        return found if isinstance(found, dict) else None

    def whole(self, key: str) -> Integers | None:
        """The numbers of an item, None when it is missing or not made of whole numbers."""
        if key not in self._whole:
            self._whole[key] = whole_numbers(self.group.get(key))
        return self._whole[key]

    def integers(self, key: str) -> tuple[int, ...] | None:
        """One or a few numbers which netx wants stored as integers; None when missing, none, too many or stored otherwise."""
        value = self.group.get(key)
        if not isinstance(value, (np.ndarray, np.generic)) or value.dtype.kind not in "iu":
            return None
        if not 1 <= value.size <= 8:
            return None
        return tuple(int(n) for n in np.atleast_1d(value).reshape(-1))


@dataclass(frozen=True)
class RawNet:
    """A file: the names under /layer (None when there is no such group), and those netx reads, in its order."""

    names: tuple[str, ...] | None
    layers: tuple[RawLayer, ...]


def load_raw(path: Path) -> RawNet:
    """Read a `.net` file as it is, in bounded time and memory.

    Raises:
        DeployError: missing, not HDF5, damaged, or beyond a limit.
    """
    try:
        tree = load(path, "netx .net file", "write one with `knarr deploy`", MAX_VALUES)
    except ExportError as error:
        raise DeployError(str(error)) from error
    found = tree.get("layer")
    if not isinstance(found, dict):
        return RawNet(None, ())
    numbered = sorted(
        int(name) for name in found if name.isascii() and name.isdigit() and len(name) < 9
    )
    layers = [(i, found[str(i)]) for i in numbered if str(i) in found]
    return RawNet(tuple(found), tuple(_layer(i, item) for i, item in layers))


def _layer(index: int, item: Any) -> RawLayer:
    group = item if isinstance(item, dict) else {}
    return RawLayer(index, group, text(group.get("type")))


def text(value: Any) -> str:
    """One text, alone or first in an array, as netx takes it; "" when it is something else."""
    while isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, str) else ""


def whole_numbers(value: Any) -> Integers | None:
    """Integers, or floats without a fraction, which is how slayer writes them; None for anything else."""
    if not isinstance(value, (np.ndarray, np.generic)) or value.dtype.kind not in "iuf":
        return None
    array = np.asarray(value)
    if array.dtype.kind == "f":
        if np.any(~(np.abs(array) < 2.0**53)) or not np.array_equal(array, np.rint(array)):
            return None
    elif array.dtype == np.uint64:
        array = np.minimum(array, np.uint64(2**63 - 1))
    return array.astype(np.int64)
