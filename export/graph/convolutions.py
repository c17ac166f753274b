"""Convolutions that a NIR file cannot hold as they are: groups, kernels that are not square, padding 'same'.

nir 1.0.8 reads grouped and non-square convolutions back wrongly, so the exporter writes one dense, square kernel with
zeros and records in the node's metadata what it was. Whoever stores or counts synapses restores the groups from there:
the zeros are no synapses.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import nir
import numpy as np
import torch

from knarr.export.graph.step_synapses import ints

GROUPS, KERNEL = "knarr_groups", "knarr_kernel"


def groups_metadata(groups: int, kernel: Sequence[int]) -> dict[str, Any]:
    """Return the metadata of a convolution that was written dense and square."""
    return {GROUPS: int(groups), KERNEL: np.array(kernel)}


def restore_groups(node: Any) -> Any:
    """Return a convolution with the groups and kernel it was written from.

    Args:
        node: any NIR node; one without this metadata, or with something else than zeros where zeros belong, stays as it is.

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
    # The exporter puts as many zeros before a short side as behind it.
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
        for p, d, cut in zip(
            ints(node.padding, axes), ints(node.dilation, axes), around, strict=True
        )
    ]
    if np.count_nonzero(found) != np.count_nonzero(weight) or min(padding) < 0:
        return node  # edited since
    trained = copy.copy(node)
    trained.weight, trained.groups = found, groups
    trained.padding = padding[0] if axes == 1 else np.array(padding)
    return trained


def _said(node: Any, weight: np.ndarray[Any, Any]) -> tuple[int, tuple[int, ...]]:
    """Read groups and kernel from the metadata; those of the node itself where the metadata make no sense."""
    none = 1, weight.shape[2:]
    try:
        groups = int(np.asarray(node.metadata.get(GROUPS, 1)))
        kernel = ints(node.metadata.get(KERNEL, np.array(none[1])), weight.ndim - 2)
    except (TypeError, ValueError):
        return none
    sides = all(
        0 < k <= side and (side - k) % 2 == 0 for k, side in zip(kernel, none[1], strict=True)
    )
    whole = groups > 0 and weight.shape[0] % groups == 0 and weight.shape[1] % groups == 0
    return (groups, kernel) if sides and whole else none


def dense_kernel(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """Turn the (O, I/groups, ...) weight of a grouped convolution into (O, I, ...), with zeros between the groups."""
    per_group_out, per_group_in = weight.shape[0] // groups, weight.shape[1]
    dense = weight.new_zeros(weight.shape[0], per_group_in * groups, *weight.shape[2:])
    for g in range(groups):
        rows, columns = (
            slice(g * per_group_out, (g + 1) * per_group_out),
            slice(g * per_group_in, (g + 1) * per_group_in),
        )
        dense[rows, columns] = weight[rows]
    return dense


def same_padding(dilation: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return padding 'same' per axis as numbers; None where it would differ on the two sides."""
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    return None if any(t % 2 for t in total) else tuple(t // 2 for t in total)
