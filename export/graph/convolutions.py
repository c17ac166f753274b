"""Convolutions that a NIR file cannot hold as they are: groups, kernels that are not square, padding 'same'.

nir 1.0.8 reads grouped and non-square convolutions back wrongly, so the exporter writes one dense, square kernel with
zeros and records in the node's metadata what it was. Whoever stores or counts synapses restores the groups from there:
the zeros are no synapses.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from knarr.export.graph.parameters import ints
from knarr.export.graph.topology import CONVS

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[Any]

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
    if not isinstance(node, CONVS) or isinstance(node.padding, str):
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
    # The groups lie along the diagonal of outputs and inputs.
    rows = np.split(weight[inner], groups)
    blocks = [np.split(row, groups, axis=1)[g] for g, row in enumerate(rows)]
    found = np.concatenate(blocks)
    # The exporter padded by as much more as those zeros reach with the dilation.
    sizes = zip(ints(node.padding, axes), ints(node.dilation, axes), around, strict=True)
    padding = [p - d * cut for p, d, cut in sizes]
    if np.count_nonzero(found) != np.count_nonzero(weight) or min(padding) < 0:
        return node  # edited since
    trained = copy.copy(node)
    trained.weight, trained.groups = found, groups
    trained.padding = padding[0] if axes == 1 else np.array(padding)
    return trained


def _said(node: Any, weight: Array) -> tuple[int, tuple[int, ...]]:
    """Read groups and kernel from the metadata; those of the node itself where the metadata make no sense."""
    sides = weight.shape[2:]
    try:
        groups = int(np.asarray(node.metadata.get(GROUPS, 1)))
        kernel = ints(node.metadata.get(KERNEL, np.array(sides)), len(sides))
    except (TypeError, ValueError):
        return 1, sides
    missing = np.array(sides) - kernel
    # A centred kernel lacks as much on the one side as on the other.
    centred = min(kernel) > 0 and (missing >= 0).all() and not (missing % 2).any()
    if not centred or groups < 1:
        return 1, sides
    outputs, inputs = weight.shape[:2]
    if outputs % groups or inputs % groups:
        return 1, sides
    return groups, kernel


def dense_kernel(weight: Tensor, groups: int) -> Tensor:
    """Turn the (O, I/groups, ...) weight of a grouped convolution into (O, I, ...), with zeros between the groups."""
    outputs, inputs, *kernel = weight.shape
    dense = weight.new_zeros(groups, outputs // groups, groups, inputs, *kernel)
    # Each group of outputs sees its own group of inputs alone.
    for g, rows in enumerate(weight.chunk(groups)):
        dense[g, :, g] = rows
    return dense.reshape(outputs, groups * inputs, *kernel)


def padding_numbers(
    padding: str | Sequence[int], dilation: Sequence[int], kernel: Sequence[int]
) -> tuple[int, ...] | None:
    """Return a padding per axis as numbers; None for 'same' where it would differ on the two sides."""
    if padding == "valid":
        return (0,) * len(kernel)
    if padding != "same":
        return ints(padding, len(kernel))
    # Together both sides hold what the kernel spans beyond the pixel at its centre.
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if any(t % 2 for t in total):
        return None
    return tuple(t // 2 for t in total)
