"""A NIR graph as lines of text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from knarr.export import execution_order

if TYPE_CHECKING:
    import nir


def describe_nodes(graph: nir.NIRGraph) -> list[str]:
    """Return a line for each node in the order of execution: name, kind, shape, time constants."""
    lines = []
    for name in execution_order(graph):
        node = graph.nodes.get(name)
        # The order names nodes of nested graphs by their path, which the outer graph does not hold.
        kind = "inside a nested graph" if node is None else type(node).__name__
        shape: tuple[int, ...] = ()
        if node is not None and node.output_type:
            shape = tuple(int(size) for size in next(iter(node.output_type.values())))
        lines.append(f"{name}: {kind} {shape or ''} {_time_constants(node)}".rstrip())
    return lines


def _time_constants(node: Any) -> str:
    parts = []
    for field in ("tau", "tau_mem", "tau_syn"):
        values = getattr(node, field, None)
        if values is None:
            continue
        low, high = 1e3 * float(np.min(values)), 1e3 * float(np.max(values))
        # Learned time constants differ from neuron to neuron.
        spread = f"{low:.3g}" if math.isclose(low, high) else f"{low:.3g}..{high:.3g}"
        parts.append(f"{field} {spread} ms")
    return ", ".join(parts)
