"""Bounds on sums and states that hold whatever the input is. Where one fails, an input may still never get there: warnings."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from knarr.deploy.parts import Network
from knarr.deploy.violation import Violation
from knarr.hw_sim import Recurrent
from knarr.hw_sim.layers import DECAY_UNITY, Layer

ACCUMULATOR = 2**15
"""Loihi's dendritic accumulator: 21 bits and sign after the shift by 6 (nengo-loihi e564f66, builder/discretize.py)."""
STATE = 2**23
"""u wraps at it, v saturates below it (tests/test_arithmetic.py)."""
WEIGHT_UNIT = 64

Rows = npt.NDArray[np.int64]


def worst_sums(network: Network) -> Iterator[tuple[Layer, Rows, Rows]]:
    """Each layer with the largest and (without its sign) the smallest sum of each row, all inputs at their largest."""
    payload = 2**network.input.bits - 1
    for layer in network.layers:
        rows = layer.weight_int.reshape(len(layer.weight_int), -1).astype(np.int64)
        up, down = payload * np.maximum(rows, 0).sum(1), payload * np.maximum(-rows, 0).sum(1)
        if isinstance(layer, Recurrent):
            back = layer.recurrent_int.astype(np.int64)
            up, down = up + np.maximum(back, 0).sum(1), down + np.maximum(-back, 0).sum(1)
        yield layer, up, down
        payload = 1


def sums_fit_accumulator(network: Network) -> Iterator[Violation]:
    for layer, up, down in worst_sums(network):
        worst = max(int(up.max()), int(down.max()))
        if worst >= ACCUMULATOR:
            yield Violation(
                "sums_fit_accumulator",
                layer.name,
                f"if every input fired at once the sum would reach {worst}, the accumulator ends at {ACCUMULATOR - 1}; "
                "compare with the largest sum the simulator meets on real inputs",
                "warning",
            )


def states_fit_registers(network: Network) -> Iterator[Violation]:
    """u(t) = u(t-1) (1 - d) + a cannot pass a / d, and v the same of what flows into it; truncation only helps."""
    for layer, up, down in worst_sums(network):
        neuron = layer.neuron
        bias = 0 if layer.bias_int is None else WEIGHT_UNIT * layer.bias_int.astype(np.int64)
        highest_u, lowest_u = (_reached(WEIGHT_UNIT * side, neuron.i_decay) for side in (up, down))
        u = float(max(highest_u.max(), lowest_u.max()))
        if u >= STATE:
            worst = max(int(up.max()), int(down.max()))
            yield _warning(
                layer,
                f"|u| could reach {_number(u)} (sum {worst} * {WEIGHT_UNIT} * {DECAY_UNITY} / i_decay {neuron.i_decay}), "
                f"it wraps at {STATE}",
            )
        falls = _reached(lowest_u + np.maximum(-bias, 0), neuron.v_decay)
        rises = _reached(highest_u + np.maximum(bias, 0), neuron.v_decay)
        # A spiking neuron fires and starts anew before it could saturate upwards.
        v = float(falls.max() if neuron.spikes else max(falls.max(), rises.max()))
        if v > STATE - 1:
            yield _warning(
                layer,
                f"|v| could reach {_number(v)} ({_number(u)} and bias, * {DECAY_UNITY} / v_decay {neuron.v_decay}), "
                f"it saturates at {STATE - 1}",
            )


def _reached(inflow: npt.NDArray[np.number], decay: int) -> npt.NDArray[np.float64]:  # type: ignore[type-arg]
    limit = np.where(inflow > 0, np.inf, 0.0) if decay == 0 else inflow * (DECAY_UNITY / decay)
    return np.asarray(limit, dtype=np.float64)


def _number(value: float) -> str:
    return f"{value:.0f}" if np.isfinite(value) else "any size"


def _warning(layer: Layer, message: str) -> Violation:
    cure = "compare with the largest the simulator records on real inputs, or lower with a smaller scale"
    return Violation("states_fit_registers", layer.name, f"{message}; {cure}", "warning")
