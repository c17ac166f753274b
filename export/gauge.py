"""The form that most readers of NIR take: a current neuron with r = tau_mem/dt, so that v = (1 - a) v + I.

Multiplying r, v_threshold, v_reset and v_leak by one number changes no spike. `to_nir` writes r = 1, where voltages are those of
Norse bit for bit; snnTorch, SpikingJelly and the published script to Lava want this one (docs/roundtrips.md). LIF and LI stay,
since Norse's own reader takes their r for 1.
"""

from __future__ import annotations

import copy

import nir
import numpy as np

from knarr.export.arguments import as_dt
from knarr.export.errors import ExportError
from knarr.export.graph_hash import graph_hash
from knarr.export.topology import inline


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
