"""NeuroBench's metrics of neurons, by its rules from what our graph did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from neurobench_compare import Ours, UnexplainedError


def compared(found: Ours, said: Mapping[str, Any]) -> tuple[float, float]:
    """Activation sparsity and membrane updates, which must be NeuroBench's.

    Raises:
        UnexplainedError: they are not.
    """
    own = activation_sparsity(found), membrane_updates(found)
    theirs = said["activation_sparsity"], said["membrane_updates"]
    if own != theirs:
        raise UnexplainedError(f"neurons: NeuroBench says {theirs}, by its rules it is {own}")
    return own


def activation_sparsity(found: Ours) -> float:
    """Share of (neuron, step) pairs without a spike, by the one division that NeuroBench does; the readout has none."""
    pairs = sum(spikes.size for spikes in found.trace.spikes.values())
    fired = found.floating.total.spikes * found.floating.samples
    return int(pairs - fired) / pairs


def membrane_updates(found: Ours) -> float:
    """Per sample: at the first step all neurons, later those whose voltage is another than the step before."""
    total = 0
    for name in found.trace.spikes:
        v = found.trace.v[name]
        total += v[:, 0].size + int(np.count_nonzero(v[:, 1:] != v[:, :-1]))
    return total / found.floating.samples
