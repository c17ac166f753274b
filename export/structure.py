"""Groups and kernel sides that a NIR file cannot hold: written as zeros, and found again.

nir 1.0.8 reads grouped and non-square convolutions back wrongly, so the exporter writes one dense, square kernel with zeros
and says in the node's metadata what it was. Whoever stores or counts synapses goes by that: the zeros are no synapses.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import nir
import numpy as np

from knarr.export.step_synapses import ints

GROUPS, KERNEL = "knarr_groups", "knarr_kernel"


def note(groups: int, kernel: Sequence[int]) -> dict[str, Any]:
    """Metadata of a convolution that was written dense and square."""
    return {GROUPS: int(groups), KERNEL: np.array(kernel)}


def as_trained(node: Any) -> Any:
    """A convolution with the groups and kernel it was written from.

    Args:
        node: any NIR node; one without our metadata, or with something else than zeros where they belong, stays as it is.

    Returns:
        A copy of the same function with fewer stored weights, or the node itself.
    """
    if not isinstance(node, (nir.Conv1d, nir.Conv2d)) or isinstance(node.padding, str):
        return node
    weight = np.asarray(node.weight)
    groups, kernel = _said(node, weight)
    if int(node.groups) != 1 or (groups == 1 and kernel == weight.shape[2:]):
        return node
    axes = len(kernel)
    around = [(side - k) // 2 for side, k in zip(weight.shape[2:], kernel, strict=True)]
    sides = [slice(cut, cut + k) for cut, k in zip(around, kernel, strict=True)]
    inner = (slice(None), slice(None), *sides)
    rows, columns = weight.shape[0] // groups, weight.shape[1] // groups
    blocks = []
    for g in range(groups):
        part = weight[g * rows : (g + 1) * rows, g * columns : (g + 1) * columns]
        blocks.append(part[inner])
    found = np.concatenate(blocks)
    padding = [
        p - d * cut
        for p, d, cut in zip(ints(node.padding, axes), ints(node.dilation, axes), around, strict=True)
    ]
    if np.count_nonzero(found) != np.count_nonzero(weight) or min(padding) < 0:
        return node  # edited since
    trained = copy.copy(node)
    trained.weight, trained.groups = found, groups
    trained.padding = padding[0] if axes == 1 else np.array(padding)
    return trained


def _said(node: Any, weight: np.ndarray[Any, Any]) -> tuple[int, tuple[int, ...]]:
    """Groups and kernel from the metadata, checked; those of the node where they make no sense."""
    none = 1, weight.shape[2:]
    try:
        groups = int(np.asarray(node.metadata.get(GROUPS, 1)))
        kernel = ints(node.metadata.get(KERNEL, np.array(none[1])), weight.ndim - 2)
    except (TypeError, ValueError):
        return none
    sides = all(0 < k <= side and (side - k) % 2 == 0 for k, side in zip(kernel, none[1], strict=True))
    whole = groups > 0 and weight.shape[0] % groups == 0 and weight.shape[1] % groups == 0
    return (groups, kernel) if sides and whole else none
