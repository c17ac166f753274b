"""How near the chip's registers a layer can come: a bound over all inputs, and what a run met."""

from __future__ import annotations

import numpy as np

from knarr.hw_sim import Recurrent
from knarr.hw_sim.layers import DECAY_UNITY, Layer

SUM_LIMIT = 2**15
STATE_LIMIT = 2**23


def sum_bound(layer: Layer, payload: int) -> int:
    """Largest |synaptic sum| if every input were `payload` at once."""
    rows = layer.weight_int.reshape(len(layer.weight_int), -1).astype(np.int64)
    up, down = payload * np.maximum(rows, 0).sum(1), payload * np.maximum(-rows, 0).sum(1)
    if isinstance(layer, Recurrent):
        back = layer.recurrent_int.astype(np.int64)
        up, down = up + np.maximum(back, 0).sum(1), down + np.maximum(-back, 0).sum(1)
    return max(int(up.max()), int(down.max()))


def state_bounds(layer: Layer, payload: int) -> tuple[float, float]:
    """Largest |u| and |v| that could ever be, infinite where nothing decays."""
    worst_u = (
        64 * sum_bound(layer, payload) * DECAY_UNITY / layer.neuron.i_decay
        if layer.neuron.i_decay
        else np.inf
    )
    bias = 0 if layer.bias_int is None else 64 * int(np.abs(layer.bias_int.astype(np.int64)).max())
    per_step = worst_u + bias
    worst_v = per_step * DECAY_UNITY / layer.neuron.v_decay if layer.neuron.v_decay else np.inf
    return float(worst_u), float(worst_v)
