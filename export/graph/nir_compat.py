"""Groups and kernel sides that a NIR file cannot hold: written as zeros, and found again.

nir 1.0.8 reads grouped and non-square convolutions back wrongly, so the exporter writes one dense, square kernel with zeros
and says in the node's metadata what it was. Whoever stores or counts synapses goes by that: the zeros are no synapses.

One number for what a graph says.

The form that most readers of NIR take: a current neuron with r = tau_mem/dt, so that v = (1 - a) v + I.

Multiplying r, v_threshold, v_reset and v_leak by one number changes no spike. `to_nir` writes r = 1, where voltages are those of
Norse bit for bit; snnTorch, SpikingJelly and the published script to Lava want this one (docs/roundtrips.md). LIF and LI stay,
since Norse's own reader takes their r for 1.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import Any

import nir
import numpy as np

from knarr.export.arguments import as_dt
from knarr.export.errors import ExportError
from knarr.export.graph.step_synapses import ints
from knarr.export.graph.topology import inline

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
    """Groups and kernel from the metadata, checked; those of the node where they make no sense."""
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


def graph_hash(graph: nir.NIRGraph) -> str:
    """SHA-256 over node names, types, parameters and edges; independent of their order and of metadata."""
    nodes, edges = inline(graph)
    digest = hashlib.sha256()
    for name in sorted(nodes):
        node = nodes[name]
        digest.update(f"{name}:{type(node).__name__}".encode())
        for field in sorted(vars(node)):
            value = getattr(node, field)
            if field == "metadata" or callable(value):
                continue
            if isinstance(value, dict):  # input_type and output_type: shapes
                value = [
                    None if shape is None else np.asarray(shape).tolist()
                    for _, shape in sorted(value.items())
                ]
                digest.update(f"{field}={value}".encode())
            elif value is None or isinstance(value, str):
                digest.update(f"{field}={value!r}".encode())
            else:
                array = np.asarray(value)
                digest.update(
                    f"{field}:{array.shape}".encode()
                    + np.ascontiguousarray(array, dtype=np.float64).tobytes()
                )
    digest.update(repr(sorted(edges)).encode())
    for name in sorted(nodes):
        sources = [source for source, target in edges if target == name]
        if len(sources) > 2:  # a sum of three rounds by its order
            digest.update(repr(sources).encode())
    return digest.hexdigest()


def scale_currents(graph: nir.NIRGraph, dt_s: float) -> nir.NIRGraph:
    """A copy whose CubaLIF nodes have r = tau_mem/dt and thresholds to match; spikes are the same, voltages scaled.

    Args:
        graph: as `to_nir` gives it.
        dt_s: time step, seconds.

    Returns:
        A graph without certificate (its voltages are not the module's); `metadata["scaled_from"]` is the original's hash.

    Raises:
        ExportError: dt is not above 0, or an r is 0.
    """
    dt_s = as_dt(dt_s)
    scaled = copy.deepcopy(graph)
    for name, node in inline(scaled)[0].items():
        if not isinstance(node, nir.CubaLIF):
            continue
        r = np.asarray(node.r, dtype=np.float64)
        if (r <= 0).any():
            raise ExportError(
                f"node '{name}': r is not above 0, and no factor turns a threshold round; rewrite its weights"
            )
        factor = np.asarray(node.tau_mem, dtype=np.float64) / dt_s / r
        for field in ("r", "v_threshold", "v_reset", "v_leak"):
            setattr(node, field, np.asarray(getattr(node, field), dtype=np.float64) * factor)
    scaled.metadata = {key: value for key, value in graph.metadata.items() if key != "certificate"}
    scaled.metadata["scaled_from"] = graph_hash(graph)
    return scaled
